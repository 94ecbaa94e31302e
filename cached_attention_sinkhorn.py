# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Attention on blocks for new tokens that continue a cache (design section 3). A step of one token reads the open block,
its local blocks and what the cache holds of the sorted ones; the sort matrix gets a row only where a block opens.

Shape letters as in `layout_sinkhorn.py`, and `E` hidden size. Where a function takes `attention`, it is the layer's
`SinkhornAttention`.
"""

import torch
from torch import Tensor, nn


try:  # a folder on the Hub, or any package
    from .balancing_sinkhorn import causal_floor
    from .base_attention_sinkhorn import ProjectedBlocks
    from .cache_sinkhorn import SinkhornDynamicLayer, SinkhornStaticLayer
    from .cache_states_sinkhorn import OpenBlock
    from .layout_sinkhorn import BlockLayout
    from .rotary_sinkhorn import apply_rotary
    from .shares_sinkhorn import piece_means, prefix_means
    from .sorted_blocks_sinkhorn import SortedBlocks, gather_sorted_blocks, place_mixed_blocks
    from .sorting_sinkhorn import block_sums, causal_block_descriptors, gather_blocks, hard_assignment, soft_sort
except ImportError:  # flat modules, as installed
    from balancing_sinkhorn import causal_floor
    from base_attention_sinkhorn import ProjectedBlocks
    from cache_sinkhorn import SinkhornDynamicLayer, SinkhornStaticLayer
    from cache_states_sinkhorn import OpenBlock
    from layout_sinkhorn import BlockLayout
    from rotary_sinkhorn import apply_rotary
    from shares_sinkhorn import piece_means, prefix_means
    from sorted_blocks_sinkhorn import SortedBlocks, gather_sorted_blocks, place_mixed_blocks
    from sorting_sinkhorn import block_sums, causal_block_descriptors, gather_blocks, hard_assignment, soft_sort


CacheLayer = SinkhornDynamicLayer | SinkhornStaticLayer


def attend_from_cache(
    attention: nn.Module, projected: ProjectedBlocks, layout: BlockLayout, cache: CacheLayer, maps: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """
    Stores the new tokens in the cache, and attends.

    Args:
        projected: not rotated.

    Returns:
        The output `(B, M, Q, H, D)`; with `maps` the map between slots `(B, H, M, Q, N, b)`; and the rows of the sort
        matrix `(B, G, M, N)`, or `None` in a layer that does not sort.
    """
    cached, mixes_keys = layout.cached, attention.mixes_keys
    rotated = projected.rotated(layout.tables)
    query = rotated.query
    cache.make_room(cached, attention.config.block_size, like=projected.key)
    reopened = cache.apply_crop(cached)
    stored = projected if mixes_keys else rotated
    cache.append(stored.key, stored.value, cached, rotated=not mixes_keys)
    sort_matrix, sorted_blocks = None, None
    if attention.sorts:
        if reopened:
            _reopen(attention, layout, cache)
        if attention.sort_net.compares_keys:
            sort_matrix = _new_rows_of_keys(attention, query, layout, cache)
        else:
            sort_matrix = _new_rows(attention, cache.append_inputs(projected.inputs, cached), layout, cache)
        sort_matrix, sorted_blocks = _sort(attention, sort_matrix, layout, cache, maps)
        # No token ever stands in the last block.
        sort_matrix = sort_matrix[:, :, : cached.num_blocks - 1, : cached.num_blocks - 1]
    local = local_keys_and_values(layout, cache)
    everything = all_keys_and_values(layout, cache) if attention.layer_type == "mixture_attention" else None
    output, attention_map = attention.attend_to_parts(query, sorted_blocks, local, everything, layout, maps)
    return output, attention_map, sort_matrix


# Rows of the sort matrix ---------------------------------------------------------------------------------------------


def _new_rows(attention: nn.Module, blocks: Tensor | None, layout: BlockLayout, cache: CacheLayer) -> Tensor | None:
    """
    The rows of the sort matrix of the blocks that new tokens touch.

    Args:
        blocks: `(B, M, b, E)`, those blocks, with their earlier tokens; `None` where none opens or is filled up.

    Returns:
        `(B, G, M, N)` in float32; `None` where no block opens, so that the cache's open block is all there is.
    """
    if blocks is None:
        return None
    cached, sort_net, pooling = layout.cached, attention.sort_net, attention.config.sort_pooling
    sums, b = block_sums(blocks), attention.config.block_size
    descriptors, after = causal_block_descriptors(
        blocks[:, :, 0], sums, b, pooling, cached.first_block, cache.total_before(cached)
    )
    rows, columns = sort_net.features(descriptors, sums / b, blocks.dtype)
    # A block that is not full yet is no source; its entries are written again when it is.
    cache.put_blocks("totals", after, cached)
    columns = None if columns is None else cache.put_blocks("column_features", columns, cached)
    if not cached.opens:
        return None
    cache.put_blocks("row_features", rows, cached, written=cached.opened)
    logits = sort_net.compare(rows, columns, cached.num_blocks)
    return _balance(sort_net, logits, layout.balanced, cached.num_blocks, cache)


def keep_pieces(sort_net: nn.Module, layout: BlockLayout, cache: CacheLayer) -> Tensor:
    """
    Keeps what queries are compared with, of the blocks that new tokens touch. Stored keys tell, so that nothing has to
    be undone after a `crop`.

    Returns:
        `(B, G, M * Q, C)`: at each new token the mean of its piece up to itself.
    """
    cached, b = layout.cached, cache.block_size
    number = torch.arange(layout.local_mask.shape[1], device=cached.first_block.device)
    touched = cached.first_block.unsqueeze(-1) + number  # (B, M)
    key = cache.key_value_blocks()[0]
    index = touched.unsqueeze(1).expand(-1, key.shape[1], -1)
    (keys,) = gather_blocks(index.unsqueeze(-1), key)
    keys = sort_net.compared_keys(keys.squeeze(3))  # (B, G, M, b, C)
    slots = touched.unsqueeze(-1) * b + torch.arange(b, device=touched.device)
    means = piece_means(keys, slots < cached.counts[:, None, None], sort_net.piece_size)
    cache.put_blocks("piece_keys", means.flatten(3), cached)
    own = prefix_means(keys, sort_net.piece_size)
    if cached.filled.shape[2] == b:
        return own.flatten(2, 3)
    offset = cached.offset.view(-1, 1, 1, 1, 1).expand(-1, *own.shape[1:3], 1, own.shape[-1])
    return own.gather(3, offset).flatten(2, 3)


def _new_rows_of_keys(attention: nn.Module, query: Tensor, layout: BlockLayout, cache: CacheLayer) -> Tensor | None:
    """As `_new_rows`, where each block's first query is compared with keys. `query` `(B, M, Q, H, D)` rotated."""
    cached, sort_net = layout.cached, attention.sort_net
    own_key = keep_pieces(sort_net, layout, cache)
    if not cached.opens:
        return None
    queries, per_block = sort_net.compared_queries(query), query.shape[2]
    rows = torch.cat((queries.flatten(1, 2), own_key), dim=1)[:, :, ::per_block]  # (B, r * G + G, M, C)
    cache.put_blocks("row_features", rows.transpose(1, 2).flatten(2), cached, written=cached.opened)
    logits = _compare_first_queries(sort_net, rows, cached.slots[:, ::per_block], layout, cache)
    return _balance(sort_net, logits, layout.balanced, cached.num_blocks, cache)


