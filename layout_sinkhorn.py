# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What every layer of one forward pass needs to know about its batch, made once: the block grid, rotary tables, and who may
see whom. A pass reads either whole rows, or new tokens that continue a cache.

Shape letters as in `sorting_sinkhorn.py`; `M` blocks of new tokens, `Q` their slots (`b`, or 1 in a step of one token),
`H` query heads, `K` keys that a block attends to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .sorting_sinkhorn import (
        BlockGrid,
        allowed_pairs,
        block_grid,
        continued_grid,
        document_lengths,
        local_offsets,
        local_window,
        nonempty_blocks,
        packed_grid,
        same_document,
        to_blocks,
    )
except ImportError:  # flat modules, as installed
    from sorting_sinkhorn import (
        BlockGrid,
        allowed_pairs,
        block_grid,
        continued_grid,
        document_lengths,
        local_offsets,
        local_window,
        nonempty_blocks,
        packed_grid,
        same_document,
        to_blocks,
    )


Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]  # (B, L) positions to cosines and sines, (B, L, D)


class CacheContext(NamedTuple):
    """How the new tokens of a pass continue those in a cache. Rows count their real tokens alone."""

    num_tokens: int  # L, new tokens per row with padding
    past_counts: Tensor  # (B,) tokens in the cache
    counts: Tensor  # (B,) the same with the new ones
    num_blocks: int  # N, no less than any row fills, and one: the last slot of all is never a token's
    slots: Tensor  # (B, M * Q) where new tokens go in the cache, N * b - 1 for what is no token
    filled: Tensor  # (B, M, Q) bool, slots of the grid that hold a new token
    positions: Tensor  # (B, M * Q) their rotary positions
    first_block: Tensor  # (B,) the first block that new tokens touch
    offset: Tensor  # (B,) tokens that it held before
    opened: Tensor  # (B, M) bool, blocks whose first token is new
    last_block: Tensor  # (B,) which of the M blocks is the row's last with a token
    opens: bool  # whether any block opens, or may
    closes: bool  # whether any block is filled up, or may be


class BlockContext(NamedTuple):
    """Masks are bool, and `None` where nothing is masked."""

    grid: BlockGrid  # of the tokens of this pass
    cos: Tensor  # (B or 1, M, Q, D) rotary tables at each slot's true position
    sin: Tensor
    rotary: Rotary
    sorted_cos: Tensor  # (B or 1, M, b, D) the same where a softly sorted block is taken to stand
    sorted_sin: Tensor
    balanced: Tensor | None  # (B or 1, 1, M, N) pairs of blocks that this pass balances
    allowed: Tensor | None  # (B or 1, 1, M, N) pairs of blocks that sorting may join
    candidates: Tensor | None  # (B or 1, 1, M, N) those of them that are not local already
    sorted_mask: Tensor | None  # (B or 1, M, b) slots of a softly sorted block that hold anything
    local_mask: Tensor | None  # (B or 1, M, 1 or Q, K_local) local slots that a query may see
    earlier_slots: Tensor | None  # (B or 1, M, 1 or Q, N * b) all slots that a query may see; only for a mixture
    local_index: Tensor | None  # (B, M, blocks) which blocks of the cache are local
    cached: CacheContext | None  # None in a pass over whole rows without a cache
    key_grid: BlockGrid | None  # of all tokens, those in the cache too; for maps


class TokenContext(NamedTuple):
    """The same for ordinary attention, which knows no blocks."""

    cos: Tensor  # (B or 1, L, D)
    sin: Tensor
    mask: Tensor | None  # (B or 1, 1, 1 or L, tokens with those in the cache) bool
    is_causal: bool  # whether a missing mask stands for the causal one
    is_real: Tensor | None  # (B, L) bool, the tokens of this pass


class Context(NamedTuple):
    """What is needed by the layers that there are."""

    blocks: BlockContext | None
    tokens: TokenContext | None


