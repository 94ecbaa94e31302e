# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The transport plan of routing by token: from tokens to blocks, balanced so that no block serves many more tokens than
others (design section 9.4), as pure functions.

Shape letters as in `sorting_sinkhorn.py`; `n` tokens, `T` iterations.
"""

import torch
from torch import Tensor


def balance_plan(
    logits: Tensor,
    candidates: Tensor,
    capacity: Tensor | None,
    iterations: int,
    causal: bool,
    columns: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """
    Rows sum to 1. `iterations` times, a column is scaled down to its capacity where it is above that, then rows are
    normalised again. (Partial transport, as the capacity balancing of `causal_sinkhorn_balance`.)

    Args:
        logits: `(B, G, n, N)` float32, noise and temperature already applied.
        candidates: bool, broadcastable to it. Rows without candidates are 0 and take no part.
        capacity: broadcastable to it, of each column: in a causal plan that at each row, for the rows so far. Read
            only where there are iterations.
        causal: whether a column's sum is, at each row, that of the rows so far.
        columns: `(B, G, T, N)`, sums that earlier rows left, in each iteration; `None` where there are none.

    Returns:
        The plan `(B, G, n, N)`, and for each iteration the column sums, `(B, G, n or 1, N)`.
    """
    plan = logits.masked_fill(~candidates, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~candidates, 0)
    all_sums = []
    for iteration in range(iterations):
        sums = plan.cumsum(-2) if causal else plan.sum(-2, keepdim=True)
        if columns is not None:
            sums = sums + columns[:, :, iteration, None]
        all_sums.append(sums)
        is_above = sums > capacity  # elsewhere nothing is divided, not even 0 by 0
        plan = plan * (torch.where(is_above, capacity, 1) / torch.where(is_above, sums, 1))
        totals = plan.sum(-1, keepdim=True)
        plan = plan / torch.where(totals > 0, totals, 1)
    return plan, all_sums


def even_shares(candidates: Tensor, dtype: torch.dtype) -> Tensor:
    """`(..., M, N)` candidates of rows to the share that each would have if all were equal."""
    candidates = candidates.to(dtype)
    return candidates / candidates.sum(-1, keepdim=True).clamp(min=1)