def _compare_first_queries(
    sort_net: nn.Module, rows: Tensor, slot: Tensor, layout: BlockLayout, cache: CacheLayer
) -> Tensor:
    """`(B, r * G + G, M, C)` first queries of blocks, and their keys, to sorting logits `(B, G, M, N)`."""
    groups = rows.shape[1] // (sort_net.queries_per_group + 1)
    query, own_key = rows[:, :-groups].unflatten(1, (groups, -1)), rows[:, -groups:]
    scores = sort_net.key_scores(query, cache.pieces(layout.cached, sort_net.piece_size), own_key, slot)
    return scores.logits(slice(0, rows.shape[2]), layout.cached.num_blocks)


def _balance(
    sort_net: nn.Module,
    logits: Tensor,
    balanced: Tensor,
    num_blocks: int,
    cache: CacheLayer,
) -> Tensor:
    """Rows of the sort matrix that continue the balancing of those before them."""
    matrix, sums = sort_net.balance_causally(logits, balanced, cache.column_sums(num_blocks))
    cache.keep("columns", sums)
    return matrix


def _reopen(attention: nn.Module, layout: BlockLayout, cache: CacheLayer) -> None:
    """After a `crop` past the open block: balances the rows that are left again, and sorts for the block now open."""
    b, cached = attention.config.block_size, layout.cached
    num_blocks = cached.num_blocks
    num_left = (cached.past_counts + b - 1) // b
    number = torch.arange(num_blocks, device=num_left.device)
    balanced = (number < number.unsqueeze(-1)) & (number.unsqueeze(-1) < num_left[:, None, None])
    rows = cache.row_features[:, :num_blocks]
    if attention.sort_net.compares_keys:
        width = cache.pieces(cached, attention.sort_net.piece_size).shape[-1]
        slot = (number * b).expand(rows.shape[0], -1)
        rows = rows.unflatten(-1, (-1, width)).transpose(1, 2)
        logits = _compare_first_queries(attention.sort_net, rows, slot, layout, cache)
    else:
        columns = None if cache.column_features is None else cache.column_features[:, :num_blocks]
        logits = attention.sort_net.compare(rows, columns, num_blocks)
    cache.keep("columns", torch.full_like(cache.column_sums(num_blocks), causal_floor(torch.float32)))
    matrix = _balance(attention.sort_net, logits, balanced.unsqueeze(1), num_blocks, cache)

    block = (cached.past_counts - 1).clamp(min=0) // b  # (B,) the last one with a token
    row = matrix[torch.arange(block.shape[0], device=block.device), :, block].unsqueeze(2)
    key, value = cache.key_value_blocks()
    if attention.mixes_keys:
        mixed = tuple(soft_sort(row, x[:, :, :num_blocks], None) for x in (key, value))
        mask = (block > 0).view(-1, 1, 1).expand(-1, 1, b)
        blocks = place_mixed_blocks(row, mixed, None, mask, cached.reopened_tables)
    else:
        far = number <= (block - attention.config.num_local_blocks).unsqueeze(-1)
        far = far & (number >= attention.config.num_sink_blocks)
        blocks = gather_sorted_blocks(row, far[:, None, None], key, value, None, attention.config.num_sorted_blocks)
    cache.keep_open_block(OpenBlock(*blocks[:3]), row.squeeze(2))


