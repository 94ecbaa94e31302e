# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Routing by token for a pass of one token, as in decoding: the same numbers as `token_attention_sinkhorn.py`, in a quarter of
the operations. A step is so little arithmetic that calling them is what takes the time.

Shape letters as in `routing_sinkhorn.py`; `P` pieces of the cache, `K` blocks that the token reads.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


try:  # a folder on the Hub, or any package
    from .cache_states_sinkhorn import may_change_in_place
    from .cached_attention_sinkhorn import CacheLayer
    from .layout_sinkhorn import BlockLayout, CacheLayout
    from .shares_sinkhorn import SMALLEST_SHARE
    from .sorting_sinkhorn import best_candidates, gather_blocks
except ImportError:  # flat modules, as installed
    from cache_states_sinkhorn import may_change_in_place
    from cached_attention_sinkhorn import CacheLayer
    from layout_sinkhorn import BlockLayout, CacheLayout
    from shares_sinkhorn import SMALLEST_SHARE
    from sorting_sinkhorn import best_candidates, gather_blocks


def is_one_token(attention: nn.Module, query: Tensor, cache: CacheLayer, maps: bool, keeps_matrix: bool) -> bool:
    """Whether `attend_one_token` does what this pass asks for, `query` `(B, M, Q, H, D)`."""
    config = attention.config
    return (
        query.shape[1] * query.shape[2] == 1
        and attention.layer_type == "sinkhorn_attention"
        and attention.sort_net.compares_keys
        and config.sinkhorn_iterations == 0
        and not (maps or keeps_matrix or attention.training)
        and cache.piece_keys is not None
        and may_change_in_place(cache.piece_keys)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


def attend_one_token(attention: nn.Module, query: Tensor, layout: BlockLayout, cache: CacheLayer) -> Tensor:
    """
    Args:
        query: `(B, 1, 1, H, D)` rotated. Key and value of the token are in the cache.

    Returns:
        `(B, 1, 1, H, D)`.
    """
    config, cached, groups = attention.config, layout.cached, cache.stored_keys.shape[1]
    slot = cached.slots[:, None, None]  # (B, 1, 1, 1)
    query = query.view(len(query), groups, -1, query.shape[-1])  # (B, G, r, D)
    shares = _shares(attention.sort_net, query, slot, cached, cache)
    plan = shares.clamp_min(SMALLEST_SHARE) ** (
        1 / config.sinkhorn_temperature
    )  # not normalized: order is all it is for
    scores = plan.masked_fill(~layout.candidates[:, 0], -1.0)
    index, best = best_candidates(scores, config.num_sorted_blocks)
    always = cached.local_index.expand(-1, groups, -1)
    blocks = torch.cat((always, index), dim=-1).unsqueeze(2)  # (B, G, 1, K)
    key, value = (x.flatten(2, 4) for x in gather_blocks(blocks, *cache.key_value_blocks()))
    chosen = (best >= 0).repeat_interleave(cache.block_size, dim=-1).unsqueeze(2)
    mask = torch.cat((layout.local_mask.expand(-1, groups, -1, -1), chosen), dim=-1)
    key, value = key.to(query.dtype), value.to(query.dtype)
    output = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling)
    return output.reshape(len(output), 1, 1, -1, output.shape[-1])


# Equally long rows --------------------------------------------------------------------------------------------------


