# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A step of one token inside a block, as nearly all are in decoding: the same numbers as `cached_attention_sinkhorn.py`,
in fewer operations. What is sorted next to the open block is kept already, and all rows are equally long, so that what
they read besides are slices of the cache.

Shape letters as in `layout_sinkhorn.py`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


try:  # a folder on the Hub, or any package
    from .base_attention_sinkhorn import ProjectedBlocks
    from .cache_states_sinkhorn import may_change_in_place
    from .cached_attention_sinkhorn import CacheLayer
    from .layout_sinkhorn import BlockLayout, CacheLayout
    from .rotary_sinkhorn import apply_rotary
except ImportError:  # flat modules, as installed
    from base_attention_sinkhorn import ProjectedBlocks
    from cache_states_sinkhorn import may_change_in_place
    from cached_attention_sinkhorn import CacheLayer
    from layout_sinkhorn import BlockLayout, CacheLayout
    from rotary_sinkhorn import apply_rotary


def is_step_in_block(attention: nn.Module, cached: CacheLayout, cache: CacheLayer) -> bool:
    """Whether `attend_in_block` does what this pass asks for, if it is asked for no maps or sort matrices."""
    past = cached.equal_past
    if past is None or cached.opens or cached.closes or cache.cropped_tokens > 0 or cache.stored_keys is None:
        return False
    if attention.layer_type not in ("sinkhorn_attention", "local_attention"):
        return False
    if not may_change_in_place(cache.stored_keys):
        return False
    if not attention.sorts:
        return True
    # What is sorted beside the block is then whole blocks, with nothing to mask.
    num_earlier = past // cache.block_size
    if attention.mixes_keys:
        all_are_there = num_earlier > 0
    else:
        others = num_earlier - attention.config.num_local_blocks + 1 - attention.config.num_sink_blocks
        all_are_there = others >= attention.config.num_sorted_blocks
    return all_are_there and not attention.sort_net.compares_keys


def attend_in_block(
    attention: nn.Module, projected: ProjectedBlocks, layout: BlockLayout, cache: CacheLayer
) -> Tensor:
    """
    Stores the token in the cache, and attends.

    Args:
        projected: of one token a row, not rotated.

    Returns:
        `(B, 1, 1, H, D)`.
    """
    cached = layout.cached
    rotated = projected.rotated(layout.tables)
    key = projected.key if attention.mixes_keys else rotated.key
    inputs = projected.inputs.flatten(0, 2) if attention.sorts else None
    cache.append_one(key.flatten(0, 2), projected.value.flatten(0, 2), cached, inputs)
    keys, values = [], []
    if attention.sorts:
        keys.append(cache.sorted_key.squeeze(1))
        values.append(cache.sorted_value.squeeze(1))
    for slots, table_slots in _always_read(attention, cached, cache.block_size):
        key, value = (x.narrow(2, slots.start, len(slots)) for x in (cache.stored_keys, cache.stored_values))
        if attention.mixes_keys:
            tables = (x.squeeze(1).narrow(2, table_slots, len(slots)) for x in cached.local_tables)
            key = apply_rotary(key, *tables)
        keys.append(key)
        values.append(value)
    key, value = (x[0] if len(x) == 1 else torch.cat(x, dim=2) for x in (keys, values))
    output, _ = attention.attend(rotated.query.squeeze(1), key, value, None, maps=False)
    return output.unsqueeze(1)


def _always_read(attention: nn.Module, cached: CacheLayout, block_size: int) -> Iterator[tuple[range, int]]:
    """The slots of sinks, and those of local blocks up to the token, with where they begin in `local_tables`."""
    num_sinks, num_local = attention.config.num_sink_blocks, attention.config.num_local_blocks
    block = cached.equal_past // block_size
    first_local = max(block - num_local + 1, 0)
    sinks = min(num_sinks, first_local) * block_size
    if sinks > 0:
        yield range(sinks), 0
    num_missing = num_local - 1 - (block - first_local)
    yield range(first_local * block_size, cached.equal_past + 1), (num_sinks + num_missing) * block_size
