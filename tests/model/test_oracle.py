# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The oracle itself, where its formulas can be checked by hand or by a second path: routing by token, sinks, shares."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from helpers import assert_close, padding_masks
from reference import (
    balance_tokens,
    block_grid,
    candidate_blocks,
    fit_capacity,
    log_shares,
    normalise,
    reference_attention,
    seen_blocks,
    sink_blocks,
)


SCORERS = ("bilinear", "keys", "index")
CASES = list(itertools.product(SCORERS, ("block", "token"), (False, True)))


def settings(**overrides):
    """What the oracle reads of a configuration."""
    fields = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "block_size": 4,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "is_decoder": False,
        "sort_granularity": "token",
        "sort_assignment": "hard",
        "sort_net": "bilinear",
        "sort_pooling": "mean",
        "sort_capacity": 1.5,
        "causal_balancing": "equality",
        "sinkhorn_iterations": 2,
        "sinkhorn_temperature": 0.5,
        "num_sorted_blocks": 1,
        "num_local_blocks": 1,
        "num_sink_blocks": 0,
        "key_piece_size": 2,
        "num_index_heads": None,
    }
    return SimpleNamespace(**(fields | overrides))


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


def random_weights(hidden=6, rank=4):
    shapes = {
        "q_proj.weight": (16, hidden),
        "k_proj.weight": (8, hidden),
        "v_proj.weight": (8, hidden),
        "o_proj.weight": (hidden, 16),
        "sort_net.row_proj.weight": (8, hidden),
        "sort_net.column_proj.weight": (8, hidden),
        "sort_net.index_proj": (2, 4, rank),
    }
    return {name: torch.randn(*shape, dtype=torch.double, requires_grad=True) for name, shape in shapes.items()}


def random_input(rows=1, length=14, hidden=6):
    return torch.randn(rows, length, hidden, dtype=torch.double, requires_grad=True)


def gradients(output, inputs):
    torch.manual_seed(1)
    return torch.autograd.grad((output * torch.randn_like(output)).sum(), inputs, allow_unused=True, retain_graph=True)


# Who may be read -----------------------------------------------------------------------------------------------------


def test_sinks_and_candidates_by_hand():
    blocks = [[0, 1], [2, 3], [4, 5], [6, 7], [8], []]
    encoder = settings(num_sink_blocks=2, block_size=2)
    assert [sink_blocks(blocks, i, encoder) for i in range(5)] == [[1], [0], [0, 1], [0, 1], [0, 1]]
    assert [candidate_blocks(blocks, i, encoder) for i in range(5)] == [[2, 3, 4], [2, 3, 4], [3, 4], [2, 4], [2, 3]]
    decoder = settings(num_sink_blocks=1, num_local_blocks=2, is_decoder=True, block_size=2)
    assert [sink_blocks(blocks, i, decoder) for i in range(5)] == [[], [], [0], [0], [0]]
    assert [candidate_blocks(blocks, i, decoder) for i in range(5)] == [[], [], [], [1], [1, 2]]


def test_sinks_beyond_the_text_are_none():
    assert sink_blocks([[0, 1], [2], []], 0, settings(num_sink_blocks=3)) == [1]


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("layer_type, assignment", [("local_attention", "soft"), ("sinkhorn_attention", "soft")])
def test_enough_sinks_are_full_attention_where_nothing_is_sorted(layer_type, assignment, is_decoder):
    """A soft sort is one more entry a slot: it changes the output, but every token is then read as it is, too."""
    config = settings(sort_granularity="block", sort_assignment=assignment, num_sink_blocks=9, is_decoder=is_decoder)
    x, weights = random_input(), random_weights()
    actual = reference_attention(x, weights, config, layer_type)
    expected = reference_attention(x, weights, config, "full_attention")
    if layer_type == "local_attention":
        assert_close(actual.output, expected.output, 1e-12)
    assert ((actual.attention_map > 0) == (expected.attention_map > 0)).all()


