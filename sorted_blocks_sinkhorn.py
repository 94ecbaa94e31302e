# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What is sorted next to each block: keys and values, made by a sort matrix (design sections 2.5 and 2.7).

Shape letters as in `sorting_sinkhorn.py`; `n` destination blocks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .block_attention_sinkhorn import GatheredBlocks
    from .layout_sinkhorn import BlockLayout
    from .masks_sinkhorn import hard_sorted_mask, join_masks
    from .rotary_sinkhorn import RotaryTables, apply_rotary
    from .sorting_sinkhorn import HardSort, hard_assignment, hard_sort, local_offsets, soft_sort
except ImportError:  # flat modules, as installed
    from block_attention_sinkhorn import GatheredBlocks
    from layout_sinkhorn import BlockLayout
    from masks_sinkhorn import hard_sorted_mask, join_masks
    from rotary_sinkhorn import RotaryTables, apply_rotary
    from sorting_sinkhorn import HardSort, hard_assignment, hard_sort, local_offsets, soft_sort


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


def blocks_to_gather(
    choice: HardSort | None, layout: BlockLayout, config: Any, batch: int
) -> tuple[GatheredBlocks | None, Tensor | None]:
    """
    What `block_attention` gathers next to each block of whole rows: the chosen blocks, the sinks and the other local
    ones.

    Args:
        choice: `(B, G, N, S)`; `None` for none.
        batch: `B`.

    Returns:
        The blocks, `None` for none, and the mask `(B or 1, N, 1 or G, 1 or b, K)`, the block itself last; `None` where
        nothing is masked.
    """
    b, num_blocks, always_mask = config.block_size, layout.grid.num_blocks, layout.local_mask
    offsets, num_sinks = local_offsets(config.num_local_blocks, config.is_decoder), config.num_sink_blocks
    num_always = num_sinks + len(offsets)
    indices, weight, chosen_mask = [], None, None
    if choice is not None:
        indices, weight = [choice.index], choice.weight
        # Reading back whether all are there costs less than a mask of them, on a CPU.
        is_on_cpu = choice.chosen.device.type == "cpu"
        if layout.grid.filled is not None or not (is_on_cpu and bool(choice.chosen.all())):
            chosen_mask = hard_sorted_mask(choice, layout.grid.filled, b).unsqueeze(3)
    if num_always > 1:
        block = torch.arange(num_blocks, device=always_mask.device)
        others = torch.tensor([offset for offset in offsets if offset != 0], dtype=torch.long, device=block.device)
        read = (block.unsqueeze(-1) + others).unsqueeze(0)
        if num_sinks > 0:
            sinks = layout.sink_index
            if sinks is None:
                sinks = torch.arange(num_sinks, device=block.device).expand(1, num_blocks, -1)
            read = torch.cat((sinks, read.expand(sinks.shape[0], -1, -1)), dim=-1)
        # What is past the ends is masked, and so is a sink that is local too.
        read = read.clamp(0, num_blocks - 1).unsqueeze(1).expand(batch, config.num_key_value_heads, -1, -1)
        indices.append(read)
        if weight is not None:
            weight = torch.cat((weight, weight.new_ones(read.shape)), dim=-1) if weight.requires_grad else None
        itself = num_sinks + offsets.index(0)
        order = [place for place in range(num_always) if place != itself] + [itself]
        always_mask = always_mask.unflatten(-1, (num_always, b))[..., order, :].flatten(-2)
    always_mask = None if always_mask is None else always_mask.unsqueeze(2)
    if not indices:
        return None, always_mask
    index = torch.cat(indices, dim=-1)
    num_chosen = 0 if choice is None else choice.index.shape[-1]
    mask = join_masks(chosen_mask, num_chosen * b, always_mask, num_always * b)
    return GatheredBlocks(index, weight), mask