# Sorted blocks -------------------------------------------------------------------------------------------------------


def _sort(
    attention: nn.Module, sort_matrix: Tensor | None, layout: BlockLayout, cache: CacheLayer, maps: bool
) -> tuple[Tensor, SortedBlocks]:
    """
    Sorts for the blocks that new tokens touch. Next to a block that was open before stands what the cache kept.

    Returns:
        The rows of the sort matrix `(B, G, M, N)`, and `M` sorted blocks.
    """
    cached, config = layout.cached, attention.config
    kept_row = cache.open_row_of(cached.num_blocks)
    if sort_matrix is None:
        choice = None
        if maps and not attention.mixes_keys:
            choice = hard_assignment(kept_row, layout.candidates, config.num_sorted_blocks)
        return kept_row, SortedBlocks(*cache.open_block, kept_row, choice)
    # In a step of equally long rows that opens a block, it opens in all of them.
    if cached.equal_past is not None and cached.opens:
        kept_row = None
    was_open = ~cached.opened[:, 0]
    if kept_row is not None:
        sort_matrix = _replace_first(sort_matrix, kept_row, was_open, dim=2)
    key, value = cache.key_value_blocks()
    if attention.mixes_keys:
        mixed = tuple(soft_sort(sort_matrix, x[:, :, : sort_matrix.shape[-1]], None) for x in (key, value))
        blocks = place_mixed_blocks(sort_matrix, mixed, None, layout.sorted_mask, layout.sorted_tables)
    else:
        num_sorted = config.num_sorted_blocks
        blocks = gather_sorted_blocks(sort_matrix, layout.candidates, key, value, None, num_sorted)
    if kept_row is not None:
        # Sorting again would give the same, except for positions that only the pass knew that opened the block.
        parts = zip(blocks[:3], cache.open_block)
        blocks = SortedBlocks(*(_replace_first(new, kept, was_open, dim=1) for new, kept in parts), *blocks[3:])
    if cached.is_one_token:
        cache.keep_open_block(OpenBlock(*blocks[:3]), sort_matrix[:, :, 0])
        return sort_matrix, blocks
    row = torch.arange(was_open.shape[0], device=was_open.device)
    last = (part[row, cached.last_block].unsqueeze(1) for part in blocks[:3])
    cache.keep_open_block(OpenBlock(*last), sort_matrix[row, :, cached.last_block])
    return sort_matrix, blocks


def _replace_first(new: Tensor, kept: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """`new` with its first entry along `dim` replaced by `kept` in the rows of the batch that are `chosen` `(B,)`."""
    chosen, first = chosen.view(-1, *[1] * (new.dim() - 1)), new.narrow(dim, 0, 1)
    if new.dtype == torch.bool:  # ONNX Runtime has no `where` of masks
        first = (chosen & kept) | (~chosen & first)
    else:
        first = torch.where(chosen, kept, first)
    return torch.cat((first, new.narrow(dim, 1, new.shape[dim] - 1)), dim)


# Keys and values in the cache ----------------------------------------------------------------------------------------


def local_keys_and_values(layout: BlockLayout, cache: CacheLayer) -> tuple[Tensor, Tensor]:
    """Of the sinks and local blocks of the blocks that new tokens touch, `(B, M, G, K_local, D)`, keys rotated."""
    key, value = cache.key_value_blocks()
    index = layout.cached.local_index.unsqueeze(1).expand(-1, key.shape[1], -1, -1)
    key, value = (x.flatten(3, 4).transpose(1, 2) for x in gather_blocks(index, key, value))
    if not cache.has_rotated_keys:
        key = apply_rotary(key, *layout.cached.local_tables)
    return key, value


def all_keys_and_values(layout: BlockLayout, cache: CacheLayer) -> tuple[Tensor, Tensor]:
    """Of all blocks, `(B, N, b, G, D)`, keys rotated."""
    num_blocks = layout.cached.num_blocks
    key, value = (x[:, :, :num_blocks].permute(0, 2, 3, 1, 4) for x in cache.key_value_blocks())
    if not cache.has_rotated_keys:
        key = apply_rotary(key, *layout.cached.all_tables)
    return key, value