@pytest.mark.parametrize("num_sinks, layer_type", [(0, "sinkhorn_attention"), (1, "mixture_attention")])
@pytest.mark.parametrize("sort_net, granularity, is_decoder", CASES)
def test_full_coverage_is_full_attention(sort_net, granularity, is_decoder, num_sinks, layer_type):
    config = settings(
        sort_net=sort_net,
        sort_granularity=granularity,
        is_decoder=is_decoder,
        num_sorted_blocks=9,
        num_sink_blocks=num_sinks,
    )
    mask = padding_masks(14)[2 * num_sinks : 2 * num_sinks + 1]
    x, weights = random_input(), random_weights()
    actual = reference_attention(x, weights, config, layer_type, mask)
    expected = reference_attention(x, weights, config, "full_attention", mask)
    times = 2 if layer_type == "mixture_attention" else 1
    assert_close(actual.output, times * expected.output, 1e-12)
    assert_close(actual.attention_map, expected.attention_map, 1e-12)
    if sort_net == "keys":  # its choice has no gradient of its own
        for name in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            (gradient,) = gradients(actual.output, [weights[name]])
            (expected_gradient,) = gradients(times * expected.output, [weights[name]])
            assert_close(gradient, expected_gradient, 1e-10)


def test_each_token_reads_its_choice_alone():
    config = settings(num_sink_blocks=1, num_sorted_blocks=1)
    result = reference_attention(random_input(length=18), random_weights(), config, "sinkhorn_attention")
    blocks = block_grid(torch.ones(1, 18), 4)[0]
    choices = set()
    for i, block in enumerate(blocks):
        for token in block:
            read = {source // 4 for source in result.attention_map[0, 0, token].nonzero().flatten().tolist()}
            others = read - {i, 0}
            assert len(others) == 1
            assert others == {int(result.sort_matrix[0, 0, token].argmax())}
            choices.add((i, *others))
    assert len(choices) > len(blocks), "tokens of one block choose differently"


# Shares --------------------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    query, keys = numbers(2), numbers([0.5], [1.5], [-1], [0], [1])
    actual = log_shares(query, keys, [[0, 1, 2], [3, 4]], 2, 0.5).exp()
    # Pieces: mean 1 of two keys, -1 of one; 0.5 of two. The scale times the query is 1.
    first, second = 2 * math.exp(1) + math.exp(-1), 2 * math.exp(0.5)
    assert_close(actual, numbers(first, second) / (first + second), 1e-12)


def test_a_decoder_sees_part_of_its_own_block():
    blocks = [[1, 2, 4], [5, 6]]
    assert seen_blocks(blocks, 2, settings(is_decoder=True, block_size=3)) == [[1, 2]]
    assert seen_blocks(blocks, 5, settings(is_decoder=True, block_size=3)) == [[1, 2, 4], [5]]
    assert seen_blocks(blocks, 2, settings(block_size=3)) == blocks


@pytest.mark.parametrize("granularity", ["block", "token"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_pieces_of_one_token_are_an_index_that_changes_nothing(is_decoder, granularity):
    weights = random_weights()
    identity = torch.eye(4, dtype=torch.double).expand(2, 4, 4)
    fields = {"is_decoder": is_decoder, "sort_granularity": granularity}
    x, mask = random_input(2), padding_masks(14)[1:3]
    keys = reference_attention(
        x, weights, settings(sort_net="keys", key_piece_size=1, **fields), "sinkhorn_attention", mask
    )
    index = reference_attention(
        x,
        weights | {"sort_net.index_proj": identity},
        settings(sort_net="index", **fields),
        "sinkhorn_attention",
        mask,
    )
    assert_close(keys.sort_matrix, index.sort_matrix, 1e-12)
    assert_close(keys.output, index.output, 1e-12)
    assert not keys.sort_matrix.requires_grad and index.sort_matrix.requires_grad


def test_shares_of_single_keys_are_what_full_attention_gives_a_block():
    """One query head a group, no balancing and no temperature: P is the map of full attention over the candidates."""
    config = settings(
        sort_net="keys", key_piece_size=1, num_key_value_heads=4, sinkhorn_iterations=0, sinkhorn_temperature=1
    )
    x, weights = random_input(length=12), random_weights()
    for name in ("k_proj.weight", "v_proj.weight"):
        weights[name] = torch.randn(16, 6, dtype=torch.double)
    matrix = reference_attention(x, weights, config, "sinkhorn_attention").sort_matrix
    full = reference_attention(x, weights, config, "full_attention").attention_map
    share = full.unflatten(-1, (3, 4)).sum(-1)  # (B, H, L, N)
    for token in range(12):
        share[:, :, token, token // 4] = 0
    assert_close(matrix, share / share.sum(-1, keepdim=True), 1e-12)


# Balancing -----------------------------------------------------------------------------------------------------------


def test_a_column_step_by_hand():
    rows = {5: numbers(0, 0.9, 0.1).log(), 7: numbers(0, 0.6, 0.4).log()}
    candidates = {5: [1, 2], 7: [1, 2]}
    encoder = settings(sort_capacity=1.0)  # each block is to be used once, 2 tokens / 2 candidates
    fitted = fit_capacity(rows, candidates, encoder)
    assert_close(fitted[5].exp(), numbers(0, 0.9 / 1.5, 0.1), 1e-12)
    assert_close(fitted[7].exp(), numbers(0, 0.6 / 1.5, 0.4), 1e-12)
    decoder = settings(sort_capacity=1.0, is_decoder=True)  # the first token has half of that
    fitted = fit_capacity(rows, candidates, decoder)
    assert_close(fitted[5].exp(), numbers(0, 0.5, 0.1), 1e-12)
    assert_close(fitted[7].exp(), numbers(0, 0.6 / 1.5, 0.4), 1e-12)


@pytest.mark.parametrize("capacity", [1.0, 1.5])
def test_no_block_is_above_its_capacity_after_a_column_step(capacity):
    config = settings(sort_capacity=capacity, num_sink_blocks=1)
    blocks = block_grid(torch.ones(1, 18), 4)[0]
    candidates = {token: candidate_blocks(blocks, i, config) for i, block in enumerate(blocks) for token in block}
    rows = {}
    for token in candidates:
        logits = torch.full((5,), -math.inf, dtype=torch.double)
        logits[candidates[token]] = 2 * torch.randn(len(candidates[token]), dtype=torch.double)
        logits[3] += 2  # many want it
        rows[token] = normalise(logits)
    before = torch.stack(list(rows.values())).exp().sum(0)
    after = torch.stack(list(fit_capacity(rows, candidates, config).values())).exp().sum(0)
    even = [sum(1 / len(candidates[token]) for token in candidates if j in candidates[token]) for j in range(5)]
    room = capacity * numbers(*even)
    assert (before > room + 0.1).any(), "otherwise the step does nothing"
    assert_close(after, torch.minimum(before, room), 1e-12)


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_rows_sum_to_one_over_their_candidates(iterations, is_decoder):
    config = settings(sinkhorn_iterations=iterations, is_decoder=is_decoder, num_local_blocks=2, num_sink_blocks=1)
    mask = padding_masks(25)
    for row, blocks in enumerate(block_grid(mask, 4)):
        matrix = balance_tokens(torch.randn(25, 7, dtype=torch.double), blocks, config)
        allowed = torch.zeros_like(matrix)
        for i, block in enumerate(blocks):
            for token in block:
                allowed[token, candidate_blocks(blocks, i, config)] = 1
        assert ((matrix > 0) == (allowed > 0)).all()
        assert_close(matrix.sum(-1), allowed.amax(-1), 1e-12)
        assert (matrix[mask[row] == 0] == 0).all()


def test_a_causal_prefix_of_the_sort_matrix_is_that_of_the_prefix():
    config = settings(is_decoder=True, sort_capacity=1.0)
    z = 2 * torch.randn(21, 6, dtype=torch.double)
    whole = balance_tokens(z, block_grid(torch.ones(1, 21), 4)[0], config)
    part = balance_tokens(z[:14, :4], block_grid(torch.ones(1, 14), 4)[0], config)
    assert_close(whole[:14, :4], part, 1e-12)
    assert whole[:14, 4:].abs().sum() == 0


# Where gradients go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort_net, granularity, is_decoder", CASES)
def test_what_learns_to_choose(sort_net, granularity, is_decoder):
    config = settings(sort_net=sort_net, sort_granularity=granularity, is_decoder=is_decoder)
    x, weights = random_input(length=18), random_weights(rank=3)
    output = reference_attention(x, weights, config, "sinkhorn_attention").output
    grads = dict(zip(weights, gradients(output, list(weights.values()))))
    learning = {name for name, gradient in grads.items() if gradient is not None and gradient.abs().max() > 0}
    own = {"bilinear": {"row_proj.weight", "column_proj.weight"}, "index": {"index_proj"}, "keys": set()}[sort_net]
    assert {name for name in learning if name.startswith("sort_net")} == {f"sort_net.{name}" for name in own}
    assert all(gradient is None or gradient.isfinite().all() for gradient in grads.values())
