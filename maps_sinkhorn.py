# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Attention maps: the weight that each query gave to each token of the text, also through the sorting. Weights on slots
of sorted and local blocks are brought back to the tokens that they came from.

Shape letters as in `layout_sinkhorn.py`.
"""

import torch
from torch import Tensor, nn


try:  # a folder on the Hub, or any package
    from .layout_sinkhorn import BlockLayout
    from .sorted_blocks_sinkhorn import SortedBlocks
    from .sorting_sinkhorn import BlockGrid, from_blocks
except ImportError:  # flat modules, as installed
    from layout_sinkhorn import BlockLayout
    from sorted_blocks_sinkhorn import SortedBlocks
    from sorting_sinkhorn import BlockGrid, from_blocks


def source_shares(blocks: SortedBlocks, block_size: int, repeats: int) -> Tensor:
    """
    `(B, H, n, S, N, b)`: the share that slot `t` of each source block has in slot `t` of what is sorted next to each
    destination, for each query head, of which `repeats` share a key/value head.
    """
    if blocks.choice is not None:
        shares = nn.functional.one_hot(blocks.choice.index, blocks.matrix.shape[-1]).to(blocks.matrix.dtype)
        shares = shares * blocks.choice.weight.unsqueeze(-1)  # 1, with a gradient
        shares = shares.unsqueeze(-1).expand(*shares.shape, block_size)
    else:
        shares = blocks.matrix.unsqueeze(-1).expand(*blocks.matrix.shape, block_size)
        if blocks.filled is not None:
            shares = shares * blocks.filled[:, None, None].to(shares.dtype)
            shares = shares / shares.sum(-2, keepdim=True).clamp_min(1e-30)
        shares = shares.unsqueeze(3)
    return shares.repeat_interleave(repeats, dim=1)


def sorted_map(weights: Tensor, shares: Tensor) -> Tensor:
    """Weights on sorted slots `(B, H, M, Q, S * b)` to weights on the tokens they came from, `(B, H, M, Q, N, b)`."""
    weights = weights.unflatten(-1, (shares.shape[3], shares.shape[5]))
    return torch.einsum("bhiqst,bhisjt->bhiqjt", weights, shares.to(weights.dtype))


def sortcut_map(weights: Tensor, shares: Tensor) -> Tensor:
    """Weights on the slots of the kept blocks `(B, H, N, b, n * S * b)` to weights on tokens, `(B, H, N, b, N, b)`."""
    weights = weights.unflatten(-1, (shares.shape[2], -1))
    weights = weights.unflatten(-1, (shares.shape[3], shares.shape[5]))
    return torch.einsum("bhiqnst,bhnsjt->bhiqjt", weights, shares)


def local_map(weights: Tensor, offsets: range, num_sink_blocks: int, layout: BlockLayout) -> Tensor:
    """
    Weights on slots of sinks and local blocks, `(B, H, M, Q, K_local)`, to weights on tokens of the grid,
    `(B, H, M, Q, N, b)`.
    """
    if layout.cached is None:
        num_blocks, block = layout.grid.num_blocks, torch.arange(layout.grid.num_blocks, device=weights.device)
        touched = block.unsqueeze(0)
    else:
        num_blocks = layout.cached.num_blocks
        block = torch.arange(num_blocks, device=weights.device)
        touched = layout.cached.first_block.unsqueeze(-1) + block[: weights.shape[2]]
    source = touched.unsqueeze(-1) + torch.tensor(list(offsets), device=weights.device)
    if num_sink_blocks > 0:
        sinks = layout.sink_index
        if sinks is None:
            sinks = torch.arange(num_sink_blocks, device=weights.device).expand(*touched.shape, -1)
        source = torch.cat((sinks, source.expand(*sinks.shape[:2], -1)), dim=-1)
    is_source = source.unsqueeze(-1) == block  # (B or 1, M, sinks and offsets, N)
    weights = weights.unflatten(-1, (source.shape[-1], -1))
    is_source = is_source.expand(weights.shape[0], -1, -1, -1).to(weights.dtype)
    return torch.einsum("bhiqot,bioj->bhiqjt", weights, is_source)


def attend_by_map(attention_map: Tensor, value: Tensor, grid: BlockGrid, repeats: int) -> Tensor:
    """
    The output that a map stands for, computed from it, so that it is part of the graph of whatever follows: the
    gradient of a loss with respect to a map is what attribution methods ask for.

    Args:
        attention_map: `(B, H, L, keys)`.
        value: `(B, N, b, G, D)`, those of the keys, each of `repeats` query heads.
        grid: of the keys.

    Returns:
        `(B, L, H, D)`, 0 at padding.
    """
    value = from_blocks(value.flatten(3), grid).unflatten(-1, value.shape[3:]).transpose(1, 2)
    value = value.repeat_interleave(repeats, dim=1).to(attention_map.dtype)
    return (attention_map @ value).transpose(1, 2)


def map_of_tokens(grid_map: Tensor, layout: BlockLayout) -> Tensor:
    """A map between slots, `(B, H, M, Q, N, b)`, to one between tokens, `(B, H, L, keys)`, 0 at padding."""
    tokens = tokens_of_slots(grid_map.flatten(4, 5).flatten(2, 3), layout.grid, dim=2)
    return tokens_of_slots(tokens, layout.key_grid or layout.grid, dim=3)


def tokens_of_slots(grid_map: Tensor, grid: BlockGrid, dim: int) -> Tensor:
    """Slots to tokens in dimension `dim` of `(B, H, rows, columns)`, 0 at padding."""
    if grid.slot_of_token is None:
        return grid_map.narrow(dim, 0, grid.num_tokens)
    shape = [grid.slot_of_token.shape[0], 1, 1, 1]
    shape[dim] = grid.num_tokens
    sizes = list(grid_map.shape)
    sizes[dim] = grid.num_tokens
    tokens = grid_map.gather(dim, grid.slot_of_token.view(shape).expand(sizes))
    return tokens.masked_fill(~grid.is_real.view(shape), 0)
