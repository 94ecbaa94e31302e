# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Invariant 1: the attention layer equals the loops of `reference.py`, in outputs, maps and every gradient."""

import pytest
import torch

import sort_net_sinkhorn
from helpers import assert_close, layer_cases, padding_masks, tiny_config
from inputs_sinkhorn import make_layout
from layout_sinkhorn import LayoutInputs
from modeling_sinkhorn import SinkhornModel
from reference import reference_attention


def compare(config, num_tokens, attention_mask=None, position_ids=None, noise=None, monkeypatch=None):
    torch.manual_seed(0)
    config.rope_theta = config.rope_parameters["rope_theta"]
    config._attn_implementation = "eager"
    model = SinkhornModel(config).double()
    attention = model.layers[0].self_attn.train(noise is not None)
    for name, parameter in attention.named_parameters():
        if name.endswith(("bias", "_norm.weight")):  # otherwise all of one value
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if name.endswith("index_query_proj"):  # otherwise the same for every head that is merged
            torch.nn.init.normal_(parameter)
    batch = 2 if attention_mask is None else len(attention_mask)
    x = torch.randn(batch, num_tokens, config.hidden_size, dtype=torch.double, requires_grad=True)
    if noise is True:
        blocks = -(-num_tokens // config.block_size)
        noise = torch.randn(batch, config.num_key_value_heads, blocks, blocks, dtype=torch.double)
        monkeypatch.setattr(sort_net_sinkhorn, "gumbel_noise", lambda like: noise)

    model.rotary_emb.inv_freq = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).double() / config.head_dim)
    rotary = DoubleRotary(model.rotary_emb)
    layout = make_layout(config, LayoutInputs(x.shape[:2], x.device, attention_mask, position_ids), rotary)
    output, attention_map, sort_matrix = attention(x, layout, output_attentions=True, output_sort_matrices=True)
    expected = reference_attention(
        x, dict(attention.named_parameters()), config, config.layer_types[0], attention_mask, position_ids, noise
    )

    assert_close(output, expected.output, 1e-9)
    assert_close(attention_map, expected.attention_map, 1e-9)
    assert (sort_matrix is None) == (expected.sort_matrix is None)
    if sort_matrix is not None:
        assert_close(sort_matrix, expected.sort_matrix, 1e-9)

    direction = torch.randn_like(output)
    inputs = [x, *attention.parameters()]
    names = ["x", *(name for name, _ in attention.named_parameters())]
    gradients = torch.autograd.grad((output * direction).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected.output * direction).sum(), inputs, allow_unused=True)
    for name, gradient, expected_gradient in zip(names, gradients, expected_gradients):
        expected_gradient = torch.zeros_like(gradient) if expected_gradient is None else expected_gradient
        try:
            assert_close(gradient, expected_gradient, 1e-7)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None
    return dict(zip(names, gradients))


class DoubleRotary(torch.nn.Module):
    """The model's rotary tables in float64, so that the comparison can be as sharp as float64 allows."""

    def __init__(self, rotary):
        super().__init__()
        self.inv_freq = rotary.inv_freq

    def forward(self, position_ids):
        angles = position_ids.unsqueeze(-1).double() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 13])
@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
def test_every_layer_type(layer_type, assignment, is_decoder, num_tokens):
    compare(tiny_config(layer_type, sort_assignment=assignment, is_decoder=is_decoder), num_tokens)


@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
def test_padding_anywhere(layer_type, assignment, is_decoder):
    config = tiny_config(layer_type, sort_assignment=assignment, is_decoder=is_decoder, attention_bias=True)
    compare(config, 11, padding_masks(11))


@pytest.mark.parametrize("sort_net", ["linear", "mlp", "bilinear"])
@pytest.mark.parametrize("pooling", ["mean", "sum", "first"])
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_every_sort_net(sort_net, pooling, is_decoder, assignment):
    config = tiny_config(
        sort_net=sort_net, sort_pooling=pooling, is_decoder=is_decoder, sort_assignment=assignment, block_size=3
    )
    gradients = compare(config, 13, padding_masks(13)[:2])
    moved = [name for name, gradient in gradients.items() if gradient.abs().max() > 0]
    assert moved == list(gradients), "with several blocks every parameter has a gradient"


@pytest.mark.parametrize(
    "overrides",
    [
        {"sinkhorn_iterations": 0},
        {"sinkhorn_iterations": 1},
        {"sinkhorn_temperature": 0.1},
        {"causal_balancing": "capacity", "is_decoder": True},
        {"causal_balancing": "capacity", "is_decoder": True, "sinkhorn_temperature": 0.1, "sort_pooling": "first"},
        {"causal_balancing": "capacity", "is_decoder": True, "sort_assignment": "hard", "num_local_blocks": 2},
        {"num_local_blocks": 2},
        {"num_local_blocks": 3, "is_decoder": True},
        {"num_local_blocks": 2, "is_decoder": True, "sort_assignment": "hard"},
        {"num_sorted_blocks": 2, "sort_assignment": "hard"},
        {"num_sorted_blocks": 9, "sort_assignment": "hard", "is_decoder": True},
        {"num_local_blocks": 2, "num_sorted_blocks": 2, "sort_assignment": "hard"},
        {"block_size": 1},
        {"block_size": 7},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"head_dim": 6},
        {"attention_bias": "qkv"},
        {"attention_bias": "qkv", "qk_norm": True, "is_decoder": True, "sort_assignment": "hard"},
    ],
    ids=str,
)
def test_every_setting(overrides):
    compare(tiny_config(**overrides), 13, padding_masks(13))


@pytest.mark.parametrize("overrides", [{"sortcut_blocks": 1}, {"sortcut_blocks": 9}], ids=str)
def test_sortcut_budgets(overrides):
    for assignment in ("soft", "hard"):
        compare(tiny_config("sortcut_attention", sort_assignment=assignment, **overrides), 13, padding_masks(13))


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_given_positions_and_noise(assignment, is_decoder, monkeypatch):
    config = tiny_config(sort_assignment=assignment, is_decoder=is_decoder)
    compare(config, 13, padding_masks(13), torch.arange(13).unsqueeze(0) * 2 + 5, noise=True, monkeypatch=monkeypatch)
