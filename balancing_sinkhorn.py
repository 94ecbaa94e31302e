# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sinkhorn balancing (Tay et al., ICML 2020, arXiv:2002.11296, section 3.1) in both kinds, as pure functions: sorting
logits to a sort matrix whose rows sum to 1 and whose columns approach 1, and its causal form.

Each kind is written twice. With exponentials in double precision it is sums, products and divisions, and fast. That is
exact enough where the logits of a row lie within some hundreds of each other; it is checked and used on a CPU alone,
where reading the answer costs nothing. With logarithms it is exact for all logits. On a GPU
`triton_balancing_sinkhorn.py` is used where it is supported.

Shape letters: `B` rows of the batch, `G` key/value heads, `N` blocks, `T` iterations; `i` is a destination block, `j`
a source block.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


try:  # a folder on the Hub, or any package
    from .triton_balancing_sinkhorn import balance as balance_on_gpu
    from .triton_balancing_sinkhorn import balance_causally as balance_causally_on_gpu
    from .triton_sinkhorn import is_triton_supported
except ImportError:
    try:  # flat modules, as installed
        from triton_balancing_sinkhorn import balance as balance_on_gpu
        from triton_balancing_sinkhorn import balance_causally as balance_causally_on_gpu
        from triton_sinkhorn import is_triton_supported
    except ImportError:  # Triton comes with torch where torch is built for a GPU
        balance_on_gpu = balance_causally_on_gpu = None

        def is_triton_supported(x: Tensor) -> bool:
            return False


# Double precision holds exponentials of numbers between about -709 and 709.
LARGEST_EXPONENT = 600.0


# In both directions --------------------------------------------------------------------------------------------------


def sinkhorn_balance(logits: Tensor, allowed: Tensor | None, iterations: int) -> Tensor:
    """
    Bidirectional Sinkhorn balancing (the paper's section 3.1; design section 2.4): `iterations` times a row and a
    column normalisation, then one last row normalisation.

    Args:
        logits: `(B, G, N, N)` float32, noise and temperature already applied.
        allowed: bool, broadcastable to `logits`; `None` where every pair is allowed.

    Returns:
        `(B, G, N, N)`: rows sum to 1 (rows that allow nothing are 0) and columns approach 1.
    """
    masked = _mask_logits(logits, allowed)
    if is_triton_supported(logits) and logits.dtype == torch.float32:
        return balance_on_gpu(masked, iterations)
    # Without a mask the logarithm of any factor of a row or column stays within twice the logits' span plus log N; a
    # mask may let it grow by a span in each step.
    spans = 2 if allowed is None else 2 * iterations + 2
    if _fits_double_precision(logits, allowed, spans, spans):
        return _BalanceOfExponentials.apply(masked, iterations, allowed is not None)
    return _BalanceOfLogarithms.apply(masked, iterations, allowed is not None)


