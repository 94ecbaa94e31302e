# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Routing by token: which blocks each token reads beside its local ones (design section 9). Scores of some tokens at a
time are balanced, and kept only as the choice.

Shape letters as in `shares_sinkhorn.py`; `M` blocks of queries, `Q` their slots, `n = M * Q` queries, `S` chosen blocks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import maybe_autocast


try:  # a folder on the Hub, or any package
    from .layout_sinkhorn import CacheLayout
    from .plan_sinkhorn import balance_plan, even_shares
    from .sorting_sinkhorn import HardSort, hard_assignment
    from .token_scores_sinkhorn import MAX_OF_PLAN, Scores, slices
except ImportError:  # flat modules, as installed
    from layout_sinkhorn import CacheLayout
    from plan_sinkhorn import balance_plan, even_shares
    from sorting_sinkhorn import HardSort, hard_assignment
    from token_scores_sinkhorn import MAX_OF_PLAN, Scores, slices


class Routing(NamedTuple):
    """Where queries may go."""

    candidates: Tensor  # (B or 1, 1, M, N) bool
    filled: Tensor | None  # (B or 1, M, Q) bool, slots that hold a query; None for all
    slot: Tensor  # (B or 1, n)
    block_size: int
    causal: bool
    shares_before: Tensor | None  # (B or 1, 1, M, N) `even_shares_before`; read by a causal balancing alone
    from_start: bool  # whether block M of the queries is block M of the keys, so that no later one is a candidate


def even_shares_before(candidates: Tensor, filled: Tensor | None, block_size: int) -> Tensor:
    """`(B or 1, 1, M, N)`: the sum of `even_shares` over the tokens of all blocks before each, of whole rows."""
    shares = _even_shares_of_blocks(candidates, filled, block_size, _most_precise(candidates.device))
    return shares.cumsum(-2) - shares


def even_shares_of_cache(config: Any, cached: CacheLayout) -> Tensor:
    """The same for the blocks that new tokens touch, `(B, 1, M, N)`: all blocks before them are full."""
    block = torch.arange(cached.num_blocks, device=cached.first_block.device)
    num_candidates = block - config.num_local_blocks + 1 - config.num_sink_blocks
    shares = (config.block_size / num_candidates.clamp(min=1).to(_most_precise(block.device))) * (num_candidates > 0)
    before = shares.cumsum(0) - shares
    # A block is a candidate of those that come `num_local_blocks` after it, or later.
    first = before[(block + config.num_local_blocks).clamp(max=cached.num_blocks - 1)]
    touched = cached.first_block.unsqueeze(-1) + block[: cached.filled.shape[1]]
    return (before[touched].unsqueeze(-1) - first).clamp(min=0).unsqueeze(1)


def _most_precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _even_shares_of_blocks(candidates: Tensor, filled: Tensor | None, block_size: int, dtype: torch.dtype) -> Tensor:
    count = block_size if filled is None else filled.sum(-1).to(dtype)[:, None, :, None]
    return even_shares(candidates, dtype) * count


