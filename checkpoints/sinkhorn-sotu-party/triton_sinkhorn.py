# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Balancing and block attention for an NVIDIA GPU, in Triton, each as one custom op with a backward of its own.

Written as whole-tensor operations both are many small kernels: at a few thousand tokens a GPU waits for the next one to be
launched most of the time. Here balancing is one kernel for up to 128 blocks and one per half-step beyond, and attention is
one forward and three backward, which rotate, gather and attend in registers and keep no more than the logarithm of each
softmax's denominator. What they compute is defined by `sorting_sinkhorn.py` and by `attention_sinkhorn.py`'s torch path.

Shape letters as in `kernels_sinkhorn.py`; `M = B * G` matrices and `T` iterations of balancing.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


# Before triton, whose import takes time: where nothing could run the kernels, nothing waits for it.
if torch.version.cuda is None and not os.environ.get("TRITON_INTERPRET"):
    raise ImportError("triton_sinkhorn needs torch built for CUDA, or Triton's interpreter (TRITON_INTERPRET=1).")
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("triton_sinkhorn needs triton, which comes with torch's builds for CUDA.") from error


# What the kernels take: a power of two each, so that no tile is filled up, and half a head is a matrix unit's least size.
BLOCK_SIZES = (16, 32, 64, 128)
HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_COMPUTE_CAPABILITY = 8  # Ampere: Triton has no matrix units for older ones

TILES_HELD = 12  # tiles of a block of one head that shared memory must have room for; less was not tried
WHOLE = 128  # blocks up to which one program holds a whole matrix to balance
KEPT, SUMMED = tl.constexpr(16), tl.constexpr(128)  # of a tile beyond it: lines to sum, entries of each at a time
ROWS, COLUMNS = tl.constexpr(64), tl.constexpr(16)  # of a tile of causal balancing
UNSEEN = tl.constexpr(-1e30)  # stands for minus infinity, so that a row that sees nothing is finite


def runs_on(x: Tensor) -> bool:
    """Whether the device that holds `x` runs the kernels, and they may be used: an exported graph must run anywhere."""
    if not x.is_cuda or torch.version.hip is not None or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    return torch.cuda.get_device_properties(x.device).major >= LEAST_COMPUTE_CAPABILITY


def takes(query: Tensor) -> bool:
    """Whether `block_attention` runs, and takes a query `(B, N, b, H, D)` of this type and these sizes."""
    block_size, width = query.shape[2], query.shape[4]
    if query.dtype not in DTYPES or block_size not in BLOCK_SIZES or width not in HEAD_DIMS or not runs_on(query):
        return False
    if torch.are_deterministic_algorithms_enabled():  # gradients of gathered blocks are added up in any order
        return False
    shared_memory = getattr(torch.cuda.get_device_properties(query.device), "shared_memory_per_block_optin", 0)
    return TILES_HELD * block_size * width * query.element_size() <= shared_memory


def on_its_device(function: Callable) -> Callable:
    """Triton launches on the current device, which in a model spread over several need not be that of the tensors."""

    @functools.wraps(function)
    def launch(first: Tensor, *others: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *others)

    return launch


# --------------------------------------------------------------------------------------------------------------------
# Balancing: log P = R - row - column, where a row step renews `row` and a column step `column`
# --------------------------------------------------------------------------------------------------------------------


def balance(logits: Tensor, iterations: int) -> Tensor:
    """
    `sinkhorn_balance` of `(..., N, N)` float32 logits, minus infinity where a pair is not allowed. Backward keeps the
    logits and the `2 T + 2` potentials `(..., N)`.
    """
    shape = logits.shape
    return _balance(logits.reshape(-1, *shape[-2:]).contiguous(), iterations)[0].view(shape)


