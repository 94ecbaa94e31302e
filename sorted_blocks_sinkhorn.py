# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What is sorted next to each block: keys and values, made by a sort matrix (design sections 2.5 and 2.7).

Shape letters as in `sorting_sinkhorn.py`; `n` destination blocks.
"""

from typing import NamedTuple

from torch import Tensor


try:  # a folder on the Hub, or any package
    from .layout_sinkhorn import BlockLayout
    from .masks_sinkhorn import hard_sorted_mask
    from .rotary_sinkhorn import RotaryTables, apply_rotary
    from .sorting_sinkhorn import HardSort, hard_assignment, hard_sort, soft_sort
except ImportError:  # flat modules, as installed
    from layout_sinkhorn import BlockLayout
    from masks_sinkhorn import hard_sorted_mask
    from rotary_sinkhorn import RotaryTables, apply_rotary
    from sorting_sinkhorn import HardSort, hard_assignment, hard_sort, soft_sort


class SortedBlocks(NamedTuple):
    """What was sorted next to each of `n` destination blocks, `S` blocks of `b` slots each."""

    key: Tensor  # (B, n, G, S * b, D) rotated
    value: Tensor  # (B, n, G, S * b, D)
    mask: Tensor | None  # (B or 1, n, 1 or G, S * b) bool
    # Where it came from; only maps read these.
    matrix: Tensor  # (B, G, n, N)
    choice: HardSort | None = None  # of a hard assignment; None of a soft one
    filled: Tensor | None = None  # (B or 1, N, b) of a soft one, the slots of the sources with tokens; None for all


def mix_blocks(
    sort_matrix: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, causal: bool, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """
    Keys and values `(B, G, N, b, D)` of whole rows, softly sorted by `n` rows of the matrix, `(B, G, n, b, D)`.

    Args:
        has_bias: whether projections have a bias, so that empty slots are not 0.
    """
    filled = None if causal else layout.grid.filled
    if filled is None:
        sort_matrix = sort_matrix.to(key.dtype)  # once for both
    if has_bias and filled is not None:
        key, value = (x.masked_fill(~filled[:, None, :, :, None], 0) for x in (key, value))
    allowed = None if layout.grid.document is None else layout.allowed
    return tuple(soft_sort(sort_matrix, x, filled, allowed) for x in (key, value))


def place_mixed_blocks(
    sort_matrix: Tensor,
    mixed: tuple[Tensor, Tensor],
    filled: Tensor | None,
    mask: Tensor | None,
    tables: RotaryTables,
) -> SortedBlocks:
    """
    Args:
        sort_matrix: `(B, G, n, N)`.
        mixed: softly sorted keys, not rotated yet, and values, `(B, G, n, b, D)`.
        filled: `(B or 1, N, b)`, the slots of the source blocks with tokens; `None` for all.
        mask: `(B or 1, n, b)`.
        tables: `(B or 1, n, b, D)`, of the positions that the mixed blocks are assumed to have.
    """
    key, value = (x.transpose(1, 2) for x in mixed)
    key = apply_rotary(key, *tables.unsqueeze(2))
    return SortedBlocks(key, value, None if mask is None else mask.unsqueeze(2), sort_matrix, None, filled)


def gather_sorted_blocks(
    sort_matrix: Tensor,
    candidates: Tensor,
    key: Tensor,
    value: Tensor,
    filled: Tensor | None,
    num_sorted_blocks: int,
) -> SortedBlocks:
    """
    A hard assignment. Blocks are moved whole, so the true position of a key moves with it.

    Args:
        sort_matrix: `(B, G, n, N)`.
        candidates: bool, broadcastable to it.
        key, value: `(B, G, N, b, D)`, the keys rotated.
        filled: `(B or 1, N, b)`, the slots of the source blocks with tokens; `None` for all.
    """
    choice = hard_assignment(sort_matrix, candidates, num_sorted_blocks)
    mask = hard_sorted_mask(choice, filled, key.shape[3])
    key, value = (hard_sort(choice, x).flatten(3, 4).transpose(1, 2) for x in (key, value))
    return SortedBlocks(key, value, mask, sort_matrix, choice)
