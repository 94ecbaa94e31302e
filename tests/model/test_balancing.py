# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Balancing in both kinds (invariants 2 and 3), in double precision by exponentials and by logarithms."""

import math

import pytest
import torch

import balancing_sinkhorn
from balancing_sinkhorn import causal_floor, causal_sinkhorn_balance, sinkhorn_balance
from helpers import assert_close, padding_masks
from sorting_sinkhorn import allowed_pairs, block_grid


def test_rows_sum_to_one_and_columns_approach_it():
    torch.manual_seed(0)
    logits = 2 * torch.randn(3, 2, 9, 9)
    errors = []
    for iterations in (0, 1, 4, 16, 64):
        matrix = sinkhorn_balance(logits, None, iterations)
        assert_close(matrix.sum(-1), torch.ones(3, 2, 9), 1e-6)
        errors.append((matrix.sum(-2) - 1).abs().max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_empty_blocks_take_no_part():
    mask = padding_masks(13)
    grid = block_grid(13, 4, mask)
    torch.manual_seed(0)
    logits = torch.randn(5, 2, 4, 4)
    for causal, balance in ((False, sinkhorn_balance), (True, lambda *args: causal_sinkhorn_balance(*args)[0])):
        matrix = balance(logits, allowed_pairs(grid, causal, mask.device), 5)
        for row, count in enumerate(-(-mask.sum(1) // 4)):
            alone = balance(
                logits[row : row + 1, :, :count, :count],
                allowed_pairs(block_grid(int(count) * 4, 4), causal, mask.device),
                5,
            )
            assert_close(matrix[row : row + 1, :, :count, :count], alone, 1e-6)
            assert matrix[row, :, count:].abs().sum() == 0
            assert matrix[row, :, :, count:].abs().sum() == 0


@pytest.mark.parametrize("capacity", [False, True])
@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_causal_matrix_is_strictly_lower_triangular_and_never_looks_ahead(iterations, capacity):
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 8, 8, dtype=torch.double, requires_grad=True)
    allowed = allowed_pairs(block_grid(32, 4), True, logits.device)
    matrix, _ = causal_sinkhorn_balance(logits, allowed, iterations, capacity=capacity)
    assert matrix.triu().abs().sum() == 0
    assert_close(matrix.sum(-1)[..., 1:], torch.ones(1, 1, 7))
    for row in range(8):
        gradient = torch.autograd.grad(matrix[0, 0, row].pow(2).sum(), logits, retain_graph=True)[0]
        assert gradient[0, 0, row + 1 :].abs().sum() == 0
        assert gradient[0, 0].triu().abs().sum() == 0


def test_a_planted_leak_is_seen():
    """Negative control of the test above: with columns summed over all rows, later rows reach earlier ones."""
    logits = torch.randn(1, 1, 8, 8, dtype=torch.double, requires_grad=True)
    allowed = allowed_pairs(block_grid(32, 4), True, logits.device)
    leaky = sinkhorn_balance(logits, allowed, 3)
    gradient = torch.autograd.grad(leaky[0, 0, 3].pow(2).sum(), logits)[0]
    assert gradient[0, 0, 4:].abs().sum() > 0


@pytest.mark.parametrize("capacity", [False, True])
def test_causal_balancing_goes_on_from_earlier_rows(capacity):
    """In any parts, with rows that take no part, and with more columns from part to part."""
    logits = torch.randn(2, 2, 9, 9, dtype=torch.double)
    allowed = allowed_pairs(block_grid(36, 4), True, logits.device)
    whole, whole_sums = causal_sinkhorn_balance(logits, allowed, 5, capacity=capacity)
    for parts in ([9], [1] * 9, [3, 1, 5], [4, 4, 1]):
        columns, start, rows = None, 0, []
        for size in parts:
            end = start + size
            if columns is not None:
                missing = end - columns.shape[-1]
                columns = torch.nn.functional.pad(columns, (0, missing), value=causal_floor(logits.dtype))
            part = slice(start, end)
            arguments = (logits[..., part, :end], allowed[..., part, :end], 5, columns, capacity)
            matrix, columns = causal_sinkhorn_balance(*arguments)
            rows.append(torch.nn.functional.pad(matrix, (0, 9 - end)))
            start = end
        assert_close(torch.cat(rows, dim=2), whole, 1e-12)
        assert_close(columns.exp(), whole_sums.exp(), 1e-12)


def test_equal_column_sums_favour_the_block_before_and_capacity_does_not():
    """Logits that want block 0 beside the last block, as strongly as numbers allow."""
    logits = torch.zeros(1, 1, 12, 12)
    logits[..., -1, 0] = 100
    allowed = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    for iterations in (1, 2, 8, 20):
        equality, capacity = (
            causal_sinkhorn_balance(logits, allowed, iterations, capacity=capacity)[0][0, 0, -1]
            for capacity in (False, True)
        )
        assert equality.argmax() == 10 and equality[0] < 0.5
        assert capacity.argmax() == 0 and capacity[0] > 0.9


def test_capacity_holds_back_a_block_that_all_want():
    """Of eight rows that want block 0, the first one gets it whole, and the later ones less than without balancing."""
    logits = torch.zeros(1, 1, 9, 9)
    logits[..., 0] = 3
    allowed = torch.ones(9, 9, dtype=torch.bool).tril(-1)
    free, held = (causal_sinkhorn_balance(logits, allowed, t, capacity=True)[0][0, 0, :, 0] for t in (0, 8))
    assert held[1] == free[1] == 1 and (held[2:] < free[2:]).all() and held[-1] < 0.5 * free[-1]


@pytest.fixture(params=["exponentials", "logarithms"])
def way(request, monkeypatch):
    """How balancing is computed, where the logits leave the choice."""
    used = []
    fits = balancing_sinkhorn._fits_double_precision
    if request.param == "logarithms":
        monkeypatch.setattr(balancing_sinkhorn, "_fits_double_precision", lambda *args: used.append(False))
    else:
        monkeypatch.setattr(
            balancing_sinkhorn, "_fits_double_precision", lambda *args: used.append(fits(*args)) or used[-1]
        )
    yield request.param
    assert used and all(close == (request.param == "exponentials") for close in map(bool, used))


def some_masks(kind):
    """Documents or padding, where allowed pairs are whole squares; or any pairs, rows without one among them."""
    if kind == "nothing":
        return None
    if kind == "squares":
        return allowed_pairs(block_grid(14, 4, padding_masks(14)[1:3]), False, torch.device("cpu"))
    allowed = torch.rand(2, 2, 4, 4) < 0.6
    allowed[0, 0, 1] = False
    return allowed


@pytest.mark.parametrize("iterations", [0, 1, 6])
@pytest.mark.parametrize("kind", ["nothing", "squares", "any"])
def test_backward_of_balancing_is_exact(iterations, kind, way):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, dtype=torch.double, requires_grad=True)
    allowed = some_masks(kind)
    assert torch.autograd.gradcheck(lambda x: sinkhorn_balance(x, allowed, iterations), logits)


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("capacity", [False, True])
@pytest.mark.parametrize("asked", ["both", "matrix", "columns"])
def test_backward_of_causal_balancing_is_exact(iterations, capacity, asked, way):
    """That of the sums that a cache keeps, too."""
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, dtype=torch.double, requires_grad=True)
    allowed = torch.ones(4, 4, dtype=torch.bool).tril(-1).expand(2, 1, 4, 4).clone()
    allowed[1, :, 3:] = False

    def balance(x):
        matrix, columns = causal_sinkhorn_balance(x, allowed, iterations, capacity=capacity)
        columns = columns.masked_fill(columns < -1e6, 0.0)
        return {"both": (matrix, columns), "matrix": (matrix,), "columns": (columns,)}[asked]

    assert torch.autograd.gradcheck(balance, logits)