@torch.library.custom_op("sinkhorn::balance", mutates_args=())
@on_its_device
def _balance(logits: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """`(M, N, N)` to the balanced matrix and to the row and the column potentials, `(T + 1, M, N)` each."""
    num_matrices, num_blocks, _ = logits.shape
    rows = logits.new_empty(iterations + 1, num_matrices, num_blocks)
    columns = torch.empty_like(rows)
    if num_blocks <= WHOLE:
        matrix, size = torch.empty_like(logits), triton.next_power_of_2(num_blocks)
        _balance_whole[(num_matrices,)](
            logits, rows, columns, matrix, num_matrices, num_blocks, iterations, SIZE=size, num_warps=_warps(size)
        )
        return matrix, rows, columns
    columns[0] = 0
    grid = (triton.cdiv(num_blocks, KEPT.value), num_matrices)
    for step in range(iterations + 1):
        _sum_lines[grid](logits, columns[step], rows[step], num_blocks, num_blocks, 1)
        if step < iterations:
            _sum_lines[grid](logits, rows[step], columns[step + 1], num_blocks, 1, num_blocks)
    return (logits - rows[-1].unsqueeze(-1) - columns[-1].unsqueeze(-2)).exp_(), rows, columns


@torch.library.custom_op("sinkhorn::balance_backward", mutates_args=())
@on_its_device
def _balance_backward(grad: Tensor, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    steps, num_matrices, num_blocks = rows.shape
    grad_logits = torch.empty_like(logits)
    if num_blocks <= WHOLE:
        size = triton.next_power_of_2(num_blocks)
        _balance_whole_backward[(num_matrices,)](
            logits, rows, columns, grad, grad_logits, num_matrices, num_blocks, steps - 1, SIZE=size,
            num_warps=_warps(size),
        )  # fmt: skip
        return grad_logits
    # First the gradients of all potentials, last to first; then, in one pass, what they all are to the logits.
    grad_rows, grad_columns = torch.empty_like(rows), torch.empty_like(columns)
    by_row, by_column = (num_blocks, num_blocks, 1), (num_blocks, 1, num_blocks)
    lines = (triton.cdiv(num_blocks, KEPT.value), num_matrices)
    last = steps - 1
    row, column = rows[last], columns[last]
    _pull[lines](logits, row, column, row, grad, grad_rows[last], *by_row, WEIGHTED=False, GRAD=True)
    _pull[lines](logits, column, row, grad_rows[last], grad, grad_columns[last], *by_column, WEIGHTED=True, GRAD=True)
    for step in range(last - 1, -1, -1):
        row, column = rows[step], columns[step + 1]
        _pull[lines](
            logits, row, column, grad_columns[step + 1], grad, grad_rows[step], *by_row, WEIGHTED=True, GRAD=False
        )
        column = columns[step]
        _pull[lines](
            logits, column, row, grad_rows[step], grad, grad_columns[step], *by_column, WEIGHTED=True, GRAD=False
        )
    tiles = (triton.cdiv(num_blocks, KEPT.value), triton.cdiv(num_blocks, SUMMED.value), num_matrices)
    _collect[tiles](logits, rows, columns, grad_rows, grad_columns, grad, grad_logits, num_matrices, num_blocks, last)
    return grad_logits


@_balance.register_fake
def _(logits, iterations):
    rows = logits.new_empty(iterations + 1, *logits.shape[:2])
    return torch.empty_like(logits), rows, torch.empty_like(rows)


@_balance_backward.register_fake
def _(grad, logits, rows, columns):
    return torch.empty_like(logits)


def _keep_potentials(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], *output[1:])


def _through_balancing(ctx, grad, *_):
    return _balance_backward(grad.contiguous(), *ctx.saved_tensors), None


_balance.register_autograd(_through_balancing, setup_context=_keep_potentials)


def _warps(size: int) -> int:
    """For a program that holds `size * size` numbers."""
    return {128: 16, 64: 8}.get(size, 4)


@triton.jit
def _logsumexp(x, AXIS: tl.constexpr):
    """0 where everything is minus infinity, so that nothing becomes NaN."""
    highest = tl.max(x, AXIS)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(tl.exp(x - tl.expand_dims(base, AXIS)), AXIS)
    return tl.where(highest == float("-inf"), 0.0, base + tl.log(total))


@triton.jit
def _balance_whole(logits, rows, columns, matrix, num_matrices, num_blocks, iterations, SIZE: tl.constexpr):
    """One program per matrix, which it holds in registers."""
    number = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    inside = i < num_blocks
    entry = number * num_blocks * num_blocks + i[:, None] * num_blocks + i[None, :]
    entry_inside = inside[:, None] & inside[None, :]
    r = tl.load(logits + entry, mask=entry_inside, other=float("-inf"))
    line = number * num_blocks + i
    column = tl.zeros([SIZE], tl.float32)
    row = _logsumexp(r, 1)
    for step in range(iterations):
        tl.store(columns + step * num_matrices * num_blocks + line, column, mask=inside)
        tl.store(rows + step * num_matrices * num_blocks + line, row, mask=inside)
        column = _logsumexp(r - row[:, None], 0)
        row = _logsumexp(r - column[None, :], 1)
    tl.store(columns + iterations * num_matrices * num_blocks + line, column, mask=inside)
    tl.store(rows + iterations * num_matrices * num_blocks + line, row, mask=inside)
    tl.store(matrix + entry, tl.exp(r - row[:, None] - column[None, :]), mask=entry_inside)


@triton.jit
def _balance_whole_backward(
    logits, rows, columns, grad, grad_logits, num_matrices, num_blocks, iterations, SIZE: tl.constexpr
):
    """d logsumexp(z) is softmax(z), and every softmax met here is exp(R - row - column) for a pair of potentials."""
    number = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    inside = i < num_blocks
    entry = number * num_blocks * num_blocks + i[:, None] * num_blocks + i[None, :]
    entry_inside = inside[:, None] & inside[None, :]
    r = tl.load(logits + entry, mask=entry_inside, other=float("-inf"))
    line = number * num_blocks + i
    step_size = num_matrices * num_blocks
    row = tl.load(rows + iterations * step_size + line, mask=inside, other=0.0)
    column = tl.load(columns + iterations * step_size + line, mask=inside, other=0.0)
    balanced = tl.exp(r - row[:, None] - column[None, :])
    total = balanced * tl.load(grad + entry, mask=entry_inside, other=0.0)
    grad_row = -tl.sum(total, 1)
    grad_column = -tl.sum(total, 0)
    part = balanced * grad_row[:, None]
    total += part
    grad_column -= tl.sum(part, 0)
    for back in range(iterations):
        step = iterations - 1 - back
        row = tl.load(rows + step * step_size + line, mask=inside, other=0.0)
        part = tl.exp(r - row[:, None] - column[None, :]) * grad_column[None, :]
        total += part
        grad_row = -tl.sum(part, 1)
        column = tl.load(columns + step * step_size + line, mask=inside, other=0.0)
        part = tl.exp(r - row[:, None] - column[None, :]) * grad_row[:, None]
        total += part
        grad_column = -tl.sum(part, 0)
    tl.store(grad_logits + entry, total, mask=entry_inside)


@triton.jit
def _sum_lines(logits, summed_potential, kept_potential, num_blocks, kept_stride, summed_stride):
    """Half a step, for a few lines (rows or columns) of a matrix: logsumexp(R - other potential) over each."""
    number = tl.program_id(1).to(tl.int64)
    kept = tl.program_id(0) * KEPT + tl.arange(0, KEPT)
    logits += number * num_blocks * num_blocks
    highest = tl.full([KEPT], float("-inf"), tl.float32)
    total = tl.zeros([KEPT], tl.float32)
    for start in range(0, num_blocks, SUMMED):
        summed = start + tl.arange(0, SUMMED)
        inside = (kept < num_blocks)[:, None] & (summed < num_blocks)[None, :]
        entry = kept[:, None].to(tl.int64) * kept_stride + summed[None, :] * summed_stride
        x = tl.load(logits + entry, mask=inside, other=float("-inf"))
        x -= tl.load(summed_potential + number * num_blocks + summed, mask=summed < num_blocks, other=0.0)[None, :]
        higher = tl.maximum(highest, tl.max(x, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base[:, None]), 1)
        highest = higher
    result = tl.where(highest == float("-inf"), 0.0, highest + tl.log(total))
    tl.store(kept_potential + number * num_blocks + kept, result, mask=kept < num_blocks)


@triton.jit
def _pull(
    logits, kept_potential, summed_potential, weight, grad, result, num_blocks, kept_stride, summed_stride,
    WEIGHTED: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """The gradient of a potential: minus the sum over each line of exp(R - row - column) * (weight + grad)."""
    number = tl.program_id(1).to(tl.int64)
    kept = tl.program_id(0) * KEPT + tl.arange(0, KEPT)
    own = tl.load(kept_potential + number * num_blocks + kept, mask=kept < num_blocks, other=0.0)
    total = tl.zeros([KEPT], tl.float32)
    for start in range(0, num_blocks, SUMMED):
        summed = start + tl.arange(0, SUMMED)
        line = number * num_blocks + summed
        inside = (kept < num_blocks)[:, None] & (summed < num_blocks)[None, :]
        entry = kept[:, None].to(tl.int64) * kept_stride + summed[None, :] * summed_stride
        entry += number * num_blocks * num_blocks
        x = tl.load(logits + entry, mask=inside, other=float("-inf"))
        other = tl.load(summed_potential + line, mask=summed < num_blocks, other=0.0)
        share = tl.exp(x - own[:, None] - other[None, :])
        factor = tl.zeros_like(x)
        if WEIGHTED:
            factor += tl.load(weight + line, mask=summed < num_blocks, other=0.0)[None, :]
        if GRAD:
            factor += tl.load(grad + entry, mask=inside, other=0.0)
        total += tl.sum(share * factor, 1)
    tl.store(result + number * num_blocks + kept, -total, mask=kept < num_blocks)


@triton.jit
def _collect(
    logits, rows, columns, grad_rows, grad_columns, grad, grad_logits, num_matrices, num_blocks, iterations
):  # fmt: skip
    """What the gradients of all potentials, and of the matrix, are to the logits, for one tile."""
    number = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * KEPT + tl.arange(0, KEPT)
    j = tl.program_id(1) * SUMMED + tl.arange(0, SUMMED)
    inside = (i < num_blocks)[:, None] & (j < num_blocks)[None, :]
    entry = number * num_blocks * num_blocks + i[:, None].to(tl.int64) * num_blocks + j[None, :]
    x = tl.load(logits + entry, mask=inside, other=float("-inf"))
    total = tl.zeros_like(x)
    row_line, column_line = number * num_blocks + i, number * num_blocks + j
    step_size = num_matrices * num_blocks
    column = tl.load(columns + column_line, mask=j < num_blocks, other=0.0)
    for _ in range(iterations):
        row = tl.load(rows + row_line, mask=i < num_blocks, other=0.0)
        grad_row = tl.load(grad_rows + row_line, mask=i < num_blocks, other=0.0)
        total += tl.exp(x - row[:, None] - column[None, :]) * grad_row[:, None]
        row_line += step_size
        column_line += step_size
        column = tl.load(columns + column_line, mask=j < num_blocks, other=0.0)
        grad_column = tl.load(grad_columns + column_line, mask=j < num_blocks, other=0.0)
        total += tl.exp(x - row[:, None] - column[None, :]) * grad_column[None, :]
    row = tl.load(rows + row_line, mask=i < num_blocks, other=0.0)
    grad_row = tl.load(grad_rows + row_line, mask=i < num_blocks, other=0.0)
    of_matrix = tl.load(grad + entry, mask=inside, other=0.0)
    total += tl.exp(x - row[:, None] - column[None, :]) * (grad_row[:, None] + of_matrix)
    tl.store(grad_logits + entry, total, mask=inside)


# --------------------------------------------------------------------------------------------------------------------
# Causal balancing: a column's normaliser in row `i` sums over the rows up to `i`, so it is a scan along the rows
# --------------------------------------------------------------------------------------------------------------------


def balance_causally(logits: Tensor, iterations: int, capacity: bool) -> tuple[Tensor, Tensor]:
    """
    `causal_sinkhorn_balance` of `(B, G, N, N)` float32 logits of whole rows, minus infinity where a pair is not allowed.
    Backward keeps the logits alone, and computes the rest again.

    Returns:
        The balanced matrix, rows that allow nothing 0; and the logarithms of the columns' sums after the last row,
        `(B, G, T, N)`, through which nothing is learned.
    """
    batch, groups, num_blocks, _ = logits.shape
    matrix, sums = _balance_causally(logits.flatten(0, 1).contiguous(), iterations, capacity)
    return matrix.view_as(logits), sums.view(batch, groups, iterations, num_blocks)


@torch.library.custom_op("sinkhorn::balance_causally", mutates_args=())
@on_its_device
def _balance_causally(logits: Tensor, iterations: int, capacity: bool) -> tuple[Tensor, Tensor]:
    """`(M, N, N)` to the balanced matrix, and the columns' sums `(M, T, N)`."""
    num_matrices, num_blocks, _ = logits.shape
    sums = logits.new_empty(num_matrices, iterations, num_blocks)
    balanced = logits.clone()
    for step in range(iterations):
        _causal_step(balanced, balanced, sums[:, step], capacity)
    return (balanced - _line_sums(balanced).unsqueeze(-1)).exp_(), sums


@torch.library.custom_op("sinkhorn::balance_causally_backward", mutates_args=())
@on_its_device
def _balance_causally_backward(grad: Tensor, logits: Tensor, iterations: int, capacity: bool) -> Tensor:
    num_matrices, num_blocks, _ = logits.shape
    after, rows = [logits], []  # what each iteration leaves, and the row sums that it begins with
    sums = logits.new_empty(num_matrices, num_blocks)
    for _ in range(iterations):
        after.append(torch.empty_like(logits))
        rows.append(_causal_step(after[-2], after[-1], sums, capacity))
    rows.append(_line_sums(after[-1]))
    upstream, grid = grad * (after[-1] - rows[-1].unsqueeze(-1)).exp_(), _tiles_of_columns(logits)
    for step in range(iterations - 1, -1, -1):
        _causal_pull[grid](
            after[step], after[step + 1], rows[step], rows[step + 1], upstream, upstream.sum(-1), upstream, num_blocks,
            CAPACITY=capacity,
        )  # fmt: skip
    return upstream.sub_((logits - rows[0].unsqueeze(-1)).exp_().mul_(upstream.sum(-1, keepdim=True)))


@_balance_causally.register_fake
def _(logits, iterations, capacity):
    return torch.empty_like(logits), logits.new_empty(logits.shape[0], iterations, logits.shape[1])


@_balance_causally_backward.register_fake
def _(grad, logits, iterations, capacity):
    return torch.empty_like(logits)


def _keep_logits(ctx, inputs, output):
    logits, ctx.iterations, ctx.capacity = inputs
    ctx.save_for_backward(logits)


def _through_causal_balancing(ctx, grad, _):
    return _balance_causally_backward(grad.contiguous(), *ctx.saved_tensors, ctx.iterations, ctx.capacity), None, None


_balance_causally.register_autograd(_through_causal_balancing, setup_context=_keep_logits)


def _line_sums(logits: Tensor) -> Tensor:
    """logsumexp over each row, `(M, N)`."""
    num_matrices, num_blocks, _ = logits.shape
    result, nothing = logits.new_empty(num_matrices, num_blocks), logits.new_zeros(num_matrices, num_blocks)
    grid = (triton.cdiv(num_blocks, KEPT.value), num_matrices)
    _sum_lines[grid](logits, nothing, result, num_blocks, num_blocks, 1)
    return result


def _causal_step(logits: Tensor, result: Tensor, sums: Tensor, capacity: bool) -> Tensor:
    """One iteration, from `logits` to `result`, which may be the same tensor; returns the row sums."""
    rows = _line_sums(logits)
    num_blocks, stride = logits.shape[-1], sums.stride(0)
    _accumulate_columns[_tiles_of_columns(logits)](logits, rows, result, sums, num_blocks, stride, CAPACITY=capacity)
    return rows


def _tiles_of_columns(logits: Tensor) -> tuple[int, int]:
    return triton.cdiv(logits.shape[-1], COLUMNS.value), logits.shape[0]


@triton.jit
def _log_add(a, b):
    highest = tl.maximum(a, b)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    return base + tl.log(tl.exp(a - base) + tl.exp(b - base))


@triton.jit
def _accumulate_columns(logits, rows, result, sums, num_blocks, sums_stride, CAPACITY: tl.constexpr):
    """For a few columns, from the first row to the last: divides each entry by its row, and by its column so far."""
    number = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    so_far = tl.full([COLUMNS], float("-inf"), tl.float32)
    for start in range(0, num_blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < num_blocks)[:, None] & (column < num_blocks)[None, :]
        entry = number * num_blocks * num_blocks + row[:, None].to(tl.int64) * num_blocks + column[None, :]
        x = tl.load(logits + entry, mask=inside, other=float("-inf"))
        x -= tl.load(rows + number * num_blocks + row, mask=row < num_blocks, other=0.0)[:, None]
        total = _log_add(tl.associative_scan(x, 0, _log_add), so_far[None, :])
        so_far = tl.max(total, 0)  # the sum of the last row, as sums only grow
        if CAPACITY:
            total = tl.maximum(total, 0.0)
        total = tl.where(total == float("-inf"), 0.0, total)
        tl.store(result + entry, x - total, mask=inside)
    tl.store(sums + number * sums_stride + column, so_far, mask=column < num_blocks)


@triton.jit
def _rescale_and_add(later_sum, later, own_sum, own):
    """
    Adds gradients that count relative to the column's sum in some row: those of later rows, carried to a row, and its own.
    Rows that take no part have the sum minus infinity.
    """
    total = tl.where(own_sum == float("-inf"), later_sum, own_sum)
    share = tl.where(later_sum == float("-inf"), 0.0, tl.exp(total - later_sum))
    return total, own + later * share


@triton.jit
def _causal_pull(
    before, after, rows, next_rows, upstream, upstream_sums, result, num_blocks, CAPACITY: tl.constexpr
):  # fmt: skip
    """
    Backward of one iteration, for a few columns, from the last row to the first, up to the division by rows, which the
    iteration before completes. `upstream` is what the next iteration left in this way. With `y` the entries divided by
    their rows and `c` their columns' sums: `z = y - c`, and `y` of row `k` has the share `exp(y[k] - c[i])` in `c[i]`.
    """
    number = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    later_sum = tl.full([COLUMNS], float("-inf"), tl.float32)
    later = tl.zeros([COLUMNS], tl.float32)
    num_tiles = tl.cdiv(num_blocks, ROWS)
    for tile in range(num_tiles):
        local = tl.arange(0, ROWS)
        row = (num_tiles - 1 - tile) * ROWS + local
        inside = (row < num_blocks)[:, None] & (column < num_blocks)[None, :]
        entry = number * num_blocks * num_blocks + row[:, None].to(tl.int64) * num_blocks + column[None, :]
        line = number * num_blocks + row
        z = tl.load(after + entry, mask=inside, other=float("-inf"))
        y = tl.load(before + entry, mask=inside, other=float("-inf"))
        y -= tl.load(rows + line, mask=row < num_blocks, other=0.0)[:, None]
        next_row = tl.load(next_rows + line, mask=row < num_blocks, other=0.0)
        total = tl.load(upstream_sums + line, mask=row < num_blocks, other=0.0)
        grad = tl.load(upstream + entry, mask=inside, other=0.0) - tl.exp(z - next_row[:, None]) * total[:, None]
        takes_part = y != float("-inf")
        c = tl.where(takes_part, y - z, float("-inf"))
        own = tl.where(takes_part, -grad, 0.0)
        if CAPACITY:
            own = tl.where(c > 0, own, 0.0)
        c, pulled = tl.associative_scan((c, own), 0, _rescale_and_add, reverse=True)
        c, pulled = _rescale_and_add(
            tl.broadcast_to(later_sum[None, :], c.shape), tl.broadcast_to(later[None, :], c.shape), c, pulled
        )
        tl.store(result + entry, tl.where(takes_part, grad + tl.exp(z) * pulled, 0.0), mask=inside)
        first = (local == 0)[:, None]
        later_sum = tl.max(tl.where(first, c, float("-inf")), 0)
        later = tl.sum(tl.where(first, pulled, 0.0), 0)


# --------------------------------------------------------------------------------------------------------------------
# Block attention
# --------------------------------------------------------------------------------------------------------------------


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: tuple[Tensor, Tensor],
    mixed: tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None,
    gathered: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    scaling: float,
) -> Tensor:
    """
    Attention of every block to [what is sorted beside it ; itself] in one softmax, as `kernels_sinkhorn.block_attention`.

    Args:
        query: `(B, N, b, H, D)`, not rotated yet; `b` of `BLOCK_SIZES`, `D` of `HEAD_DIMS`, of `DTYPES`.
        key, value: `(B, G, N, b, D)`, not rotated yet.
        rotation: tables `(B or 1, N, b, D)`, whose second half of `D` repeats the first.
        mixed: blocks `(B, G, N, b, D)` beside each block, key and value, and their tables; or
        gathered: the numbers `(B, G, N, S)` of the blocks beside each block, and their weights, which are 1.
        mask: bool `(B or 1, N, 1 or G, 1 or b, (S + 1) * b)`, sorted keys first.

    Returns:
        `(B, N, b, H, D)`.
    """
    key, value = (
        x.permute(0, 2, 3, 1, 4).to(query.dtype).contiguous() for x in (key, value)
    )  # as they were projected
    mixed_key, mixed_value, mixed_rotation = mixed or (None, None, (None, None))
    if mixed is not None:
        mixed_key, mixed_value = (x.to(query.dtype).contiguous() for x in (mixed_key, mixed_value))
        mixed_rotation = tuple(x.contiguous() for x in mixed_rotation)
    index, weight = gathered or (None, None)
    if gathered is not None:
        index, weight = index.contiguous(), weight.contiguous()
    output, _ = _attend(
        query.contiguous(), key, value, mixed_key, mixed_value, weight, index, mask,
        *(x.contiguous() for x in rotation), *mixed_rotation, scaling,
    )  # fmt: skip
    return output


@torch.library.custom_op("sinkhorn::block_attention", mutates_args=())
@on_its_device
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed_key: Tensor | None,
    mixed_value: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    mixed_cos: Tensor | None,
    mixed_sin: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the softmax's denominator `(B, N, H, b)`. `key` and `value` `(B, N, b, G, D)`."""
    output, denominators = torch.empty_like(query), _denominators_like(query)
    batch, num_blocks, _, heads, _ = query.shape
    tensors, sizes = _arguments(query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin)
    _attend_forward[(num_blocks, heads, batch)](*tensors, output, denominators, scaling, **sizes)
    return output, denominators


@torch.library.custom_op("sinkhorn::block_attention_backward", mutates_args=())
@on_its_device
def _attend_backward(
    grad: Tensor,
    output: Tensor,
    denominators: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed_key: Tensor | None,
    mixed_value: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    mixed_cos: Tensor | None,
    mixed_sin: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, mixed key and value, and weight; without entries for what was not given."""
    batch, num_blocks, _, heads, _ = query.shape
    groups = key.shape[3]
    tensors, sizes = _arguments(query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin)
    grad_query, deltas = torch.empty_like(query), torch.empty_like(denominators)
    _attend_query_grad[(num_blocks, heads, batch)](
        *tensors, output, denominators, grad, grad_query, deltas, scaling, **sizes
    )
    if index is None:
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    else:  # a block may be read by many, whose sum half precision would round each time
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
    *grad_mixed, grad_weight = (_empty_like(x, query) for x in (mixed_key, mixed_value, weight))
    grads = (grad_key, grad_value, *grad_mixed, grad_weight)
    for own, tiles in ((True, 1), (False, sizes["NUM_BESIDE"])):
        if tiles:
            _attend_key_grad[(num_blocks * tiles, groups, batch)](
                *tensors, denominators, grad, deltas, *grads, scaling, **sizes, OWN=own
            )
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), *grad_mixed, grad_weight


@_attend.register_fake
def _(query, *_):
    return torch.empty_like(query), _denominators_like(query)


@_attend_backward.register_fake
def _(grad, output, denominators, query, key, value, mixed_key, mixed_value, weight, *_):
    given = (_empty_like(x, query) for x in (mixed_key, mixed_value, weight))
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *given


def _keep_inputs(ctx, inputs, output):
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*output, *tensors)


def _through_attention(ctx, grad, _):
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks them no second time
    _, _, _, _, _, mixed_key, mixed_value, weight, *_ = saved
    query, key, value, *others = _attend_backward(grad.contiguous(), *saved, ctx.scaling)
    given = (None if x is None else g for x, g in zip((mixed_key, mixed_value, weight), others))
    return query, key, value, *given, *[None] * 7


_attend.register_autograd(_through_attention, setup_context=_keep_inputs)


def _empty_like(x: Tensor | None, query: Tensor) -> Tensor:
    """Without entries for what was not given: an op returns tensors, and each but once."""
    return query.new_empty(0) if x is None else torch.empty_like(x)


def _denominators_like(query: Tensor) -> Tensor:
    batch, num_blocks, block_size, heads, _ = query.shape
    return query.new_empty(batch, num_blocks, heads, block_size, dtype=torch.float32)


def _arguments(query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin):
    """What every kernel takes first, and its sizes. What is not given is a pointer that is not read."""
    batch, num_blocks, block_size, heads, width = query.shape
    groups = key.shape[3]
    num_beside = index.shape[-1] if index is not None else int(mixed_key is not None)
    strides = (0,) * 5
    if mask is not None:
        num_keys = (num_beside + 1) * block_size
        strides = mask.expand(batch, num_blocks, groups, block_size, num_keys).stride()
        mask = mask.view(torch.uint8)
    tensors = [query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin]
    tensors = [query if x is None else x for x in tensors]
    table_strides = (_row_stride(cos), 0 if mixed_cos is None else _row_stride(mixed_cos))
    sizes = {
        "GATHERED": index is not None,
        "NUM_BESIDE": num_beside,
        "MASKED": mask is not None,
        "HEADS": heads,
        "GROUPS": groups,
        "SIZE": block_size,
        "WIDTH": width,
        "num_warps": 8 if block_size * width > 64 * 64 else 4,
    }
    return (*tensors, num_blocks, *table_strides, *strides), sizes


def _row_stride(table: Tensor) -> int:
    """0 for a table that all rows of the batch share."""
    return table.stride(0) if len(table) > 1 else 0


@triton.jit
def _load_turned(x, token_stride, cos, sin, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """The two halves `(b, D / 2)` of a block of one head, rotated."""
    HALF: tl.constexpr = WIDTH // 2
    token = tl.arange(0, SIZE)[:, None]
    place = tl.arange(0, HALF)[None, :]
    first = tl.load(x + token * token_stride + place)
    second = tl.load(x + token * token_stride + HALF + place)
    c = tl.load(cos + token * WIDTH + place).to(tl.float32)
    s = tl.load(sin + token * WIDTH + place).to(tl.float32)
    turned = first.to(tl.float32) * c - second.to(tl.float32) * s
    turned_second = second.to(tl.float32) * c + first.to(tl.float32) * s
    return turned.to(first.dtype), turned_second.to(first.dtype)


@triton.jit
def _load_tile(x, token_stride, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    return tl.load(x + tl.arange(0, SIZE)[:, None] * token_stride + tl.arange(0, WIDTH)[None, :])


@triton.jit
def _turn_back(first, second, cos, sin, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """The transpose of the rotation."""
    token = tl.arange(0, SIZE)[:, None]
    place = tl.arange(0, WIDTH // 2)[None, :]
    c = tl.load(cos + token * WIDTH + place).to(tl.float32)
    s = tl.load(sin + token * WIDTH + place).to(tl.float32)
    return first * c + second * s, second * c - first * s


@triton.jit
def _product(a, b):
    """Of matrices; in float32 without rounding to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load_keys(
    key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
    row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
    OWN: tl.constexpr, GATHERED: tl.constexpr, NUM_BESIDE: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """
    Rotated keys, in halves, and values of what stands beside a block in place `tile`, or of the block itself (`OWN`); the
    offset of it in its tensor; and the tables that it was rotated by.
    """
    if OWN or GATHERED:
        source = block
        if not OWN:
            source = tl.load(index + ((row * GROUPS + group) * num_blocks + block) * NUM_BESIDE + tile)
        offset = ((row * num_blocks + source) * SIZE * GROUPS + group) * WIDTH
        c = cos + row * table_stride + source * SIZE * WIDTH
        s = sin + row * table_stride + source * SIZE * WIDTH
        first, second = _load_turned(key + offset, GROUPS * WIDTH, c, s, SIZE, WIDTH)
        values = _load_tile(value + offset, GROUPS * WIDTH, SIZE, WIDTH)
    else:
        offset = ((row * GROUPS + group) * num_blocks + block) * SIZE * WIDTH
        c = mixed_cos + row * mixed_table_stride + block * SIZE * WIDTH
        s = mixed_sin + row * mixed_table_stride + block * SIZE * WIDTH
        first, second = _load_turned(mixed_key + offset, WIDTH, c, s, SIZE, WIDTH)
        values = _load_tile(mixed_value + offset, WIDTH, SIZE, WIDTH)
    return first, second, values, offset, c, s


@triton.jit
def _load_visible(mask, row, block, group, tile, m0, m1, m2, m3, m4, SIZE: tl.constexpr):
    """`(b, b)` bool."""
    query = tl.arange(0, SIZE)[:, None]
    place = tile * SIZE + tl.arange(0, SIZE)[None, :]
    return tl.load(mask + row * m0 + block * m1 + group * m2 + query * m3 + place * m4) != 0


@triton.jit
def _attend_forward(
    query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin,
    num_blocks, table_stride, mixed_table_stride, m0, m1, m2, m3, m4, output, denominators, scaling,
    GATHERED: tl.constexpr, NUM_BESIDE: tl.constexpr, MASKED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per block and query head."""
    block, head, row = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // (HEADS // GROUPS)
    own = (row * num_blocks + block) * SIZE * HEADS * WIDTH + head * WIDTH
    table = row * table_stride + block * SIZE * WIDTH
    q, q_second = _load_turned(query + own, HEADS * WIDTH, cos + table, sin + table, SIZE, WIDTH)
    highest = tl.full([SIZE], float("-inf"), tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    attended = tl.zeros([SIZE, WIDTH], tl.float32)
    for tile in tl.static_range(NUM_BESIDE + 1):
        k, k_second, values, _, _, _ = _load_keys(
            key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
            row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
            tile == NUM_BESIDE, GATHERED, NUM_BESIDE, GROUPS, SIZE, WIDTH,
        )  # fmt: skip
        scores = (_product(q, tl.trans(k)) + _product(q_second, tl.trans(k_second))) * scaling
        if MASKED:
            visible = _load_visible(mask, row, block, group, tile, m0, m1, m2, m3, m4, SIZE)
            scores = tl.where(visible, scores, UNSEEN)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        before = tl.exp(highest - higher)
        total = total * before + tl.sum(weights, 1)
        attended = attended * before[:, None] + _product(weights.to(values.dtype), values)
        highest = higher
    token = tl.arange(0, SIZE)
    attended = attended / total[:, None]
    place = token[:, None] * HEADS * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(output + own + place, attended.to(output.dtype.element_ty))
    line = ((row * num_blocks + block) * HEADS + head) * SIZE + token
    tl.store(denominators + line, highest + tl.log(total))


@triton.jit
def _attend_query_grad(
    query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin,
    num_blocks, table_stride, mixed_table_stride, m0, m1, m2, m3, m4,
    output, denominators, grad, grad_query, deltas, scaling,
    GATHERED: tl.constexpr, NUM_BESIDE: tl.constexpr, MASKED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per block and query head; leaves the sums of grad * output, `deltas` `(B, N, H, b)`."""
    block, head, row = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // (HEADS // GROUPS)
    own = (row * num_blocks + block) * SIZE * HEADS * WIDTH + head * WIDTH
    table = row * table_stride + block * SIZE * WIDTH
    q, q_second = _load_turned(query + own, HEADS * WIDTH, cos + table, sin + table, SIZE, WIDTH)
    upstream = _load_tile(grad + own, HEADS * WIDTH, SIZE, WIDTH)
    attended = _load_tile(output + own, HEADS * WIDTH, SIZE, WIDTH)
    delta = tl.sum(upstream.to(tl.float32) * attended.to(tl.float32), 1)
    line = ((row * num_blocks + block) * HEADS + head) * SIZE + tl.arange(0, SIZE)
    tl.store(deltas + line, delta)
    denominator = tl.load(denominators + line)
    first = tl.zeros([SIZE, WIDTH // 2], tl.float32)
    second = tl.zeros([SIZE, WIDTH // 2], tl.float32)
    for tile in tl.static_range(NUM_BESIDE + 1):
        k, k_second, values, _, _, _ = _load_keys(
            key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
            row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
            tile == NUM_BESIDE, GATHERED, NUM_BESIDE, GROUPS, SIZE, WIDTH,
        )  # fmt: skip
        scores = (_product(q, tl.trans(k)) + _product(q_second, tl.trans(k_second))) * scaling
        weights = tl.exp(scores - denominator[:, None])
        if MASKED:
            visible = _load_visible(mask, row, block, group, tile, m0, m1, m2, m3, m4, SIZE)
            weights = tl.where(visible, weights, 0.0)
        grad_scores = weights * (_product(upstream, tl.trans(values)) - delta[:, None]) * scaling
        grad_scores = grad_scores.to(k.dtype)
        first += _product(grad_scores, k)
        second += _product(grad_scores, k_second)
    first, second = _turn_back(first, second, cos + table, sin + table, SIZE, WIDTH)
    place = own + tl.arange(0, SIZE)[:, None] * HEADS * WIDTH + tl.arange(0, WIDTH // 2)[None, :]
    tl.store(grad_query + place, first.to(grad_query.dtype.element_ty))
    tl.store(grad_query + place + WIDTH // 2, second.to(grad_query.dtype.element_ty))


@triton.jit
def _attend_key_grad(
    query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin,
    num_blocks, table_stride, mixed_table_stride, m0, m1, m2, m3, m4,
    denominators, grad, deltas, grad_key, grad_value, grad_mixed_key, grad_mixed_value, grad_weight, scaling,
    GATHERED: tl.constexpr, NUM_BESIDE: tl.constexpr, MASKED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """One program per block and key/value head: of its own keys and values, or of one of the blocks beside it."""
    HALF: tl.constexpr = WIDTH // 2
    TILES: tl.constexpr = 1 if OWN else NUM_BESIDE
    REPEATS: tl.constexpr = HEADS // GROUPS
    group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    block = tl.program_id(0).to(tl.int64) // TILES
    tile = tl.program_id(0) % TILES
    k, k_second, values, offset, key_cos, key_sin = _load_keys(
        key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
        row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
        OWN, GATHERED, NUM_BESIDE, GROUPS, SIZE, WIDTH,
    )  # fmt: skip
    first = tl.zeros([SIZE, HALF], tl.float32)
    second = tl.zeros([SIZE, HALF], tl.float32)
    of_values = tl.zeros([SIZE, WIDTH], tl.float32)
    table = row * table_stride + block * SIZE * WIDTH
    for repeat in range(REPEATS):
        head = group * REPEATS + repeat
        own = (row * num_blocks + block) * SIZE * HEADS * WIDTH + head * WIDTH
        q, q_second = _load_turned(query + own, HEADS * WIDTH, cos + table, sin + table, SIZE, WIDTH)
        upstream = _load_tile(grad + own, HEADS * WIDTH, SIZE, WIDTH)
        line = ((row * num_blocks + block) * HEADS + head) * SIZE + tl.arange(0, SIZE)
        scores = (_product(q, tl.trans(k)) + _product(q_second, tl.trans(k_second))) * scaling
        weights = tl.exp(scores - tl.load(denominators + line)[:, None])
        if MASKED:
            place = NUM_BESIDE if OWN else tile
            visible = _load_visible(mask, row, block, group, place, m0, m1, m2, m3, m4, SIZE)
            weights = tl.where(visible, weights, 0.0)
        of_values += _product(tl.trans(weights.to(upstream.dtype)), upstream)
        delta = tl.load(deltas + line)
        grad_scores = weights * (_product(upstream, tl.trans(values)) - delta[:, None]) * scaling
        grad_scores = tl.trans(grad_scores.to(q.dtype))
        first += _product(grad_scores, q)
        second += _product(grad_scores, q_second)
    token = tl.arange(0, SIZE)[:, None]
    if (
        GATHERED and not OWN
    ):  # the weight multiplied the keys, whose rotation does not change their products, and values
        products = tl.sum(first * k.to(tl.float32)) + tl.sum(second * k_second.to(tl.float32))
        products += tl.sum(of_values * values.to(tl.float32))
        tl.store(grad_weight + ((row * GROUPS + group) * num_blocks + block) * NUM_BESIDE + tile, products)
    first, second = _turn_back(first, second, key_cos, key_sin, SIZE, WIDTH)
    if OWN or GATHERED:
        place = offset + token * GROUPS * WIDTH + tl.arange(0, WIDTH)[None, :]
        half = offset + token * GROUPS * WIDTH + tl.arange(0, HALF)[None, :]
        if GATHERED:
            tl.atomic_add(grad_key + half, first)
            tl.atomic_add(grad_key + half + HALF, second)
            tl.atomic_add(grad_value + place, of_values)
        else:
            tl.store(grad_key + half, first.to(grad_key.dtype.element_ty))
            tl.store(grad_key + half + HALF, second.to(grad_key.dtype.element_ty))
            tl.store(grad_value + place, of_values.to(grad_value.dtype.element_ty))
    else:
        place = offset + token * WIDTH + tl.arange(0, WIDTH)[None, :]
        half = offset + token * WIDTH + tl.arange(0, HALF)[None, :]
        tl.store(grad_mixed_key + half, first.to(grad_mixed_key.dtype.element_ty))
        tl.store(grad_mixed_key + half + HALF, second.to(grad_mixed_key.dtype.element_ty))
        tl.store(grad_mixed_value + place, of_values.to(grad_mixed_value.dtype.element_ty))