class _BalanceOfExponentials(torch.autograd.Function):
    """
    The matrix is `u_i exp(R_ij) v_j`. A row step renews `u` and a column step `v`, each by one product of a vector and
    the matrix of exponentials. So does each step of the backward pass, for which only those vectors are kept.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, iterations: int, masked: bool) -> Tensor:
        inverse = _inverse_or_one if masked else torch.reciprocal
        matrix = _exponentials(logits, masked)
        transposed = matrix.mT.contiguous()  # a row by a matrix is several times as fast as a matrix by a column
        rows, columns = [], [torch.ones_like(matrix[:, :1])]  # (B * G, 1, N) each
        for _ in range(iterations):
            rows.append(inverse(torch.bmm(columns[-1], transposed)))
            columns.append(inverse(torch.bmm(rows[-1], matrix)))
        rows.append(inverse(torch.bmm(columns[-1], transposed)))
        ctx.save_for_backward(logits, torch.cat(rows, dim=1), torch.cat(columns, dim=1))
        ctx.masked = masked
        return matrix.mul_(rows[-1].mT).mul_(columns[-1]).view_as(logits).to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        logits, all_rows, all_columns = ctx.saved_tensors
        rows, columns = all_rows.split(1, dim=1), all_columns.split(1, dim=1)
        matrix = _exponentials(logits, ctx.masked)
        transposed = matrix.mT.contiguous()
        grad_logits = (matrix * rows[-1].mT).mul_(columns[-1]).mul_(grad.flatten(0, 1))
        # The exponentials have a gradient from each step: an outer product, for a row step with one of `columns`, for
        # a column step with one of `rows`. The other vector follows from that of the step after it.
        by_columns, by_rows = [-rows[-1] * grad_logits.sum(-1).unsqueeze(1)], []
        vector = torch.bmm(by_columns[0], matrix).mul_(columns[-1]).add_(grad_logits.sum(-2, keepdim=True))
        for row, column, before in zip(rows[-2::-1], columns[:0:-1], columns[-2::-1]):
            by_rows.append(vector.mul_(column))
            by_columns.append(torch.bmm(by_rows[-1], transposed).mul_(row).mul_(row))
            vector = torch.bmm(by_columns[-1], matrix).mul_(before)
        grad_matrix = torch.bmm(torch.cat(by_columns[::-1], dim=1).mT, all_columns)
        if by_rows:
            grad_matrix.baddbmm_(all_rows[:, :-1].mT, torch.cat(by_rows[::-1], dim=1), alpha=-1)
        if ctx.masked:  # the product of two factors is bounded only where the pair is allowed
            grad_matrix.masked_fill_(matrix == 0, 0.0)
        return grad_logits.addcmul_(grad_matrix, matrix).view_as(logits).to(logits.dtype), None, None


class _BalanceOfLogarithms(torch.autograd.Function):
    """
    The same in its dual form, `log P = R - f_i - g_j`, where a row step renews `f` and a column step `g`. Only the
    `2 T` vectors are kept for the backward pass, not the `T` matrices of `N * N` that autograd would keep.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, iterations: int, masked: bool) -> Tensor:
        logsumexp = _finite_logsumexp if masked else partial(torch.logsumexp, keepdim=True)
        column = torch.zeros_like(logits[..., :1, :])
        potentials = []
        for _ in range(iterations):
            row = logsumexp(logits - column, -1)
            potentials += [column, row]
            column = logsumexp(logits - row, -2)
        row = logsumexp(logits - column, -1)
        ctx.save_for_backward(logits, *potentials, column, row)
        return (logits - row - column).exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        # Slices: where torch 2.8 compiles `logits, *potentials`, it makes these a tuple, from which nothing is popped.
        saved = list(ctx.saved_tensors)
        logits, potentials, (column, row) = saved[0], saved[1:-2], saved[-2:]
        # d logsumexp(z) is softmax(z), and every softmax met here is exp(logits - row - column) for the pair of
        # potentials of that moment.
        matrix = (logits - row - column).exp()
        grad_logits = grad * matrix
        grad_row = -grad_logits.sum(-1, keepdim=True)
        grad_column = -grad_logits.sum(-2, keepdim=True)
        grad_logits = torch.addcmul(grad_logits, matrix, grad_row)
        grad_column = grad_column - (matrix * grad_row).sum(-2, keepdim=True)
        while potentials:
            row = potentials.pop()
            matrix = (logits - row - column).exp()
            grad_logits = torch.addcmul(grad_logits, matrix, grad_column)
            grad_row = -(matrix * grad_column).sum(-1, keepdim=True)
            column = potentials.pop()
            matrix = (logits - row - column).exp()
            grad_logits = torch.addcmul(grad_logits, matrix, grad_row)
            grad_column = -(matrix * grad_row).sum(-2, keepdim=True)
        return grad_logits, None, None


# Causal --------------------------------------------------------------------------------------------------------------