@pytest.mark.parametrize("scale, is_short_cut", [(1.0, True), (5.0, True), (400.0, False)])
@pytest.mark.parametrize("iterations", [0, 1, 8])
@pytest.mark.parametrize("kind", ["nothing", "squares", "any"])
def test_balancing_without_logarithms_is_the_same(scale, is_short_cut, iterations, kind, monkeypatch):
    torch.manual_seed(0)
    logits = (torch.randn(2, 2, 4, 4) * scale).requires_grad_()
    allowed = some_masks(kind)
    spans = 2 if allowed is None else 2 * iterations + 2
    assert balancing_sinkhorn._fits_double_precision(logits, allowed, spans, spans) == is_short_cut
    upstream = torch.randn(2, 2, 4, 4)
    results = []
    for _ in range(2):
        matrix = sinkhorn_balance(logits, allowed, iterations)
        results.append((matrix, *torch.autograd.grad(matrix, logits, upstream)))
        monkeypatch.setattr(balancing_sinkhorn, "_fits_double_precision", lambda *args: False)
    for actual, expected in zip(*results):
        assert actual.dtype == expected.dtype and actual.isfinite().all()
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("iterations", [1, 8, 40])
def test_masks_that_cannot_be_balanced_stay_in_range(iterations, monkeypatch):
    """Upper triangles: factors grow from step to step, those of the first row and the last column the most."""
    torch.manual_seed(0)
    size = 32
    allowed = torch.ones(size, size, dtype=torch.bool).triu()
    widest = balancing_sinkhorn.LARGEST_EXPONENT / (2 * iterations + 2) - math.log(size + 1)
    logits = (
        torch.zeros(1, 1, size, size, dtype=torch.double).triu(1) + (widest - 0.1) * torch.rand(size, size).double()
    )
    logits.requires_grad_()
    assert balancing_sinkhorn._fits_double_precision(logits, allowed, 2 * iterations + 2, 2 * iterations + 2)
    results = []
    for _ in range(2):
        matrix = sinkhorn_balance(logits, allowed, iterations)
        results.append((matrix, *torch.autograd.grad(matrix.square().sum(), logits)))
        monkeypatch.setattr(balancing_sinkhorn, "_fits_double_precision", lambda *args: False)
    for actual, expected in zip(*results):
        assert actual.isfinite().all()
        assert_close(actual, expected, 1e-9)


