# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Balancing of sort matrices on a GPU, in both kinds, in Triton: one kernel for up to 128 blocks, one per half-step
beyond that, and a scan along the rows for the causal kind. What they compute is defined by `balancing_sinkhorn.py`.

In both directions `log P = R - row - column`, where a row step renews `row` and a column step `column`. Shape letters
as there; `M = B * G` matrices.
"""

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .triton_sinkhorn import on_its_device, tl, triton
except ImportError:  # flat modules, as installed
    from triton_sinkhorn import on_its_device, tl, triton


MAX_BLOCKS_IN_ONE_PROGRAM = 128  # up to which one program holds a whole matrix
# Beyond that, a tile: how many lines (rows or columns) it sums, and how many entries of each at a time.
LINES_PER_TILE, ENTRIES_PER_TILE = tl.constexpr(16), tl.constexpr(128)
CAUSAL_ROWS, CAUSAL_COLUMNS = tl.constexpr(64), tl.constexpr(16)  # of a tile of causal balancing


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
    if num_blocks <= MAX_BLOCKS_IN_ONE_PROGRAM:
        matrix, size = torch.empty_like(logits), triton.next_power_of_2(num_blocks)
        _balance_whole[(num_matrices,)](
            logits, rows, columns, matrix, num_matrices, num_blocks, iterations, SIZE=size, num_warps=_warps(size)
        )
        return matrix, rows, columns
    columns[0] = 0
    grid = (triton.cdiv(num_blocks, LINES_PER_TILE.value), num_matrices)
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
    if num_blocks <= MAX_BLOCKS_IN_ONE_PROGRAM:
        size = triton.next_power_of_2(num_blocks)
        _balance_whole_backward[(num_matrices,)](
            logits, rows, columns, grad, grad_logits, num_matrices, num_blocks, steps - 1, SIZE=size,
            num_warps=_warps(size),
        )  # fmt: skip
        return grad_logits
    # First the gradients of all potentials, last to first; then, in one pass, that of the logits.
    grad_rows, grad_columns = torch.empty_like(rows), torch.empty_like(columns)
    by_row, by_column = (num_blocks, num_blocks, 1), (num_blocks, 1, num_blocks)
    lines = (triton.cdiv(num_blocks, LINES_PER_TILE.value), num_matrices)
    last = steps - 1
    row, column = rows[last], columns[last]
    _potential_grad[lines](logits, row, column, row, grad, grad_rows[last], *by_row, WEIGHTED=False, GRAD=True)
    _potential_grad[lines](
        logits, column, row, grad_rows[last], grad, grad_columns[last], *by_column, WEIGHTED=True, GRAD=True
    )
    for step in range(last - 1, -1, -1):
        row, column = rows[step], columns[step + 1]
        _potential_grad[lines](
            logits, row, column, grad_columns[step + 1], grad, grad_rows[step], *by_row, WEIGHTED=True, GRAD=False
        )
        column = columns[step]
        _potential_grad[lines](
            logits, column, row, grad_rows[step], grad, grad_columns[step], *by_column, WEIGHTED=True, GRAD=False
        )
    tiles = (
        triton.cdiv(num_blocks, LINES_PER_TILE.value),
        triton.cdiv(num_blocks, ENTRIES_PER_TILE.value),
        num_matrices,
    )
    _logits_grad[tiles](
        logits, rows, columns, grad_rows, grad_columns, grad, grad_logits, num_matrices, num_blocks, last
    )
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
    kept = tl.program_id(0) * LINES_PER_TILE + tl.arange(0, LINES_PER_TILE)
    logits += number * num_blocks * num_blocks
    highest = tl.full([LINES_PER_TILE], float("-inf"), tl.float32)
    total = tl.zeros([LINES_PER_TILE], tl.float32)
    for start in range(0, num_blocks, ENTRIES_PER_TILE):
        summed = start + tl.arange(0, ENTRIES_PER_TILE)
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
def _potential_grad(
    logits, kept_potential, summed_potential, weight, grad, result, num_blocks, kept_stride, summed_stride,
    WEIGHTED: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """The gradient of a potential: minus the sum over each line of exp(R - row - column) * (weight + grad)."""
    number = tl.program_id(1).to(tl.int64)
    kept = tl.program_id(0) * LINES_PER_TILE + tl.arange(0, LINES_PER_TILE)
    own = tl.load(kept_potential + number * num_blocks + kept, mask=kept < num_blocks, other=0.0)
    total = tl.zeros([LINES_PER_TILE], tl.float32)
    for start in range(0, num_blocks, ENTRIES_PER_TILE):
        summed = start + tl.arange(0, ENTRIES_PER_TILE)
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
def _logits_grad(
    logits, rows, columns, grad_rows, grad_columns, grad, grad_logits, num_matrices, num_blocks, iterations
):  # fmt: skip
    """The gradient of the logits from those of all potentials and of the matrix, for one tile."""
    number = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * LINES_PER_TILE + tl.arange(0, LINES_PER_TILE)
    j = tl.program_id(1) * ENTRIES_PER_TILE + tl.arange(0, ENTRIES_PER_TILE)
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


# Causal balancing: a column's normaliser in row `i` sums over the rows up to `i`, so it is a scan along the rows.


def balance_causally(logits: Tensor, iterations: int, capacity: bool) -> tuple[Tensor, Tensor]:
    """
    `causal_sinkhorn_balance` of `(B, G, N, N)` float32 logits of whole rows, minus infinity where a pair is not
    allowed. Backward keeps the logits alone, and computes the rest again.

    Returns:
        The balanced matrix, rows that allow nothing 0; and the logarithms of the columns' sums after the last row,
        `(B, G, T, N)`, which have no gradient.
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
        _causal_step_grad[grid](
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
    grid = (triton.cdiv(num_blocks, LINES_PER_TILE.value), num_matrices)
    _sum_lines[grid](logits, nothing, result, num_blocks, num_blocks, 1)
    return result


def _causal_step(logits: Tensor, result: Tensor, sums: Tensor, capacity: bool) -> Tensor:
    """One iteration, from `logits` to `result`, which may be the same tensor; returns the row sums."""
    rows = _line_sums(logits)
    num_blocks, stride = logits.shape[-1], sums.stride(0)
    _accumulate_columns[_tiles_of_columns(logits)](logits, rows, result, sums, num_blocks, stride, CAPACITY=capacity)
    return rows


def _tiles_of_columns(logits: Tensor) -> tuple[int, int]:
    return triton.cdiv(logits.shape[-1], CAUSAL_COLUMNS.value), logits.shape[0]


@triton.jit
def _log_add(a, b):
    highest = tl.maximum(a, b)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    return base + tl.log(tl.exp(a - base) + tl.exp(b - base))


@triton.jit
def _accumulate_columns(logits, rows, result, sums, num_blocks, sums_stride, CAPACITY: tl.constexpr):
    """For a few columns, from the first row to the last: divides each entry by its row, and by its column so far."""
    number = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * CAUSAL_COLUMNS + tl.arange(0, CAUSAL_COLUMNS)
    so_far = tl.full([CAUSAL_COLUMNS], float("-inf"), tl.float32)
    for start in range(0, num_blocks, CAUSAL_ROWS):
        row = start + tl.arange(0, CAUSAL_ROWS)
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
    Adds gradients that are relative to the column's sum in some row: those of later rows, rescaled to a row, and its
    own. Rows that take no part have the sum minus infinity.
    """
    total = tl.where(own_sum == float("-inf"), later_sum, own_sum)
    share = tl.where(later_sum == float("-inf"), 0.0, tl.exp(total - later_sum))
    return total, own + later * share


@triton.jit
def _causal_step_grad(
    before, after, rows, next_rows, upstream, upstream_sums, result, num_blocks, CAPACITY: tl.constexpr
):  # fmt: skip
    """
    Backward of one iteration, for a few columns, from the last row to the first, up to the division by rows, which the
    iteration before completes. `upstream` is what the next iteration left for this one. With `y` the entries divided
    by their rows and `c` their columns' sums: `z = y - c`, and `y` of row `k` has the share `exp(y[k] - c[i])` in
    `c[i]`.
    """
    number = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * CAUSAL_COLUMNS + tl.arange(0, CAUSAL_COLUMNS)
    later_sum = tl.full([CAUSAL_COLUMNS], float("-inf"), tl.float32)
    later = tl.zeros([CAUSAL_COLUMNS], tl.float32)
    num_tiles = tl.cdiv(num_blocks, CAUSAL_ROWS)
    for tile in range(num_tiles):
        local = tl.arange(0, CAUSAL_ROWS)
        row = (num_tiles - 1 - tile) * CAUSAL_ROWS + local
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
