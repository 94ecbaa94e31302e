# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The layout of new tokens of a decoder that continue a cache, or begin one.

Shape letters as in `layout_sinkhorn.py`.
"""

from typing import Any

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .layout_sinkhorn import (
        BlockLayout,
        CacheLayout,
        LayoutInputs,
        Rotary,
        has_mixture,
        not_always_read,
        rotary_tables,
        sorts,
    )
    from .rotary_sinkhorn import RotaryTables
    from .sorting_sinkhorn import BlockGrid, block_grid, continued_grid, local_offsets, to_blocks
except ImportError:  # flat modules, as installed
    from layout_sinkhorn import (
        BlockLayout,
        CacheLayout,
        LayoutInputs,
        Rotary,
        has_mixture,
        not_always_read,
        rotary_tables,
        sorts,
    )
    from rotary_sinkhorn import RotaryTables
    from sorting_sinkhorn import BlockGrid, block_grid, continued_grid, local_offsets, to_blocks


def cached_block_layout(
    config: Any,
    inputs: LayoutInputs,
    rotary: Rotary,
    cache_layers: list[Any],
    max_length: int | None,
    may_read_values: bool,
) -> BlockLayout:
    """For new tokens of a decoder that continue a cache, or begin one."""
    arguments = config, inputs, rotary, cache_layers, max_length
    is_step = may_read_values and inputs.shape[1] == 1 and inputs.attention_mask is None and inputs.past_length > 0
    if is_step and not has_mixture(config):
        return step_layout(*arguments)
    return layout_of_any_tokens(*arguments, may_read_values)


def layout_of_any_tokens(
    config: Any,
    inputs: LayoutInputs,
    rotary: Rotary,
    cache_layers: list[Any],
    max_length: int | None,
    may_read_values: bool,
) -> BlockLayout:
    """`cached_block_layout` of any number of tokens, with any padding."""
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
    sorts_softly = sorts(config) and config.sort_assignment == "soft"
    tables, sorted_tables = rotary_tables(config, rotary, positions, sorts_softly and opens)
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
    if has_mixture(config):
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
        equal_past=past_length if is_one_token and may_read_values else None,
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
        candidates=not_always_read(config, touched, source, allowed.unsqueeze(1), source),
        sorted_mask=(exists & (touched > 0)).unsqueeze(-1).expand(-1, -1, b),
        local_mask=(seen >= 0) & (seen <= slots.unsqueeze(-1)),
        sink_index=None,
        earlier_slots=earlier,
        cached=cached,
    )


def step_layout(
    config: Any, inputs: LayoutInputs, rotary: Rotary, cache_layers: list[Any], max_length: int | None
) -> BlockLayout:
    """
    What `layout_of_any_tokens` gives for one token in each of equally long rows that continue a cache, as nearly always
    in decoding: from numbers, not from tensors, in fewer operations. Not for a mixture.
    """
    b, past, (batch, _), device = config.block_size, inputs.past_length, inputs.shape, inputs.device
    block, place = divmod(past, b)
    num_blocks = -(-(past + 1 if max_length is None else max_length) // b) + 1
    slots = torch.full((batch, 1), past, device=device)
    positions = slots if inputs.position_ids is None else inputs.position_ids.expand(batch, -1)
    opens, sorts_softly = place == 0, sorts(config) and config.sort_assignment == "soft"
    tables, sorted_tables = rotary_tables(config, rotary, positions.unsqueeze(-1), sorts_softly and opens)
    number_of_block = slots[:, 0] // b
    no_block = torch.zeros_like(number_of_block)
    # What is always read: sinks that are not local too, then local blocks, up to the token.
    sinks, offsets = range(config.num_sink_blocks), local_offsets(config.num_local_blocks, True)
    read = [sink if sink <= block - config.num_local_blocks else -1 for sink in sinks]
    read += [block + offset for offset in offsets]
    local_mask = torch.tensor([number >= 0 for number in read], device=device).repeat_interleave(b)
    local_mask[(len(read) - 1) * b + place + 1 :] = False
    source = torch.arange(num_blocks, device=device).expand(batch, 1, 1, -1)
    allowed, candidates = source < block, None
    if config.sort_assignment == "hard":
        candidates = (source >= config.num_sink_blocks) & (source <= block - config.num_local_blocks)
    cached = CacheLayout(
        num_tokens=1,
        past_counts=inputs.past_counts,
        counts=slots[:, 0] + 1,
        num_blocks=num_blocks,
        slots=slots,
        filled=torch.ones(batch, 1, 1, dtype=torch.bool, device=device),
        positions=positions,
        first_block=number_of_block,
        offset=slots[:, 0] % b,
        opened=torch.full((batch, 1), opens, device=device),
        last_block=no_block,
        latest_block=number_of_block,
        is_one_token=True,
        equal_past=past,
        opens=opens,
        closes=place == b - 1,
        from_start=False,
        local_index=torch.tensor(read, device=device).clamp_(min=0).expand(batch, 1, -1),
        local_tables=None,
        all_tables=None,
        reopened_tables=None,
        shared={},
    )
    if sorts_softly:
        cached = _with_tables_of_cache(cached, config, rotary, cache_layers, slots)
    return BlockLayout(
        grid=BlockGrid(1, 1, 1),
        tables=tables,
        sorted_tables=sorted_tables,
        balanced=allowed if opens else torch.zeros_like(allowed),
        allowed=allowed,
        candidates=candidates,
        sorted_mask=torch.full((batch, 1, b), block > 0, device=device),
        local_mask=local_mask.expand(batch, 1, 1, -1),
        sink_index=None,
        earlier_slots=None,
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
    if has_mixture(config):
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