def causal_sinkhorn_balance(
    logits: Tensor, allowed: Tensor, iterations: int, columns: Tensor | None = None, capacity: bool = False
) -> tuple[Tensor, Tensor]:
    """
    Causal Sinkhorn balancing (design section 2.4): as `sinkhorn_balance`, but the column normaliser of row `i` sums
    over the rows up to `i` alone. A sum over all rows would tell row `i` about later blocks. So balancing is a
    recurrence over rows, and can resume from earlier ones.

    The column `i - 1` is new in row `i`, so its sum is that one entry, which becomes 1 for any logits: the block
    before always has the largest weight. With `capacity` a column is divided by its sum only where that is above 1
    (partial transport: each source may be used up to once, and need not be), and a row is free to choose.

    Args:
        logits: `(B, G, n, N)` float32, the next `n` rows.
        allowed: bool, broadcastable to `logits`, False for sources that are not before the row's block. Rows that
            allow nothing take no part.
        columns: `(B, G, iterations, N)`, what the rows before these left (the second value returned for them): the
            logsumexp of each column so far, in each iteration. `None` where there are none.
        capacity: whether column sums may be below 1.

    Returns:
        `(B, G, n, N)`: rows sum to 1, except those that allow nothing, which are 0; and the new `columns`.
    """
    allowed = allowed.expand_as(logits)
    if columns is None and is_triton_supported(logits) and logits.dtype == torch.float32:
        return balance_causally_on_gpu(_mask_logits(logits, allowed), iterations, capacity)
    # No entry is above 1, and a step lowers its logarithm by no more than that of the number of blocks.
    if columns is None and _fits_double_precision(logits, allowed, 1, 2 * iterations + 2):
        return _CausalBalanceOfExponentials.apply(logits, allowed, iterations, capacity)
    arguments = (logits, allowed, iterations, columns, capacity)
    if torch.is_grad_enabled() and logits.requires_grad:
        # Computed again for the backward pass: otherwise each iteration would keep matrices of `n * N`.
        return checkpoint(_causal_balance_of_logarithms, *arguments, use_reentrant=False, preserve_rng_state=False)
    return _causal_balance_of_logarithms(*arguments)


class _CausalBalanceOfExponentials(torch.autograd.Function):
    """For all rows at once. The iterates are computed again for the backward pass."""

    @staticmethod
    def forward(ctx, logits: Tensor, allowed: Tensor, iterations: int, capacity: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, allowed)
        ctx.iterations, ctx.capacity = iterations, capacity
        ctx.set_materialize_grads(False)
        floor = causal_floor(logits.dtype)
        matrix = _exponentials(_mask_logits(logits, allowed), True)
        sums = torch.empty_like(matrix)
        after = matrix.new_empty(matrix.shape[0], iterations, matrix.shape[-1])
        for iteration in range(iterations):
            matrix /= _one_for_zero(matrix.sum(-1, keepdim=True))
            torch.cumsum(matrix, -2, out=sums)
            last = sums[:, -1]
            after[:, iteration] = _one_for_zero(last).log_().masked_fill_(last == 0, floor)
            matrix /= _divisor_(sums, capacity)
        matrix /= _one_for_zero(matrix.sum(-1, keepdim=True))
        after = after.view(*logits.shape[:2], *after.shape[1:])
        return matrix.view_as(logits).to(logits.dtype), after.to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor | None, grad_after: Tensor | None):
        logits, allowed = ctx.saved_tensors
        matrix = _exponentials(_mask_logits(logits, allowed), True)
        steps = []  # what rows were divided by, what columns were divided by, and the last sums of these
        for _ in range(ctx.iterations):
            totals = _one_for_zero(matrix.sum(-1, keepdim=True))
            matrix /= totals
            sums = matrix.cumsum(-2)
            last = sums[:, -1].clone()
            steps.append((totals, _divisor_(sums, ctx.capacity), last))
            matrix /= steps[-1][1]
        totals = _one_for_zero(matrix.sum(-1, keepdim=True))
        matrix /= totals
        # Gradients are those of logarithms: a division takes from them, and a sum hands out by shares.
        grad_logits = torch.zeros_like(matrix) if grad is None else grad.flatten(0, 1) * matrix
        grad_logits.addcmul_(matrix, grad_logits.sum(-1, keepdim=True), value=-1)
        while steps:
            matrix *= totals
            totals, divisor, last = steps.pop()
            matrix *= divisor  # as it was before the column step
            grad_sums = (grad_logits / divisor).neg_()
            if ctx.capacity:
                grad_sums.masked_fill_(divisor <= 1, 0.0)  # not divided
            if grad_after is not None:
                grad_last = grad_after[:, :, len(steps)].flatten(0, 1)
                grad_sums[:, -1] += (grad_last / last).masked_fill_(last == 0, 0.0)
            # A row is in its own sum and those of all later rows. Not computed as the whole sum minus the earlier
            # rows: those of a column that begins with tiny entries are so large that the rest would be lost to
            # rounding.
            grad_logits.addcmul_(matrix, grad_sums.flip(-2).cumsum_(-2).flip(-2))
            grad_logits.addcmul_(matrix, grad_logits.sum(-1, keepdim=True), value=-1)
        return grad_logits.view_as(logits).to(logits.dtype), None, None, None


