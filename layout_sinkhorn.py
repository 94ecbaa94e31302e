# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The layout of the batch of one forward pass, made once and read by every layer: the block grid, rotary tables, and
which tokens may see which. A pass reads either whole rows, or new tokens that continue a cache.

Shape letters as in `sorting_sinkhorn.py`; `M` blocks of new tokens, `Q` their slots (`b`, or 1 in a step of one
token), `H` query heads, `K` keys that a block attends to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


try:  # a folder on the Hub, or any package
    from .masks_sinkhorn import always_read_mask, earlier_slots, sorted_mask
    from .rotary_sinkhorn import NO_ROTATION, RotaryTables
    from .sorting_sinkhorn import (
        BlockGrid,
        allowed_pairs,
        block_grid,
        continued_grid,
        document_lengths,
        local_offsets,
        packed_grid,
        same_document,
        sinks_of_documents,
        to_blocks,
    )
except ImportError:  # flat modules, as installed
    from masks_sinkhorn import always_read_mask, earlier_slots, sorted_mask
    from rotary_sinkhorn import NO_ROTATION, RotaryTables
    from sorting_sinkhorn import (
        BlockGrid,
        allowed_pairs,
        block_grid,
        continued_grid,
        document_lengths,
        local_offsets,
        packed_grid,
        same_document,
        sinks_of_documents,
        to_blocks,
    )


Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]  # (B, L) positions to cosines and sines, (B, L, D)


class CacheLayout(NamedTuple):
    """How the new tokens of a pass continue those in a cache. Rows count their real tokens alone."""

    num_tokens: int  # L, new tokens per row with padding
    past_counts: Tensor  # (B,) tokens in the cache
    counts: Tensor  # (B,) the same with the new ones
    num_blocks: int  # N, one more than a row can fill: the last slot of all never holds a token
    slots: Tensor  # (B, M * Q) where new tokens go in the cache, N * b - 1 for what is no token
    filled: Tensor  # (B, M, Q) bool, slots of the grid that hold a new token
    positions: Tensor  # (B, M * Q) their rotary positions
    first_block: Tensor  # (B,) the first block that new tokens touch
    offset: Tensor  # (B,) tokens that it held before
    opened: Tensor  # (B, M) bool, blocks whose first token is new
    last_block: Tensor  # (B,) which of the M blocks is the row's last with a token
    latest_block: Tensor  # (B,) its number
    is_one_token: bool  # whether this is a step of one token in every row, none of them padding
    opens: bool  # whether any block opens, or may
    closes: bool  # whether any block is filled up, or may be
    from_start: bool  # whether the cache is known to be empty
    local_index: Tensor  # (B, M, blocks) which blocks of the cache are always read: sinks, then local ones
    # Tables of positions in the cache, for keys that are stored unrotated; None where there are none, or no need.
    local_tables: RotaryTables | None  # (B, M, 1, K_local, D) of the local blocks
    all_tables: RotaryTables | None  # (B, N, b, 1, D) of all blocks; only for a mixture
    reopened_tables: RotaryTables | None  # (B, 1, b, D) of what is sorted next to a reopened block; after a `crop`
    shared: dict[str, Any]  # what all layers of a step of one token would make alike, made by the first


class BlockLayout(NamedTuple):
    """What attention on blocks needs. Masks are bool, and `None` where nothing is masked."""

    grid: BlockGrid  # of the tokens of this pass
    tables: RotaryTables  # (B or 1, M, Q, D) at each slot's true position
    sorted_tables: RotaryTables  # (B or 1, M, b, D) at the assumed position of a softly sorted block
    balanced: Tensor | None  # (B or 1, 1, M, N) pairs of blocks that this pass balances
    allowed: Tensor | None  # (B or 1, 1, M, N) pairs of blocks that sorting may join
    candidates: (
        Tensor | None
    )  # (B or 1, 1, M, N) the allowed ones that are not local already; only for a hard assignment
    sorted_mask: Tensor | None  # (B or 1, M, b) slots of a softly sorted block that hold anything
    # (B or 1, M, 1 or Q, K_local) slots of sinks and local blocks, which are always read, that a query may see
    local_mask: Tensor | None
    sink_index: Tensor | None  # (B, M, sinks) the sinks of each block of packed rows; None where these are the first
    earlier_slots: Tensor | None  # (B or 1, M, 1 or Q, N * b) all slots that a query may see; only for a mixture
    cached: CacheLayout | None = None  # None in a pass over whole rows without a cache
    key_grid: BlockGrid | None = None  # of all tokens, those in the cache too; for maps


