# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Masks of attention on blocks, as pure functions: bool, True where a query may see a key, and `None` where nothing is
masked. Shape letters as in `layout_sinkhorn.py`.
"""

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .sorting_sinkhorn import (
        BlockGrid,
        HardSort,
        local_offsets,
        local_window,
        nonempty_blocks,
        same_document,
        sinks_of_documents,
    )
except ImportError:  # flat modules, as installed
    from sorting_sinkhorn import (
        BlockGrid,
        HardSort,
        local_offsets,
        local_window,
        nonempty_blocks,
        same_document,
        sinks_of_documents,
    )


def sorted_mask(grid: BlockGrid, causal: bool, device: torch.device) -> Tensor | None:
    """
    `(B or 1, N, b)`: the slots of each softly sorted block that hold anything, because some source block fills them.
    Block 0 of a document fills the most.
    """
    if grid.document is not None:
        if causal:
            return (grid.block_of_document > 0).unsqueeze(-1).expand(-1, -1, grid.block_size)
        first = torch.arange(grid.num_blocks, device=device) - grid.block_of_document
        mask = grid.filled.gather(1, first.unsqueeze(-1).expand(-1, -1, grid.block_size))
        return mask & nonempty_blocks(grid).unsqueeze(-1)
    if causal:
        # Only blocks before i are sources, and these are full; block 0 has none.
        block = torch.arange(grid.num_blocks, device=device)
        return (block > 0).view(1, -1, 1).expand(-1, -1, grid.block_size)
    if grid.filled is None:
        return None
    mask = grid.filled[:, :1].expand(-1, grid.num_blocks, -1)
    nonempty = nonempty_blocks(grid)
    return mask if nonempty is None else mask & nonempty.unsqueeze(-1)


def hard_sorted_mask(choice: HardSort, filled: Tensor | None, block_size: int) -> Tensor:
    """
    `(B, n, G, S * b)`: the slots of the chosen blocks that hold a token.

    Args:
        filled: `(B or 1, N, b)`, the slots of the source blocks that hold a token; `None` for all.
    """
    mask = choice.chosen.unsqueeze(-1)
    if filled is None:
        mask = mask.expand(*choice.index.shape, block_size)
    else:
        batch, heads, destinations, num_sorted = choice.index.shape
        index = choice.index.reshape(batch, -1, 1).expand(-1, -1, block_size)
        filled = filled.expand(batch, -1, -1).gather(1, index)
        mask = mask & filled.view(batch, heads, destinations, num_sorted, block_size)
    return mask.flatten(-2).transpose(1, 2)


def local_mask(grid: BlockGrid, num_local_blocks: int, causal: bool, device: torch.device) -> Tensor | None:
    """`(B or 1, N, 1 or b, K_local)`: the slots of its local blocks that a query may see."""
    offsets = local_offsets(num_local_blocks, causal)
    if grid.filled is None and len(offsets) == 1 and not causal:
        return None
    filled = grid.filled
    if filled is None:
        filled = torch.ones(1, grid.num_blocks, grid.block_size, dtype=torch.bool, device=device)
    mask = local_window(filled, offsets).unsqueeze(2)
    if grid.document is not None:
        document = (grid.document + 1).unsqueeze(-1).expand(-1, -1, grid.block_size)  # 0 past the ends of a row
        mask = mask & (local_window(document, offsets) == document[..., :1]).unsqueeze(2)
    if not causal:
        return mask
    slot = torch.arange(grid.block_size, device=device)
    key_slot = torch.arange(mask.shape[-1], device=device) - (len(offsets) - 1) * grid.block_size
    return mask & (key_slot.unsqueeze(0) <= slot.unsqueeze(-1))


def always_read_mask(
    grid: BlockGrid, num_sink_blocks: int, num_local_blocks: int, causal: bool, device: torch.device
) -> Tensor | None:
    """`(B or 1, N, 1 or b, (sinks + local blocks) * b)`: the slots of sinks and local blocks that a query may see."""
    local = local_mask(grid, num_local_blocks, causal, device)
    if num_sink_blocks == 0:
        return local
    sink = torch.arange(num_sink_blocks, device=device)
    number = torch.arange(grid.num_blocks, device=device).unsqueeze(0)
    if grid.document is not None:
        number = grid.block_of_document
    distance = number.unsqueeze(-1) - sink  # (B or 1, N, sinks)
    # A sink that is local too is read once: as a local block.
    seen = (distance if causal else distance.abs()) >= num_local_blocks
    index = sinks_of_documents(grid, num_sink_blocks)
    if index is None:
        index = sink.expand(1, grid.num_blocks, -1)
    seen = seen & (index < grid.num_blocks)
    index = index.clamp(max=grid.num_blocks - 1)
    if grid.document is not None:
        seen = seen & (grid.document.gather(1, index.flatten(1)).view_as(index) == grid.document.unsqueeze(-1))
    seen = seen.unsqueeze(-1).expand(*seen.shape, grid.block_size)
    if grid.filled is not None:
        rows = index.expand(grid.filled.shape[0], -1, -1).flatten(1).unsqueeze(-1).expand(-1, -1, grid.block_size)
        seen = seen & grid.filled.gather(1, rows).unflatten(1, index.shape[1:])
    seen = seen.flatten(2).unsqueeze(2)
    num_local = len(local_offsets(num_local_blocks, causal)) * grid.block_size
    return join_masks(seen, seen.shape[-1], local, num_local)


def earlier_slots(grid: BlockGrid, causal: bool, device: torch.device) -> Tensor | None:
    """`(B or 1, N, 1 or b, N * b)`: the slots of the whole grid that a query of full attention may see."""
    mask = None if grid.filled is None else grid.filled.flatten(1)[:, None, None, :]
    if grid.document is not None:
        same = same_document(grid.document, grid.document).repeat_interleave(grid.block_size, -1)
        mask = mask & same.unsqueeze(2).expand(-1, -1, grid.block_size, -1)
    if causal:
        slot = torch.arange(grid.num_blocks * grid.block_size, device=device)
        earlier = (slot <= slot.unsqueeze(-1)).view(1, grid.num_blocks, grid.block_size, -1)
        mask = earlier if mask is None else mask & earlier
    return mask


def join_masks(left: Tensor | None, left_size: int, right: Tensor | None, right_size: int) -> Tensor | None:
    """Two masks joined along the last dimension, of the sizes given; a missing one is all True."""
    if left is None and right is None:
        return None
    if left is None:
        left = right.new_ones([1] * right.dim()).expand(*right.shape[:-1], left_size)
    if right is None:
        right = left.new_ones([1] * left.dim()).expand(*left.shape[:-1], right_size)
    shape = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat((left.expand(*shape, left_size), right.expand(*shape, right_size)), dim=-1)