def make_context(
    config: Any,
    rotary: Rotary,
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Tensor | None,
    cache: Any | None,
    past_length: int | Tensor,
    maps: bool,
    look: bool,
) -> Context:
    """
    Args:
        shape: `(B, L)`, of the new tokens.
        attention_mask: `(B, L + past_length)`, `None` where there is no padding.
        position_ids: `(B or 1, L)`, `None` for ranks among the real tokens of the row.
        documents: `(B, L)`, of packed rows, the number of the document of each token; `None` where a row is one.
        cache: holds `past_length` tokens per row, padding included.
        maps: whether attention maps will be asked for.
        look: whether values may be read back to skip what is not due. Not while tracing.
    """
    batch, num_tokens = shape
    static = [getattr(layer, "max_cache_len", None) for layer in (cache.layers if cache is not None else [])]
    max_length = next(filter(None, static), None)
    if look and max_length is not None and past_length + num_tokens > max_length:
        raise ValueError(
            f"The static cache has room for {max_length} tokens, and {past_length} + {num_tokens} are given: make it "
            "with a larger `max_cache_len`."
        )
    if look:
        longest = past_length + num_tokens if documents is None else int(document_lengths(documents).max())
        _check_number_of_blocks(config, longest)
    blocks = tokens = None
    if set(config.layer_types) != {"full_attention"}:
        if cache is None:
            blocks = whole_block_context(config, num_tokens, attention_mask, position_ids, documents, rotary, device)
        else:
            blocks = cached_block_context(
                config, shape, device, attention_mask, position_ids, past_length, max_length, rotary, look
            )
            if maps:
                blocks = blocks._replace(
                    key_grid=block_grid(past_length + num_tokens, config.block_size, attention_mask, device)
                )
    if "full_attention" in config.layer_types:
        if position_ids is None:
            position_ids = (torch.arange(num_tokens, device=device) + past_length).unsqueeze(0)
            if attention_mask is not None:
                position_ids = ((attention_mask != 0).cumsum(-1) - 1).clamp(min=0)[:, -num_tokens:]
        tokens = token_context(
            config, num_tokens, attention_mask, position_ids, rotary, past_length, max_length, documents
        )
    return Context(blocks, tokens)


def whole_block_context(
    config: Any,
    num_tokens: int,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Tensor | None,
    rotary: Rotary,
    device: torch.device,
) -> BlockContext:
    """For whole rows. Arguments as in `make_context`."""
    causal = config.is_decoder
    if documents is None:
        grid = block_grid(num_tokens, config.block_size, attention_mask, device)
    else:
        grid = packed_grid(documents, config.block_size)
    if position_ids is None:
        position_ids = torch.arange(num_tokens, device=device).unsqueeze(0)
        if grid.slot_of_token is not None:
            position_ids = grid.slot_of_token
    positions = to_blocks(position_ids, grid)
    allowed = allowed_pairs(grid, causal, device)
    block = torch.arange(grid.num_blocks, device=device)
    return BlockContext(
        grid=grid,
        **_rotary_tables(config, rotary, positions, positions[..., :1]),
        balanced=allowed,
        allowed=allowed,
        candidates=_not_local(config, block.unsqueeze(0), block, allowed),
        sorted_mask=_sorted_mask(grid, causal, block),
        local_mask=_local_mask(grid, config, device),
        earlier_slots=_earlier_slots(grid, causal, device) if _has_mixture(config) else None,
        local_index=None,
        cached=None,
        key_grid=None,
    )