def attend_one_token_of_equal_rows(
    attention: nn.Module, query: Tensor, layout: BlockLayout, cache: CacheLayer
) -> Tensor:
    """
    The same where all rows have as many tokens, `layout.cached.equal_past` and one: what the token reads are slices of
    the cache and the blocks that it chooses, and nothing is masked.
    """
    config, b, end = attention.config, cache.block_size, layout.cached.equal_past + 1
    num_blocks = -(-end // b)
    first_local = max(num_blocks - config.num_local_blocks, 0)
    sinks = range(min(config.num_sink_blocks, first_local))
    query = query.view(len(query), cache.stored_keys.shape[1], -1, query.shape[-1])  # (B, G, r, D)
    pieces = _keep_last_piece(attention.sort_net, end, cache)
    stored = cache.stored_keys, cache.stored_values
    if first_local - len(sinks) <= config.num_sorted_blocks:
        key, value = (states.narrow(2, 0, end) for states in stored)
    else:
        shares = _shares_of_full_blocks(attention.sort_net, query, pieces, end, b)
        shares = shares.narrow(2, len(sinks), first_local - len(sinks))
        plan = shares.clamp_min_(SMALLEST_SHARE)
        if config.sinkhorn_temperature != 1:
            plan = plan ** (1 / config.sinkhorn_temperature)
        chosen, _ = best_candidates(plan, config.num_sorted_blocks)
        if "always" not in layout.cached.shared:
            always = [*sinks, *range(first_local, num_blocks)]
            layout.cached.shared["always"] = chosen.new_tensor(always).expand(*chosen.shape[:2], -1)
        # The block that the token stands in is the last one, so that what comes after the token is cut off.
        blocks = torch.cat((chosen + len(sinks), layout.cached.shared["always"]), dim=-1)
        length = blocks.shape[-1] * b - (num_blocks * b - end)
        key, value = (
            x.flatten(2, 4).narrow(2, 0, length) for x in gather_blocks(blocks.unsqueeze(2), *cache.key_value_blocks())
        )
    key, value = key.to(query.dtype), value.to(query.dtype)
    output = nn.functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    return output.reshape(len(output), 1, 1, -1, output.shape[-1])


def _compared(sort_net: nn.Module, query: Tensor) -> Tensor:
    """`(B, G, r, D)` to what is compared, `(B, G, r, C)`; `r` is 1 of merged heads."""
    if sort_net.config.merges_index_heads:
        return sort_net.of_query_heads(query.unsqueeze(2)).squeeze(3)
    return sort_net.of_heads(query)


def _keep_last_piece(sort_net: nn.Module, end: int, cache: CacheLayer) -> Tensor:
    """Keeps the mean of the last piece of `end` tokens; `(B, G, P, C)`, all pieces up to that."""
    size = sort_net.piece_size
    width = cache.piece_keys.shape[-1] * size // cache.block_size
    stored = cache.piece_keys.view(*cache.piece_keys.shape[:2], -1, width)
    last = (end - 1) // size
    key = sort_net.of_heads(cache.stored_keys.narrow(2, last * size, end - last * size))
    stored.select(2, last).copy_(key.squeeze(2) if size == 1 else key.mean(2))
    return stored.narrow(2, 0, last + 1)


def _shares_of_full_blocks(sort_net: nn.Module, query: Tensor, pieces: Tensor, end: int, block_size: int) -> Tensor:
    """`(B, G, N)`: of all that the last of `end` tokens sees, the share of each full block."""
    size, per_block = sort_net.piece_size, block_size // sort_net.piece_size
    query = _compared(sort_net, query) * sort_net.config.head_dim**-0.5
    scores = query @ pieces.mT
    in_last = (end - 1) % size + 1
    if in_last < size:  # it counts as many tokens as it has, like the others
        scores.select(-1, -1).add_(math.log(in_last / size))
    num_full = scores.shape[-1] // per_block
    weights = scores.softmax(-1).narrow(-1, 0, num_full * per_block)
    return weights.unflatten(-1, (num_full, per_block)).sum((2, -1)) / query.shape[2]


# Rows of any lengths ------------------------------------------------------------------------------------------------


class Pieces(NamedTuple):
    """Where the token stands among the pieces of keys. `s` is the piece size."""

    own: Tensor  # (B, 1, 1, 1) its piece
    slots: Tensor  # (B, 1, s, 1) those of its piece
    filled: Tensor | None  # (B, 1, s, 1) 1 / n in the n of them up to its own, 0 in others; None for pieces of one
    later: Tensor  # (B, 1, 1, P) pieces after its own
    counts: Tensor | None  # (B, 1, 1, P) logarithms (base 2) of their tokens up to its own; None for pieces of one


def _pieces(slot: Tensor, size: int, num_pieces: int) -> Pieces:
    """`slot` `(B, 1, 1, 1)`."""
    own, piece = slot // size, torch.arange(num_pieces, device=slot.device)
    slots = own * size + torch.arange(size, device=slot.device).view(1, 1, -1, 1)
    if size == 1:
        return Pieces(own, slots, None, piece > own, None)
    filled = slots <= slot
    counts = (slot + 1 - piece * size).clamp(1, size).log2()
    return Pieces(own, slots, filled / filled.sum(2, keepdim=True), piece > own, counts)


def _shares(sort_net: nn.Module, query: Tensor, slot: Tensor, cached: CacheLayout, cache: CacheLayer) -> Tensor:
    """Keeps the piece that the token stands in, up to itself; `(B, G, N)`, the share of each block."""
    size, b = sort_net.piece_size, cache.block_size
    if "pieces" not in cached.shared:
        cached.shared["pieces"] = _pieces(slot, size, cached.num_blocks * b // size)
    own = cached.shared["pieces"]
    stored = cache.piece_keys.view(*query.shape[:2], -1, cache.piece_keys.shape[-1] * size // b)  # (B, G, P, C)
    key = cache.stored_keys.gather(2, own.slots.expand(-1, query.shape[1], -1, query.shape[-1]))
    key = sort_net.of_heads(key)
    if own.filled is not None:
        key = (key * own.filled).sum(2, keepdim=True)
    stored.scatter_(2, own.own.expand(*key.shape), key.to(stored.dtype))
    query = _compared(sort_net, query) * (sort_net.config.head_dim**-0.5 / math.log(2))
    scores = query @ stored[:, :, : own.later.shape[-1]].mT
    if own.counts is not None:
        scores = scores + own.counts
    scores = scores.masked_fill_(own.later, torch.finfo(scores.dtype).min)
    weights = (scores * math.log(2)).softmax(-1)
    return weights.unflatten(-1, (cached.num_blocks, -1)).sum(-1).mean(2)