def test_the_widest_logits_of_the_short_cut_stay_in_range():
    """Two columns that all rows want, and rows that differ by all that is let through."""
    torch.manual_seed(0)
    logits = torch.zeros(1, 1, 64, 64, dtype=torch.double)
    logits[..., :2] = 290
    logits[..., ::3, 5] = 290
    logits += torch.rand_like(logits)
    assert balancing_sinkhorn._fits_double_precision(logits, None, 2, 2)
    logits.requires_grad_()
    matrix = sinkhorn_balance(logits, None, 200)
    matrix.square().sum().backward()
    assert matrix.isfinite().all() and logits.grad.isfinite().all()
    assert_close(matrix.sum(-1), torch.ones(1, 1, 64, dtype=torch.double), 1e-9)
    assert not balancing_sinkhorn._fits_double_precision(logits * 2, None, 2, 2)


@pytest.mark.parametrize("scale, is_short_cut", [(1.0, True), (50.0, True), (400.0, False)])
@pytest.mark.parametrize("iterations", [0, 1, 8])
@pytest.mark.parametrize("capacity", [False, True])
def test_causal_balancing_without_logarithms_is_the_same(scale, is_short_cut, iterations, capacity, monkeypatch):
    torch.manual_seed(0)
    logits = (torch.randn(2, 2, 9, 9) * scale).requires_grad_()
    allowed = torch.ones(9, 9, dtype=torch.bool).tril(-1).expand(2, 2, 9, 9).clone()
    allowed[1, :, 6:] = False  # blocks without a token
    assert balancing_sinkhorn._fits_double_precision(logits, allowed, 1, 2 * iterations + 2) == is_short_cut
    upstream = torch.randn(2, 2, 9, 9)
    results = []
    for _ in range(2):
        matrix, columns = causal_sinkhorn_balance(logits, allowed, iterations, capacity=capacity)
        results.append((matrix, columns, *torch.autograd.grad(matrix, logits, upstream)))
        monkeypatch.setattr(balancing_sinkhorn, "_fits_double_precision", lambda *args: False)
    for actual, expected in zip(*results):
        assert actual.dtype == expected.dtype and actual.isfinite().all()
        reached = expected > causal_floor(torch.float32) / 2
        assert torch.equal(actual > causal_floor(torch.float32) / 2, reached)
        if reached.any():  # without iterations there are no columns
            assert_close(actual[reached], expected[reached], 1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_backward_keeps_no_iterates(causal):
    """Memory: at most one `N * N` matrix of numbers is kept for the backward pass, however many iterations."""
    kept = []
    logits = torch.randn(1, 1, 32, 32, requires_grad=True)
    allowed = allowed_pairs(block_grid(128, 4), causal, logits.device)
    balance = causal_sinkhorn_balance if causal else sinkhorn_balance
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        balance(logits, allowed, 20)
    assert sum(tensor.numel() >= 32 * 32 and tensor.is_floating_point() for tensor in kept) <= 1
