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
    equal_past: (
        int | None
    )  # in such a step, tokens in the cache of every row; None where that is not known without reading
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
    tables, sorted_tables = rotary_tables(config, rotary, to_blocks(position_ids, grid))
    allowed = allowed_pairs(grid, causal, device)
    block = torch.arange(grid.num_blocks, device=device)
    return BlockLayout(
        grid=grid,
        tables=tables,
        sorted_tables=sorted_tables,
        balanced=allowed,
        allowed=allowed,
        candidates=not_always_read(
            config, block.unsqueeze(0), block, allowed, block if grid.document is None else grid.block_of_document
        ),
        sorted_mask=sorted_mask(grid, causal, device),
        local_mask=always_read_mask(grid, config.num_sink_blocks, config.num_local_blocks, causal, device),
        sink_index=sinks_of_documents(grid, config.num_sink_blocks),
        earlier_slots=earlier_slots(grid, causal, device) if has_mixture(config) else None,
    )


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


def sorts(config: Any) -> bool:
    return not {"local_attention", "full_attention"}.issuperset(config.layer_types)


def has_mixture(config: Any) -> bool:
    return "mixture_attention" in config.layer_types


def rotary_tables(
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


def not_always_read(
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