class TokenLayout(NamedTuple):
    """What ordinary attention needs, which has no blocks."""

    tables: RotaryTables  # (B or 1, L, D)
    mask: Tensor | None  # (B or 1, 1, 1 or L, tokens with those in the cache) bool
    is_causal: bool  # whether a missing mask means the causal one
    is_real: Tensor | None  # (B, L) bool, the tokens of this pass


class Layout(NamedTuple):
    """`None` where no layer needs it."""

    blocks: BlockLayout | None
    tokens: TokenLayout | None


class LayoutInputs(NamedTuple):
    """What a layout is made from. The mask of a graph with a cache of fixed size may be as long as that."""

    shape: tuple[int, int]  # (B, L) of the new tokens
    device: torch.device
    attention_mask: Tensor | None = None  # (B, past_length + L), None where there is no padding
    position_ids: Tensor | None = None  # (B or 1, L), None for ranks among the real tokens of the row
    documents: Tensor | None = None  # (B, L) the document of each token of packed rows; None where a row is one
    past_length: int | Tensor = 0  # tokens per row in the cache, padding included; a tensor while tracing
    past_counts: Tensor | None = None  # (B,) real tokens per row in the cache; None without one

    def of_new_tokens(self, states: Tensor) -> Tensor:
        """`(B, past_length + L)` or longer to `(B, L)`."""
        num_tokens = self.shape[1]
        if not isinstance(self.past_length, Tensor):
            return states[:, -num_tokens:]
        index = torch.arange(num_tokens, device=states.device) + self.past_length
        return states.index_select(1, index)


def make_layout(
    config: Any,
    inputs: LayoutInputs,
    rotary: Rotary,
    cache: Any | None = None,
    maps: bool = False,
    may_read_values: bool = True,
) -> Layout:
    """
    Args:
        cache: holds `inputs.past_length` tokens per row.
        maps: whether attention maps will be returned.
        may_read_values: whether values of tensors may be read back, to check them and to skip needless work. Not while
            tracing.
    """
    _, num_tokens = inputs.shape
    layers, max_length = cache.layers if cache is not None else [], fixed_length(cache)
    if may_read_values:
        past_length = inputs.past_length
        if max_length is not None and past_length + num_tokens > max_length:
            raise ValueError(
                f"The static cache has room for {max_length} tokens, and {past_length} + {num_tokens} are given: make "
                "it with a larger `max_cache_len`."
            )
        longest = past_length + num_tokens
        if inputs.documents is not None:
            longest = int(document_lengths(inputs.documents).max())
        _check_number_of_blocks(config, longest)
    blocks = tokens = None
    if set(config.layer_types) != {"full_attention"}:
        if cache is None:
            blocks = block_layout(config, inputs, rotary)
        else:
            blocks = cached_block_layout(config, inputs, rotary, layers, max_length, may_read_values)
            if maps:
                key_length = inputs.past_length + num_tokens
                key_grid = block_grid(key_length, config.block_size, inputs.attention_mask, inputs.device)
                blocks = blocks._replace(key_grid=key_grid)
    if "full_attention" in config.layer_types:
        tokens = token_layout(config, inputs, rotary, max_length)
    return Layout(blocks, tokens)


def fixed_length(cache: Any | None) -> int | None:
    """The tokens that a cache of fixed size has room for; `None` of one that grows."""
    if cache is None:
        return None
    # Not `next` of a filter with a default: older versions of torch, as 2.8, cannot compile it.
    lengths = [getattr(layer, "max_cache_len", None) for layer in cache.layers]
    lengths = [length for length in lengths if length]
    return lengths[0] if lengths else None


def block_layout(config: Any, inputs: LayoutInputs, rotary: Rotary | None) -> BlockLayout:
    """For whole rows. `rotary`: `None` where queries and keys come rotated."""
    causal, device = config.is_decoder, inputs.device
    _, num_tokens = inputs.shape
    if inputs.documents is None:
        grid = block_grid(num_tokens, config.block_size, inputs.attention_mask, device)
    else:
        grid = packed_grid(inputs.documents, config.block_size)
    position_ids = inputs.position_ids
    if position_ids is None:
        position_ids = torch.arange(num_tokens, device=device).unsqueeze(0)
        if grid.slot_of_token is not None:
            position_ids = grid.slot_of_token
    tables, sorted_tables = _rotary_tables(config, rotary, to_blocks(position_ids, grid))
    allowed = allowed_pairs(grid, causal, device)
    block = torch.arange(grid.num_blocks, device=device)
    return BlockLayout(
        grid=grid,
        tables=tables,
        sorted_tables=sorted_tables,
        balanced=allowed,
        allowed=allowed,
        candidates=_not_always_read(
            config, block.unsqueeze(0), block, allowed, block if grid.document is None else grid.block_of_document
        ),
        sorted_mask=sorted_mask(grid, causal, device),
        local_mask=always_read_mask(grid, config.num_sink_blocks, config.num_local_blocks, causal, device),
        sink_index=sinks_of_documents(grid, config.num_sink_blocks),
        earlier_slots=earlier_slots(grid, causal, device) if _has_mixture(config) else None,
    )