def route(
    scores: Scores,
    routing: Routing,
    perturb: Callable[[Tensor], Tensor],
    iterations: int,
    capacity: float,
    num_sorted_blocks: int,
    keeps_plan: bool,
    columns: Tensor | None = None,
    keep_sums: Callable[[slice, Tensor], None] | None = None,
) -> tuple[HardSort, Tensor | None]:
    """
    Args:
        perturb: logits to the same with noise, divided by the temperature.
        columns: `(B, G, T, N)` column sums that earlier tokens left.
        keep_sums: called with the queries of each part and their column sums `(B, G, n, T, N)`.

    Returns:
        The choice, `(B, G, n, S)`, and with `keeps_plan` the plan `(B, G, n, N)`.
    """
    num_destinations, num_blocks = routing.candidates.shape[-2:]
    device = routing.slot.device
    per_block = routing.slot.shape[1] // num_destinations
    causal = routing.causal
    in_parts = not torch.compiler.is_compiling()  # a graph is for any length: it has one part, and guards no size
    grows = routing.from_start and causal and in_parts  # later queries see more blocks
    tracks = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in scores)

    def logits_of(queries: slice) -> Tensor:
        limit = -(-queries.stop // per_block) if grows else num_blocks
        with maybe_autocast(device_type=device.type, enabled=False):
            return perturb(scores.logits(queries, limit, per_block if grows else None))

    def choose(
        logits: Tensor, blocks: slice, columns: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, list[Tensor]]:
        limit = logits.shape[-1]
        with maybe_autocast(device_type=device.type, enabled=False):
            candidates = _of_queries(routing, blocks, per_block)[..., :limit]
            before = None if columns is None else columns[..., :limit]
            bound = _bound(routing, blocks, per_block, logits.dtype)[..., :limit] * capacity if iterations else None
            plan, sums = balance_plan(logits, candidates, bound, iterations, causal, before)
        choice = hard_assignment(plan, candidates, num_sorted_blocks)
        if keep_sums is None:  # only the last ones are needed, by the next part
            sums = [x[:, :, -1:] for x in sums]
        return *choice, _fit(plan, num_blocks) if keeps_plan else None, [_fit(x, num_blocks) for x in sums]

    # Balancing in both directions needs the whole plan. Otherwise it is made in parts, each of which is large enough
    # for the many small steps of a choice.
    whole = iterations > 0 and not causal
    parts = []
    for blocks in slices(slice(0, num_destinations), 0 if whole else scores.of_plan * per_block, MAX_OF_PLAN, device):
        queries = slice(blocks.start * per_block, blocks.stop * per_block)
        logits = logits_of(queries)
        if tracks and in_parts:  # computed again for the backward pass, which needs no plan then
            *made, sums = checkpoint(choose, logits, blocks, columns, use_reentrant=False)
        else:
            *made, sums = choose(logits, blocks, columns)
        if sums and causal:
            columns = torch.stack([x[:, :, -1] for x in sums], dim=2)
        if keep_sums is not None:
            keep_sums(queries, torch.stack(sums, dim=3))
        parts.append(made)
    if len(parts) == 1:
        index, chosen, weight, plan = parts[0]
    else:
        index, chosen, weight = (torch.cat(x, dim=2) for x in list(zip(*parts))[:3])
        plan = torch.cat([x[3] for x in parts], dim=2) if keeps_plan else None
    return HardSort(index, chosen, weight), plan


def _of_queries(routing: Routing, blocks: slice, per_block: int) -> Tensor:
    """`(B or 1, 1, n, N)`: the candidates of each query of these blocks; none of an empty slot."""
    candidates = routing.candidates[:, :, blocks].repeat_interleave(per_block, dim=2)
    if routing.filled is None:
        return candidates
    return candidates & routing.filled[:, blocks].flatten(1)[:, None, :, None]


def _bound(routing: Routing, blocks: slice, per_block: int, dtype: torch.dtype) -> Tensor:
    """The even share of each column: of causal queries up to each, `(B or 1, 1, n, N)`; else of all, 1 in place of n."""
    if not routing.causal:
        shares = _even_shares_of_blocks(routing.candidates, routing.filled, routing.block_size, dtype)
        return shares.sum(-2, keepdim=True)
    before = routing.shares_before[:, :, blocks].to(dtype).repeat_interleave(per_block, dim=2)
    shares = even_shares(routing.candidates[:, :, blocks], dtype).repeat_interleave(per_block, dim=2)
    slot = routing.slot[:, blocks.start * per_block : blocks.stop * per_block]
    return before + shares * (slot % routing.block_size + 1).to(dtype)[:, None, :, None]


def _fit(x: Tensor, num_blocks: int) -> Tensor:
    missing = num_blocks - x.shape[-1]
    return x if missing == 0 else torch.nn.functional.pad(x, (0, missing))