def _divisor_(sums: Tensor, capacity: bool) -> Tensor:
    """Of the columns, in the place of their sums."""
    return sums.clamp_(min=1) if capacity else sums.masked_fill_(sums == 0, 1.0)


def _causal_balance_of_logarithms(
    logits: Tensor, allowed: Tensor, iterations: int, columns: Tensor | None, capacity: bool
) -> tuple[Tensor, Tensor]:
    # A large finite number is used as minus infinity: logcumsumexp has no gradient there, and masked entries never
    # come near it again, since every normalised logit is at most 0.
    floor, masked = causal_floor(logits.dtype), ~allowed
    logits = logits.masked_fill(masked, floor)
    before = [None] * iterations if columns is None else columns.unsqueeze(3).unbind(2)
    after = []
    for earlier in before:
        logits = logits.log_softmax(-1).masked_fill(masked, floor)
        if earlier is None:
            sums = logits.logcumsumexp(-2)
        elif logits.shape[-2] == 1:  # a step of decoding
            sums = torch.logaddexp(earlier, logits)
        else:
            sums = torch.cat((earlier, logits), dim=-2).logcumsumexp(-2)[:, :, 1:]
        after.append(sums[:, :, -1:])
        logits = (logits - (sums.clamp(min=0) if capacity else sums)).masked_fill(masked, floor)
    after = torch.cat(after, dim=2) if after else logits.new_zeros(*logits.shape[:2], 0, logits.shape[-1])
    return logits.softmax(-1).masked_fill(masked, 0.0), after


def causal_floor(dtype: torch.dtype) -> float:
    """The number used as the logarithm of 0 in causal balancing."""
    return torch.finfo(dtype).min / 4


# In parts ------------------------------------------------------------------------------------------------------------


def _fits_double_precision(logits: Tensor, allowed: Tensor | None, spans: int, steps: int) -> bool:
    """
    Whether double precision holds the exponentials of all numbers up to `spans` times the widest row of logits plus
    `steps` times the logarithm of the number of blocks, and of their negatives.
    """
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    lowest = highest = logits.detach()
    if allowed is not None:
        lowest = lowest.masked_fill(~allowed, float("inf"))
        highest = highest.masked_fill(~allowed, float("-inf"))
    span = highest.amax(-1) - lowest.amin(-1)
    span = span.clamp_(min=0).amax().item()  # minus infinity in rows that allow nothing
    return spans * span + steps * math.log(logits.shape[-1] + 1) < LARGEST_EXPONENT


def _exponentials(logits: Tensor, masked: bool) -> Tensor:
    """`(B, G, n, N)` logits to `(B * G, n, N)` in float64, the largest of each row 1; rows that allow nothing 0."""
    logits = logits.flatten(0, 1).to(torch.float64)
    highest = logits.amax(-1, keepdim=True)
    if masked:
        highest.masked_fill_(highest == float("-inf"), 0.0)
    return (logits - highest).exp_()


def _mask_logits(logits: Tensor, allowed: Tensor | None) -> Tensor:
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def _one_for_zero(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)


def _inverse_or_one(total: Tensor) -> Tensor:
    return _one_for_zero(total).reciprocal_()


def _finite_logsumexp(logits: Tensor, dim: int) -> Tensor:
    """logsumexp that is 0 instead of minus infinity where everything is masked, so that nothing becomes NaN."""
    total = logits.logsumexp(dim, keepdim=True)
    return total.masked_fill(total == float("-inf"), 0.0)
