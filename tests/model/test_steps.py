# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Steps of one token: what is made more shortly for them is the same, and is used where it may be."""

import itertools

import pytest
import torch
from test_cache import in_chunks, make, make_cache

import attention_sinkhorn
from cached_layout_sinkhorn import layout_of_any_tokens, step_layout
from helpers import assert_close, tiny_config
from layout_sinkhorn import LayoutInputs, fixed_length
from modeling_sinkhorn import SinkhornForCausalLM
from rotary_sinkhorn import SinkhornRotaryEmbedding


HARD = {"sort_assignment": "hard"}
KINDS = [
    {},
    {"num_local_blocks": 3},
    {"num_local_blocks": 2, "num_sink_blocks": 1},
    HARD,
    HARD | {"num_local_blocks": 2, "num_sink_blocks": 2, "num_sorted_blocks": 2},
    {"layer_type": "local_attention", "num_local_blocks": 2, "num_sink_blocks": 1},
]


def assert_same(actual, expected, name):
    """Of tensors also the shape and type, in tuples at any depth."""
    if isinstance(expected, tuple):
        names = getattr(expected, "_fields", range(len(expected)))
        for part, one, other in zip(names, actual, expected, strict=True):
            assert_same(one, other, f"{name}.{part}")
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, name
        assert torch.equal(actual, expected), name
    else:
        assert actual == expected, name


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("overrides", KINDS, ids=str)
@torch.no_grad()
def test_the_layout_of_a_step_is_that_of_any_tokens(overrides, static):
    model = make(**overrides)
    config, rotary = model.config, SinkhornRotaryEmbedding(model.config)
    ids = torch.arange(40).view(2, 20)
    for past, shift in itertools.product((1, 3, 4, 7, 8, 10, 15), (None, 5)):
        cache = make_cache(model, static)
        positions = None if shift is None else torch.arange(20).unsqueeze(0) + shift
        model(ids[:, :past], position_ids=None if shift is None else positions[:, :past], cache=cache)
        inputs = LayoutInputs(
            shape=(2, 1),
            device=ids.device,
            position_ids=None if shift is None else positions[:, past : past + 1],
            past_length=past,
            past_counts=torch.full((2,), past),
        )
        arguments = config, inputs, lambda x: rotary.tables(x, torch.float32), cache.layers, fixed_length(cache)
        assert_same(step_layout(*arguments), layout_of_any_tokens(*arguments, may_read_values=True), f"{past}")


@pytest.mark.parametrize("overrides", KINDS, ids=str)
@torch.no_grad()
def test_steps_inside_a_block_take_the_short_way(overrides, monkeypatch):
    """Not those that open a block or fill it up, nor where fewer blocks are there than may be chosen."""
    taken, short_way = [], attention_sinkhorn.attend_in_block

    def spy(attention, projected, layout, cache):
        taken.append(layout.cached.equal_past)
        return short_way(attention, projected, layout, cache)

    monkeypatch.setattr(attention_sinkhorn, "attend_in_block", spy)
    model = make(num_hidden_layers=1, **overrides)
    ids = torch.randint(50, (2, 31))
    expected = model(ids, use_cache=False).logits
    assert_close(in_chunks(model, ids, None, [1], make_cache(model, False)), expected)
    first = 1
    if model.config.layer_types[0] == "sinkhorn_attention":
        first = 4
        if model.config.sort_assignment == "hard":
            others = model.config.num_sorted_blocks + model.config.num_local_blocks - 1 + model.config.num_sink_blocks
            first = 4 * others
    assert taken == [past for past in range(first, 31) if past % 4 in (1, 2)]


@torch.no_grad()
def test_steps_inside_a_block_go_on_after_a_crop():
    for overrides in KINDS:
        model = make(**overrides)
        ids, other = torch.randint(50, (2, 2, 27))
        cache = make_cache(model, False)
        in_chunks(model, ids, None, [1], cache)
        cache.crop(-5)
        changed = torch.cat((ids[:, :22], other[:, 22:]), dim=1)
        expected = model(changed, use_cache=False).logits[:, 22:]
        assert_close(in_chunks(model, changed, None, [1], cache, first=22), expected)


@pytest.mark.parametrize("overrides", [{}, HARD], ids=str)
def test_steps_with_gradients_take_the_long_way(overrides):
    torch.manual_seed(0)
    model = SinkhornForCausalLM(tiny_config(is_decoder=True, **overrides)).eval()
    ids = torch.randint(50, (1, 15))
    cache = make_cache(model, False)
    in_chunks(model, ids, None, [1], cache)[:, 9].sum().backward()
    weight = model.model.layers[0].self_attn.k_proj.weight
    gradient, weight.grad = weight.grad, None
    model(ids, use_cache=False).logits[:, 9].sum().backward()
    assert_close(gradient, weight.grad, 1e-4)
