# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The pure functions of `sorting_sinkhorn.py`: grid and assignment (invariants 2 and 3)."""

import pytest
import torch

from balancing_sinkhorn import sinkhorn_balance
from helpers import assert_close, padding_masks
from sorting_sinkhorn import (
    block_grid,
    from_blocks,
    gumbel_noise,
    hard_assignment,
    hard_sort,
    local_window,
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
