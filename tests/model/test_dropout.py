# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Dropout of attention weights that are not kept. `test_block_attention.py` has the formula for attention of blocks; here
are what is drawn, attention of tokens to blocks of their own choice, and models.
"""

import math

import pytest
import torch

import routed_attention_sinkhorn
from dropout_sinkhorn import DroppedWeights
from helpers import BLOCK, TOKEN, assert_close, padding_masks, tiny_config
from modeling_sinkhorn import SinkhornModel
from routed_attention_sinkhorn import Sources, attend_by_block
from sorting_sinkhorn import HardSort


def test_as_many_weights_are_dropped_as_asked_for_and_others_each_time():
    """2 * 262,144 of them: five standard deviations of the mean are 0.002, of products of two of them less than 0.004."""
    dropped, weights = DroppedWeights(0.1, 3, torch.device("cpu")), torch.empty(4, 16, 4096)
    kept = torch.stack([dropped.factors(weights).clone() for _ in range(2)])
    assert set(kept.unique().tolist()) == {0.0, kept.max().item()}
    assert kept.max() == pytest.approx(1 / 0.9, rel=1e-4)
    kept = kept.ne(0).double()
    assert abs(kept.mean() - 0.9) < 0.002
    for one, other in ((kept[0], kept[1]), (kept[..., 1:], kept[..., :-1]), (kept[:, :, 1:], kept[:, :, :-1])):
        assert abs((one * other).mean() - 0.81) < 0.004


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_same_seed_drops_the_same_weights_of_any_shape(dtype):
    shapes = [(3, 5, 7), (2, 2), (1, 1, 1), (4, 5, 9)]
    first, again, other = (DroppedWeights(0.5, seed, torch.device("cpu")) for seed in (1, 1, 2))
    same = []
    for shape in shapes:
        weights = torch.empty(shape, dtype=dtype)
        factors = first.factors(weights)
        assert factors.dtype == dtype and factors.shape == shape
        assert torch.equal(factors, again.factors(weights))
        same.append(torch.equal(factors, other.factors(weights)))
    assert not all(same)


def routed_case(destinations=3, per_block=5):
    """Random inputs of `attend_by_block`, with places of the choice that are empty, and slots and keys that are hidden."""
    torch.manual_seed(0)
    batch, groups, repeats, blocks, b, width, always = 2, 2, 2, 4, 3, 4, 6

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    query = random(batch, destinations, per_block, groups * repeats, width)
    index = torch.rand(batch, groups, destinations * per_block, blocks).argsort(-1)[..., :2]
    chosen = torch.rand(index.shape) < 0.8
    weight = torch.ones(index.shape, dtype=torch.float64, requires_grad=True)
    filled = torch.ones(batch, blocks, b, dtype=torch.bool)
    filled[1, -1, 1:] = False
    always_mask = torch.rand(batch, destinations, per_block, always) < 0.8
    always_mask[..., 0] = True
    tensors = [
        *(random(batch, groups, blocks, b, width) for _ in "kv"),
        *(random(batch, destinations, groups, always, width) for _ in "kv"),
    ]
    sources = Sources(*tensors[:2], filled, *tensors[2:], always_mask)
    return query, HardSort(index, chosen, weight), sources, [query, *tensors, weight]


@pytest.fixture
def small_parts(monkeypatch):
    """Several parts, and several tiles in each."""
    monkeypatch.setitem(routed_attention_sinkhorn.MAX_PARTIAL_OUTPUTS, "cpu", 200)
    monkeypatch.setitem(routed_attention_sinkhorn.TILES_AT_ONCE, "cpu", 2)


@pytest.mark.usefixtures("small_parts")
def test_what_a_token_drops_is_right_in_the_mean():
    query, choice, sources, _ = routed_case()
    with torch.no_grad():
        expected = attend_by_block(query, choice, sources, 0.5)
        many = torch.stack([attend_by_block(query, choice, sources, 0.5, 0.2) for _ in range(400)])
    assert many.std(0).min() > 0
    assert ((many.mean(0) - expected).abs() < 5.5 * many.std(0) / math.sqrt(400)).all()


@pytest.mark.usefixtures("small_parts")
def test_backward_drops_what_forward_dropped():
    query, choice, sources, inputs = routed_case()

    def attend(query, key, value, always_key, always_value):
        torch.manual_seed(7)
        moved = sources._replace(key=key, value=value, always_key=always_key, always_value=always_value)
        return attend_by_block(query, choice, moved, 0.5, 0.3)

    torch.autograd.gradcheck(attend, inputs[:-1], atol=1e-6, fast_mode=True)


def test_weights_of_a_choice_get_the_gradient_of_what_was_kept():
    """They are 1, and multiply the keys and the values of their block. Here no other token chose it."""
    query, choice, sources, inputs = routed_case(destinations=1, per_block=1)
    output = attend_by_block(query, choice, sources, 0.5, 0.3)
    _, key, value, _, _, weight = torch.autograd.grad(output, inputs, torch.randn_like(output))
    by_block = (sources.key * key + sources.value * value).sum((-1, -2)).unsqueeze(2)  # (B, G, 1, N)
    assert_close(weight, by_block.gather(-1, choice.index) * choice.chosen, 1e-12)


@pytest.mark.parametrize("route", [BLOCK | {"sort_net": "keys"}, TOKEN | {"sort_net": "keys"}, {}], ids=str)
def test_dropout_follows_the_seed_and_ends_with_training(route):
    """Also where activation checkpointing computes the forward pass again."""
    torch.manual_seed(0)
    model = SinkhornModel(
        tiny_config("sinkhorn_attention", attention_dropout=0.4, gumbel_noise=False, **route)
    ).double()
    ids, mask = torch.randint(3, 50, (5, 45)), padding_masks(45)

    def gradients(seed):
        torch.manual_seed(seed)
        output = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        return torch.autograd.grad(output.square().sum(), [p for p in model.parameters() if p.requires_grad],
                                   allow_unused=True)  # fmt: skip

    model.eval()
    whole = gradients(1)
    assert all(x is None or torch.equal(x, y) for x, y in zip(gradients(2), whole))
    model.train()
    dropped = gradients(1)
    assert all(x is None or torch.equal(x, y) for x, y in zip(gradients(1), dropped))
    assert not torch.equal(gradients(2)[0], dropped[0]) and not torch.equal(dropped[0], whole[0])
    model.gradient_checkpointing_enable()
    for x, y in zip(gradients(1), dropped):
        if y is not None:
            assert_close(x, y, 1e-9)
