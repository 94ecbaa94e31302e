# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The pure functions of `sorting_sinkhorn.py`: grid, balancing and assignment (invariants 2 and 3)."""

import pytest
import torch
from helpers import assert_close, padding_masks

import sorting_sinkhorn
from sorting_sinkhorn import (
    allowed_pairs,
    block_grid,
    causal_floor,
    causal_sinkhorn_balance,
    from_blocks,
    gumbel_noise,
    hard_assignment,
    hard_sort,
    local_window,
    sinkhorn_balance,
    soft_sort,
    to_blocks,
)


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_blocks_hold_the_real_tokens_in_order(block_size):
    mask = padding_masks(13)
    tokens = torch.randn(5, 13, 2)
    grid = block_grid(13, block_size, mask)
    blocks = to_blocks(tokens, grid)
    for row in range(5):
        real = tokens[row][mask[row].bool()]
        flat = blocks[row].flatten(0, 1)
        assert torch.equal(flat[: len(real)], real)
        assert flat[len(real) :].abs().sum() == 0
    assert torch.equal(from_blocks(blocks, grid), tokens * mask.unsqueeze(-1))


def test_without_padding_blocks_are_a_view():
    tokens = torch.randn(2, 12, 3)
    grid = block_grid(12, 4)
    assert to_blocks(tokens, grid).data_ptr() == tokens.data_ptr()
    assert torch.equal(from_blocks(to_blocks(tokens, grid), grid), tokens)


def test_a_permutation_moves_whole_blocks_keys_and_values_apart():
    order = torch.tensor([2, 0, 3, 1])
    permutation = torch.eye(4)[order].expand(2, 3, 4, 4)
    keys, values = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    for blocks in (keys, values):
        expected = blocks.index_select(2, order)
        assert torch.equal(soft_sort(permutation, blocks, None), expected)
        choice = hard_assignment(permutation, torch.ones(1, 1, 4, 4, dtype=torch.bool), 1)
        assert torch.equal(hard_sort(choice, blocks)[:, :, :, 0], expected)
    both = soft_sort(permutation, torch.cat((keys, values), -1), None)
    assert torch.equal(both[..., 6:], soft_sort(permutation, values, None))
    assert not torch.equal(both[..., 6:], both[..., :6])


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


@pytest.mark.parametrize("iterations", [0, 1, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_backward_of_balancing_is_exact(iterations, masked):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, dtype=torch.double, requires_grad=True)
    allowed = allowed_pairs(block_grid(14, 4, padding_masks(14)[1:3]), False, logits.device) if masked else None
    assert torch.autograd.gradcheck(lambda x: sinkhorn_balance(x, allowed, iterations), logits)


@pytest.mark.parametrize("scale, is_short_cut", [(1.0, True), (50.0, True), (400.0, False)])
@pytest.mark.parametrize("iterations", [0, 1, 8])
@pytest.mark.parametrize("capacity", [False, True])
def test_causal_balancing_without_logarithms_is_the_same(scale, is_short_cut, iterations, capacity, monkeypatch):
    torch.manual_seed(0)
    logits = (torch.randn(2, 2, 9, 9) * scale).requires_grad_()
    allowed = torch.ones(9, 9, dtype=torch.bool).tril(-1).expand(2, 2, 9, 9).clone()
    allowed[1, :, 6:] = False  # blocks without a token
    assert sorting_sinkhorn._spans_little(logits, allowed, iterations) == is_short_cut
    upstream = torch.randn(2, 2, 9, 9)
    results = []
    for _ in range(2):
        matrix, columns = causal_sinkhorn_balance(logits, allowed, iterations, capacity=capacity)
        results.append((matrix, columns, *torch.autograd.grad(matrix, logits, upstream)))
        monkeypatch.setattr(sorting_sinkhorn, "_spans_little", lambda *args: False)
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


def test_extreme_logits_stay_finite():
    for scale in (1e3, 1e30):
        logits = (scale * torch.randn(1, 2, 5, 5)).requires_grad_()
        matrix = sinkhorn_balance(logits, None, 8)
        matrix.pow(2).sum().backward()
        assert matrix.isfinite().all() and logits.grad.isfinite().all()
    # The only block that fills a slot may have no weight left: the sorted slot is then still a number.
    grid = block_grid(7, 4)
    certain = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert soft_sort(certain, to_blocks(torch.randn(1, 7, 2), grid).unsqueeze(1), grid.filled).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_slot_with_little_weight_stays_finite_in_half_precision(dtype):
    grid = block_grid(6, 4)
    blocks = to_blocks(torch.randn(1, 6, 3), grid).unsqueeze(1)
    unlikely = torch.tensor([[1e-7, 1 - 1e-7], [1 - 1e-7, 1e-7]]).view(1, 1, 2, 2)
    mixed = soft_sort(unlikely, blocks.to(dtype), grid.filled)
    assert_close(mixed.float(), soft_sort(unlikely, blocks, grid.filled), 0.01)


def test_a_hard_choice_weighs_exactly_one():
    sort_matrix = torch.rand(3, 2, 40, 40).softmax(-1).requires_grad_()
    choice = hard_assignment(sort_matrix, torch.ones(1, 1, 40, 40, dtype=torch.bool), 3)
    assert (choice.weight == 1).all() and choice.weight.requires_grad


def test_gumbel_noise_has_its_distribution_and_its_generator():
    torch.manual_seed(3)
    noise = gumbel_noise(torch.empty(200_000))
    assert abs(noise.mean().item() - 0.5772) < 0.01
    assert abs(noise.var().item() - 1.6449) < 0.03
    torch.manual_seed(3)
    assert torch.equal(noise, gumbel_noise(torch.empty(200_000)))


def test_local_window_is_the_neighbouring_text():
    blocks = torch.arange(1, 9).view(1, 4, 2)
    assert local_window(blocks, range(-1, 1)).tolist() == [[[0, 0, 1, 2], [1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8]]]
    assert local_window(blocks, range(-1, 2))[0, 3].tolist() == [5, 6, 7, 8, 0, 0]
    assert local_window(blocks, range(-6, 1))[0, 1].tolist() == [0] * 10 + [1, 2, 3, 4]