def cached_block_layout(
    config: Any,
    inputs: LayoutInputs,
    rotary: Rotary,
    cache_layers: list[Any],
    max_length: int | None,
    may_read_values: bool,
) -> BlockLayout:
    """For new tokens of a decoder that continue a cache, or begin one."""
    b, device = config.block_size, inputs.device
    batch, num_tokens = inputs.shape
    attention_mask, past_length, past_counts = inputs.attention_mask, inputs.past_length, inputs.past_counts
    if attention_mask is None:
        is_real = torch.ones(batch, num_tokens, dtype=torch.bool, device=device)
    else:
        is_real = inputs.of_new_tokens(attention_mask) != 0
    counts = past_counts + is_real.sum(-1)
    first_block, offset = past_counts // b, past_counts % b
    num_blocks = -(-(past_length + num_tokens if max_length is None else max_length) // b) + 1
    # The cache is known to be empty, and there is no padding: blocks are plain views of the sequence.
    plain = may_read_values and attention_mask is None and past_length == 0
    is_one_token = num_tokens == 1 and attention_mask is None
    grid, filled, slot_in_block = _grid_of_new_tokens(is_real, offset, b, plain or is_one_token)
    opened = filled[..., 0] & (slot_in_block[..., 0] == 0)
    touched = first_block.unsqueeze(-1) + torch.arange(grid.num_blocks, device=device)  # (B, M)
    slots = touched.unsqueeze(-1) * b + slot_in_block  # (B, M, Q)
    if inputs.position_ids is None:
        positions = slots
    else:
        positions = to_blocks(inputs.position_ids.expand(batch, -1), grid)
    # A step of one token rarely opens or fills a block. The first one makes the states, even where all is padding.
    opens = closes = True
    if may_read_values and num_tokens == 1 and past_length > 0:
        if attention_mask is None:  # all rows are equally long: known without reading from the device
            opens, closes = past_length % b == 0, (past_length + 1) % b == 0
        else:
            opens, closes = torch.stack((opened.any(), (counts % b == 0).any())).tolist()
    # A block that opens is placed by its first token; what was sorted next to an open one is kept in the cache.
    sorts_softly = _sorts(config) and config.sort_assignment == "soft"
    tables, sorted_tables = _rotary_tables(config, rotary, positions, sorts_softly and opens)
    source = torch.arange(num_blocks, device=device)
    exists = touched * b < counts.unsqueeze(-1)
    allowed = (source < touched.unsqueeze(-1)) & exists.unsqueeze(-1)
    offsets = torch.tensor(list(local_offsets(config.num_local_blocks, True)), device=device)
    local_index = touched.unsqueeze(-1) + offsets
    sinks = torch.arange(config.num_sink_blocks, device=device).expand(*touched.shape, -1)
    # A sink that is local too is read once: as a local block.
    sinks = sinks.masked_fill(sinks > (touched - config.num_local_blocks).unsqueeze(-1), -1)
    local_index = torch.cat((sinks, local_index), dim=-1)
    local_slots = (local_index * b).unsqueeze(-1) + torch.arange(b, device=device)
    seen = local_slots.flatten(2).unsqueeze(2)
    earlier = None
    if _has_mixture(config):
        earlier = torch.arange(num_blocks * b, device=device) <= slots.unsqueeze(-1)
    last_block = ((counts - 1).clamp(min=0) // b - first_block).clamp(min=0)
    cached = CacheLayout(
        num_tokens=num_tokens,
        past_counts=past_counts,
        counts=counts,
        num_blocks=num_blocks,
        slots=torch.where(filled, slots, num_blocks * b - 1).flatten(1),
        filled=filled,
        positions=positions.flatten(1),
        first_block=first_block,
        offset=offset,
        opened=opened,
        last_block=last_block,
        latest_block=first_block + last_block,
        is_one_token=is_one_token,
        opens=opens,
        closes=closes,
        from_start=may_read_values and past_length == 0,
        local_index=local_index.clamp(0, num_blocks - 1),
        local_tables=None,
        all_tables=None,
        reopened_tables=None,
        shared={},
    )
    if sorts_softly:
        cached = _with_tables_of_cache(cached, config, rotary, cache_layers, slots[:, 0, :1])
    return BlockLayout(
        grid=grid,
        tables=tables,
        sorted_tables=sorted_tables,
        balanced=(allowed & opened.unsqueeze(-1)).unsqueeze(1),
        allowed=allowed.unsqueeze(1),
        candidates=_not_always_read(config, touched, source, allowed.unsqueeze(1), source),
        sorted_mask=(exists & (touched > 0)).unsqueeze(-1).expand(-1, -1, b),
        local_mask=(seen >= 0) & (seen <= slots.unsqueeze(-1)),
        sink_index=None,
        earlier_slots=earlier,
        cached=cached,
    )


def _with_tables_of_cache(
    cached: CacheLayout, config: Any, rotary: Rotary, cache_layers: list[Any], first_slot: Tensor
) -> CacheLayout:
    """Adds the rotary tables of slots of the cache. `first_slot` `(B, 1)`: where the grid of the new tokens begins."""
    b, device = config.block_size, first_slot.device
    # Every layer with unrotated keys stores the same positions.
    layer = next((layer for layer in cache_layers if getattr(layer, "positions", None) is not None), None)
    stored = None if layer is None else layer.positions.to(device)

    def tables_at(slots: Tensor) -> RotaryTables:
        """`(B, n)` slots: those of new tokens are in this pass, those before them in the cache; others are masked."""
        index = (slots - first_slot).clamp(0, cached.positions.shape[1] - 1)
        positions = cached.positions.gather(1, index)
        if stored is not None:
            past = stored.gather(1, slots.clamp(max=stored.shape[1] - 1))
            positions = torch.where(slots < cached.past_counts.unsqueeze(-1), past, positions)
        return RotaryTables(*rotary(positions))

    slot = torch.arange(b, device=device)
    local = tables_at((cached.local_index.unsqueeze(-1) * b + slot).flatten(1))
    sizes = cached.local_index.shape[1], cached.local_index.shape[2] * b
    cached = cached._replace(local_tables=RotaryTables(*(x.unflatten(1, sizes).unsqueeze(2) for x in local)))
    if _has_mixture(config):
        every = tables_at(torch.arange(cached.num_blocks * b, device=device).expand(first_slot.shape[0], -1))
        tables = RotaryTables(*(x.unflatten(1, (cached.num_blocks, b)).unsqueeze(-2) for x in every))
        cached = cached._replace(all_tables=tables)
    if layer is not None and layer.cropped_tokens > 0:
        last_block = (cached.past_counts - 1).clamp(min=0) // b
        start = stored.gather(1, last_block.unsqueeze(-1) * b)
        reopened = rotary(start + slot - config.num_local_blocks * b)
        cached = cached._replace(reopened_tables=RotaryTables(*(x.unsqueeze(1) for x in reopened)))
    return cached


def _grid_of_new_tokens(is_real: Tensor, offset: Tensor, b: int, plain: bool) -> tuple[BlockGrid, Tensor, Tensor]:
    """
    Args:
        is_real: `(B, L)` bool, the new tokens that are no padding.
        offset: `(B,)` tokens that each row's open block holds already.
        plain: whether there is no padding and, but for a step of one token, no block open.

    Returns:
        The grid; `(B, M, Q)` bool, its slots that hold a new token; `(B or 1, 1, Q)`, the slots' places in their
        blocks.
    """
    batch, num_tokens = is_real.shape
    if num_tokens == 1:  # a block of one slot, so that a step does the work of one token
        grid = BlockGrid(1, 1, 1)
        if not plain:
            place = is_real.new_zeros(is_real.shape, dtype=torch.long)
            grid = BlockGrid(1, 1, 1, place, place, is_real, is_real[:, None])
        return grid, is_real[:, None], offset.view(-1, 1, 1)
    slot_in_block = torch.arange(b, device=is_real.device).view(1, 1, b)
    if not plain:
        grid = continued_grid(is_real, offset, b)
        return grid, grid.filled, slot_in_block
    grid = block_grid(num_tokens, b, None, is_real.device)
    filled = torch.arange(grid.num_blocks * b, device=is_real.device) < num_tokens
    return grid, filled.view(1, grid.num_blocks, b).expand(batch, -1, -1), slot_in_block


def token_layout(config: Any, inputs: LayoutInputs, rotary: Rotary, key_length: int | None) -> TokenLayout:
    """For ordinary attention. `key_length`: the keys of a cache of fixed size, `None` in any other case."""
    _, num_tokens = inputs.shape
    attention_mask, past_length = inputs.attention_mask, inputs.past_length
    position_ids, device = inputs.position_ids, inputs.device
    if position_ids is None:
        position_ids = (torch.arange(num_tokens, device=device) + past_length).unsqueeze(0)
        if attention_mask is not None:
            position_ids = inputs.of_new_tokens(((attention_mask != 0).cumsum(-1) - 1).clamp(min=0))
    tables = RotaryTables(*rotary(position_ids))
    is_real = None if attention_mask is None else inputs.of_new_tokens(attention_mask) != 0
    from_start = isinstance(past_length, int) and past_length == 0 and key_length is None
    mask = None
    if inputs.documents is not None:
        mask = same_document(inputs.documents, inputs.documents).unsqueeze(1)
    elif attention_mask is None and (from_start or not config.is_decoder):
        return TokenLayout(tables, None, config.is_decoder, None)
    if attention_mask is not None:
        mask = attention_mask != 0
        if key_length is not None:
            mask = nn.functional.pad(mask, (0, key_length - mask.shape[-1]))
        mask = mask[:, None, None]
    if config.is_decoder and (num_tokens > 1 or key_length is not None):
        key_length = key_length if key_length is not None else past_length + num_tokens
        query = torch.arange(num_tokens, device=device) + past_length
        earlier = (torch.arange(key_length, device=device) <= query.unsqueeze(-1)).view(1, 1, num_tokens, -1)
        mask = earlier if mask is None else mask & earlier
    return TokenLayout(tables, mask, False, is_real)


def _check_number_of_blocks(config: Any, num_tokens: int) -> None:
    """Raises where a SortNet of fixed size has no outputs for that many blocks."""
    num_blocks = -(-num_tokens // config.block_size)
    if _sorts(config) and config.sort_net in ("linear", "mlp") and num_blocks > config.max_num_blocks:
        raise ValueError(
            f"The input has {num_blocks} blocks of {config.block_size} tokens, but a '{config.sort_net}' SortNet has "
            f"outputs for {config.max_num_blocks} (max_position_embeddings={config.max_position_embeddings} // "
            f"block_size={config.block_size}). Shorten the input, or train with a larger `max_position_embeddings` or "
            "`sort_net='bilinear'`."
        )


def _sorts(config: Any) -> bool:
    return not {"local_attention", "full_attention"}.issuperset(config.layer_types)


def _has_mixture(config: Any) -> bool:
    return "mixture_attention" in config.layer_types


def _rotary_tables(
    config: Any, rotary: Rotary | None, positions: Tensor, of_sorted: bool = True
) -> tuple[RotaryTables, RotaryTables]:
    """
    Tables at `positions` `(B or 1, M, Q)`, and at those that softly sorted blocks are assumed to have, if `of_sorted`. A mixed block
    has no position of its own: it is placed where the block that it is sorted to begins, in a decoder directly before
    the local blocks.
    """
    if rotary is None:
        return NO_ROTATION, NO_ROTATION

    def tables_at(positions: Tensor) -> RotaryTables:
        return RotaryTables(*(x.unflatten(1, positions.shape[1:]) for x in rotary(positions.flatten(1))))

    if not of_sorted:
        return tables_at(positions), NO_ROTATION
    b = config.block_size
    sorted_positions = positions[..., :1] + torch.arange(b, device=positions.device)
    if config.is_decoder:
        sorted_positions = sorted_positions - config.num_local_blocks * b
    return tables_at(positions), tables_at(sorted_positions)


def _not_always_read(
    config: Any, block: Tensor, source: Tensor, allowed: Tensor | None, number: Tensor
) -> Tensor | None:
    """
    `block` `(B or 1, M)` and `source` `(N,)`: the pairs too far apart to be local, whose source is no sink. Only needed
    by hard sorting. `number` `(N,)` or `(B, N)`: the sources' in their documents.
    """
    if config.sort_assignment != "hard":
        return None
    far = ((block.unsqueeze(-1) - source).abs() >= config.num_local_blocks).unsqueeze(1)
    if config.num_sink_blocks > 0:
        far = far & (number >= config.num_sink_blocks).view(-1, 1, 1, number.shape[-1])
    return far if allowed is None else allowed & far