def cached_block_context(
    config: Any,
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_length: int | Tensor,
    max_length: int | None,
    rotary: Rotary,
    look: bool,
) -> BlockContext:
    """
    For new tokens of a decoder that continue a cache, or begin one; arguments as in `make_context`, `max_length` the
    tokens that a cache of fixed size has room for.
    """
    b = config.block_size
    batch, num_tokens = shape
    if attention_mask is None:
        is_real = torch.ones(batch, num_tokens, dtype=torch.bool, device=device)
        past_counts = torch.zeros(batch, dtype=torch.long, device=device) + past_length
    else:
        is_real = attention_mask[:, -num_tokens:] != 0
        past_counts = (attention_mask[:, :-num_tokens] != 0).sum(-1)
    counts = past_counts + is_real.sum(-1)
    first_block, offset = past_counts // b, past_counts % b
    num_blocks = -(-(past_length + num_tokens if max_length is None else max_length) // b) + 1
    # A cache that is empty, as far as may be seen, and no padding: blocks are plain views of the sequence.
    plain = look and attention_mask is None and past_length == 0
    grid, filled, slot_in_block = _grid_of_new_tokens(is_real, offset, b, plain)
    opened = filled[..., 0] & (slot_in_block[..., 0] == 0)
    touched = first_block.unsqueeze(-1) + torch.arange(grid.num_blocks, device=device)  # (B, M)
    slots = touched.unsqueeze(-1) * b + slot_in_block  # (B, M, Q)
    if position_ids is None:
        positions = slots
    else:
        positions = to_blocks(position_ids.expand(batch, -1), grid)
    last_block = ((counts - 1).clamp(min=0) // b - first_block).clamp(min=0)

    # A step of one token rarely opens or fills a block. The first one makes the states, even where all is padding.
    may_change = not look or num_tokens > 1 or past_length == 0
    source = torch.arange(num_blocks, device=device)
    exists = touched * b < counts.unsqueeze(-1)
    allowed = (source < touched.unsqueeze(-1)) & exists.unsqueeze(-1)
    offsets = local_offsets(config.num_local_blocks, True)
    local_index = touched.unsqueeze(-1) + torch.tensor(list(offsets), device=device)
    local_slots = (local_index * b).unsqueeze(-1) + torch.arange(b, device=device)
    seen = local_slots.flatten(2).unsqueeze(2)
    earlier_slots = None
    if _has_mixture(config):
        earlier_slots = torch.arange(num_blocks * b, device=device) <= slots.unsqueeze(-1)
    return BlockContext(
        grid=grid,
        # A block that opens is placed by its first token; what was sorted beside an open one is kept in the cache.
        **_rotary_tables(config, rotary, positions, positions[..., :1]),
        balanced=(allowed & opened.unsqueeze(-1)).unsqueeze(1),
        allowed=allowed.unsqueeze(1),
        candidates=_not_local(config, touched, source, allowed.unsqueeze(1)),
        sorted_mask=(exists & (touched > 0)).unsqueeze(-1).expand(-1, -1, b),
        local_mask=(seen >= 0) & (seen <= slots.unsqueeze(-1)),
        earlier_slots=earlier_slots,
        local_index=local_index.clamp(0, num_blocks - 1),
        cached=CacheContext(
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
            opens=may_change or bool(opened.any()),
            closes=may_change or bool((counts % b == 0).any()),
        ),
        key_grid=None,
    )


def _grid_of_new_tokens(is_real: Tensor, offset: Tensor, b: int, plain: bool) -> tuple[BlockGrid, Tensor, Tensor]:
    """
    Args:
        is_real: `(B, L)` bool, the new tokens that are no padding.
        offset: `(B,)` tokens that each row's open block holds already.
        plain: whether there is no padding, and no block open.

    Returns:
        The grid; `(B, M, Q)` bool, its slots that hold a new token; `(B or 1, 1, Q)`, the slots' places in their blocks.
    """
    batch, num_tokens = is_real.shape
    if num_tokens == 1:  # a block of one slot, so that a step does the work of one token
        place = is_real.new_zeros(is_real.shape, dtype=torch.long)
        return BlockGrid(1, 1, 1, place, place, is_real, is_real[:, None]), is_real[:, None], offset.view(-1, 1, 1)
    slot_in_block = torch.arange(b, device=is_real.device).view(1, 1, b)
    if not plain:
        grid = continued_grid(is_real, offset, b)
        return grid, grid.filled, slot_in_block
    grid = block_grid(num_tokens, b, None, is_real.device)
    filled = torch.arange(grid.num_blocks * b, device=is_real.device) < num_tokens
    return grid, filled.view(1, grid.num_blocks, b).expand(batch, -1, -1), slot_in_block


def token_context(
    config: Any,
    num_tokens: int,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    rotary: Rotary,
    past_length: int | Tensor = 0,
    key_length: int | None = None,
    documents: Tensor | None = None,
) -> TokenContext:
    """
    For ordinary attention. `attention_mask` `(B, tokens with those in the cache)` or `None`, `key_length` the keys of a
    cache of fixed size.
    """
    cos, sin = rotary(position_ids)
    is_real = None if attention_mask is None else attention_mask[:, -num_tokens:] != 0
    from_start = isinstance(past_length, int) and past_length == 0 and key_length is None
    mask = None
    device = position_ids.device
    if documents is not None:
        mask = same_document(documents, documents).unsqueeze(1)
    elif attention_mask is None and (from_start or not config.is_decoder):
        return TokenContext(cos, sin, None, config.is_decoder, None)
    if attention_mask is not None:
        mask = attention_mask != 0
        if key_length is not None:
            mask = torch.nn.functional.pad(mask, (0, key_length - mask.shape[-1]))
        mask = mask[:, None, None]
    if config.is_decoder and (num_tokens > 1 or key_length is not None):
        key_length = key_length if key_length is not None else past_length + num_tokens
        query = torch.arange(num_tokens, device=device) + past_length
        earlier = (torch.arange(key_length, device=device) <= query.unsqueeze(-1)).view(1, 1, num_tokens, -1)
        mask = earlier if mask is None else mask & earlier
    return TokenContext(cos, sin, mask, False, is_real)


def documents_of(position_ids: Tensor) -> Tensor | None:
    """
    `(B, L)` numbers of the documents of packed rows, which begin where positions do not grow; `None` where they always do.
    """
    restarts = position_ids.diff(dim=-1) <= 0
    if not bool(restarts.any()):
        return None
    return torch.nn.functional.pad(restarts.long().cumsum(-1), (1, 0))


def _check_number_of_blocks(config: Any, num_tokens: int) -> None:
    """Raises where a SortNet of fixed size has no outputs for that many blocks."""
    num_blocks = -(-num_tokens // config.block_size)
    sorts = not {"local_attention", "full_attention"}.issuperset(config.layer_types)
    if sorts and config.sort_net != "bilinear" and num_blocks > config.max_num_blocks:
        raise ValueError(
            f"The input has {num_blocks} blocks of {config.block_size} tokens, but a '{config.sort_net}' SortNet has "
            f"outputs for {config.max_num_blocks} (max_position_embeddings={config.max_position_embeddings} // "
            f"block_size={config.block_size}). Shorten the input, or train with a larger `max_position_embeddings` or "
            "`sort_net='bilinear'`."
        )


def _has_mixture(config: Any) -> bool:
    return "mixture_attention" in config.layer_types


def _rotary_tables(config: Any, rotary: Rotary, positions: Tensor, start: Tensor) -> dict[str, Any]:
    """
    Tables at `positions` `(B or 1, M, Q)`, and where softly sorted blocks are taken to stand. A mixed block has no
    position of its own: it stands where the block it is sorted to begins, `start` `(B or 1, M, 1)`, in a decoder
    directly before the local blocks.
    """
    cos, sin = rotary(positions.flatten(1))
    b = config.block_size
    sorted_positions = start + torch.arange(b, device=positions.device)
    if config.is_decoder:
        sorted_positions = sorted_positions - config.num_local_blocks * b
    sorted_cos, sorted_sin = rotary(sorted_positions.flatten(1))
    return {
        "cos": cos.unflatten(1, positions.shape[1:]),
        "sin": sin.unflatten(1, positions.shape[1:]),
        "sorted_cos": sorted_cos.unflatten(1, (positions.shape[1], b)),
        "sorted_sin": sorted_sin.unflatten(1, (positions.shape[1], b)),
        "rotary": rotary,
    }


def _not_local(config: Any, block: Tensor, source: Tensor, allowed: Tensor | None) -> Tensor | None:
    """`block` `(B or 1, M)` and `source` `(N,)`: the pairs too far apart to be local. Only hard sorting asks."""
    if config.sort_assignment != "hard":
        return None
    far = ((block.unsqueeze(-1) - source).abs() >= config.num_local_blocks).unsqueeze(1)
    return far if allowed is None else allowed & far


def _sorted_mask(grid: BlockGrid, causal: bool, block: Tensor) -> Tensor | None:
    """A slot of a softly sorted block holds something if any source block fills it: block 0 fills the most."""
    if grid.document is not None:
        if causal:
            return (grid.block_of_document > 0).unsqueeze(-1).expand(-1, -1, grid.block_size)
        first = torch.arange(grid.num_blocks, device=block.device) - grid.block_of_document
        mask = grid.filled.gather(1, first.unsqueeze(-1).expand(-1, -1, grid.block_size))
        return mask & nonempty_blocks(grid).unsqueeze(-1)
    if causal:
        # Only blocks before i are sources, and these are full; block 0 has none.
        return (block > 0).view(1, -1, 1).expand(-1, -1, grid.block_size)
    if grid.filled is None:
        return None
    mask = grid.filled[:, :1].expand(-1, grid.num_blocks, -1)
    nonempty = nonempty_blocks(grid)
    return mask if nonempty is None else mask & nonempty.unsqueeze(-1)


def _local_mask(grid: BlockGrid, config: Any, device: torch.device) -> Tensor | None:
    offsets = local_offsets(config.num_local_blocks, config.is_decoder)
    if grid.filled is None and len(offsets) == 1 and not config.is_decoder:
        return None
    filled = grid.filled
    if filled is None:
        filled = torch.ones(1, grid.num_blocks, grid.block_size, dtype=torch.bool, device=device)
    mask = local_window(filled, offsets).unsqueeze(2)
    if grid.document is not None:
        document = (grid.document + 1).unsqueeze(-1).expand(-1, -1, grid.block_size)  # 0 past the ends of a row
        mask = mask & (local_window(document, offsets) == document[..., :1]).unsqueeze(2)
    if not config.is_decoder:
        return mask
    slot = torch.arange(grid.block_size, device=device)
    key_slot = torch.arange(mask.shape[-1], device=device) - (len(offsets) - 1) * grid.block_size
    return mask & (key_slot.unsqueeze(0) <= slot.unsqueeze(-1))


def _earlier_slots(grid: BlockGrid, causal: bool, device: torch.device) -> Tensor | None:
    """`(B or 1, M, 1 or b, N * b)`: what full attention on the grid may see."""
    mask = None if grid.filled is None else grid.filled.flatten(1)[:, None, None, :]
    if grid.document is not None:
        same = same_document(grid.document, grid.document).repeat_interleave(grid.block_size, -1)
        mask = mask & same.unsqueeze(2).expand(-1, -1, grid.block_size, -1)
    if causal:
        slot = torch.arange(grid.num_blocks * grid.block_size, device=device)
        earlier = (slot <= slot.unsqueeze(-1)).view(1, grid.num_blocks, grid.block_size, -1)
        mask = earlier if mask is None else mask & earlier
    return mask
