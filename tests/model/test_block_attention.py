# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Block attention in chunks, on a CPU, equals the formula and what the model does elsewhere, gradients included."""

import pytest
import torch

import attention_sinkhorn
import block_attention_sinkhorn
from block_attention_sinkhorn import GatheredBlocks, MixedBlocks, block_attention, is_block_attention_supported
from dropout_sinkhorn import DroppedWeights
from helpers import assert_close, layer_cases, padding_masks, tiny_config
from modeling_sinkhorn import SinkhornModel
from rotary_sinkhorn import RotaryTables, apply_rotary
from sorting_sinkhorn import gather_blocks


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def rotation(batch, blocks, block_size, width):
    angles = torch.randn(batch, blocks, block_size, width // 2, dtype=torch.float64).repeat(1, 1, 1, 2)
    return RotaryTables(angles.cos(), angles.sin())


def formula(query, key, value, tables, sorted_blocks, mask, scaling, factors=1):
    """One softmax over [sorted ; own], written down. Shapes as in `block_attention`; `factors` of the weights."""
    turned = apply_rotary(key, tables.cos.unsqueeze(1), tables.sin.unsqueeze(1))
    keys, values = turned, value
    if isinstance(sorted_blocks, MixedBlocks):
        mixed_key = apply_rotary(
            sorted_blocks.key, sorted_blocks.tables.cos.unsqueeze(1), sorted_blocks.tables.sin.unsqueeze(1)
        )
        keys, values = torch.cat((mixed_key, turned), dim=3), torch.cat((sorted_blocks.value, value), dim=3)
    elif sorted_blocks is not None:
        gathered = (
            x * sorted_blocks.weight[..., None, None] for x in gather_blocks(sorted_blocks.index, turned, value)
        )
        keys, values = (torch.cat((x.flatten(3, 4), own), dim=3) for x, own in zip(gathered, (turned, value)))
    repeats = query.shape[3] // key.shape[1]
    keys, values = (x.repeat_interleave(repeats, dim=1).transpose(1, 2) for x in (keys, values))  # (B, N, H, K, D)
    query = apply_rotary(query, tables.cos.unsqueeze(3), tables.sin.unsqueeze(3)).transpose(2, 3)
    scores = query @ keys.mT * scaling
    if mask is not None:
        mask = mask.repeat_interleave(repeats, dim=2) if mask.shape[2] > 1 else mask
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) * factors @ values).transpose(2, 3)


# Rows, blocks, slots, query heads, key/value heads, width; more blocks than a chunk holds, and a rest.
SIZES = [(1, 1, 4, 2, 2, 4), (2, 5, 8, 4, 2, 6), (2, 7, 2, 3, 1, 2)]


def attention_case(sizes, kind, num_gathered, shared_tables):
    """
    Random rotary tables; what gradients are asked of: queries, keys, values and what is sorted next to them; the latter
    as `block_attention` takes it; and how many blocks that are.
    """
    torch.manual_seed(0)
    batch, blocks, b, heads, groups, width = sizes
    query, (key, value) = (
        random(batch, blocks, b, heads, width),
        (random(batch, groups, blocks, b, width) for _ in "kv"),
    )
    tables = [rotation(1 if shared_tables else batch, blocks, b, width) for _ in range(2)]
    inputs, sorted_blocks, num_sorted = [query, key, value], None, 0
    if kind == "mixed":
        mixed = [random(batch, groups, blocks, b, width) for _ in "kv"]
        sorted_blocks, num_sorted = MixedBlocks(*mixed, tables[1]), 1
        inputs += mixed
    elif kind == "gathered":
        num_sorted = num_gathered
        index = torch.randint(blocks, (batch, groups, blocks, num_sorted))
        sorted_blocks = GatheredBlocks(index, torch.ones(index.shape, dtype=torch.float64, requires_grad=True))
        inputs.append(sorted_blocks.weight)
    return tables, inputs, sorted_blocks, num_sorted


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["nothing", "mixed", "gathered"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared_tables", [False, True])
def test_equals_the_formula(sizes, kind, masked, shared_tables, monkeypatch):
    monkeypatch.setattr(block_attention_sinkhorn, "CHUNK_TOKENS", 2 * sizes[2])
    batch, blocks, b, heads, groups, width = sizes
    tables, inputs, sorted_blocks, num_sorted = attention_case(sizes, kind, 3, shared_tables)
    query, key, value, *_ = inputs
    mask = None
    if masked:
        mask = torch.rand(batch, blocks, groups, b, (num_sorted + 1) * b) < 0.7
        mask[..., -b:] |= torch.eye(b, dtype=torch.bool)  # a query sees itself
    actual = block_attention(query, key, value, tables[0], sorted_blocks, mask, 0.3)
    expected = formula(query, key, value, tables[0], sorted_blocks, mask, 0.3)
    assert_close(actual, expected, 1e-12)
    upstream = torch.randn_like(expected)
    for grad, expected_grad in zip(*(torch.autograd.grad(output, inputs, upstream) for output in (actual, expected))):
        assert_close(grad, expected_grad, 1e-12)


@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
@pytest.mark.parametrize("overrides", [{}, {"num_local_blocks": 2}, {"attention_bias": True}])
def test_the_model_computes_the_same_without_it(layer_type, assignment, is_decoder, overrides, monkeypatch):
    settings = {"sort_assignment": assignment, "is_decoder": is_decoder, **overrides}
    torch.manual_seed(0)
    model = SinkhornModel(tiny_config(layer_type, **settings)).double().train()
    mask = padding_masks(13)
    ids = torch.randint(3, 50, mask.shape)
    used = []
    results = []
    for choice in (is_block_attention_supported, lambda query: False):
        monkeypatch.setattr(
            attention_sinkhorn,
            "is_block_attention_supported",
            lambda query, choice=choice: used.append(choice(query)) or used[-1],
        )
        torch.manual_seed(1)  # of the noise
        output = model(ids, attention_mask=mask).last_hidden_state
        parameters = list(model.parameters())
        results.append((output, *torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)))
    assert layer_type == "full_attention" or (any(used) and not all(used))
    for actual, expected in zip(*results):
        if expected is not None:
            assert_close(actual, expected, 1e-9)


HALF = [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)]


@pytest.mark.parametrize("dtype, in_bfloat16", HALF)
@pytest.mark.parametrize("kind", ["nothing", "mixed", "gathered"])
def test_half_precision_is_rounded_once_unless_the_processor_computes_in_it(dtype, in_bfloat16, kind, monkeypatch):
    """In float32 chunks only the results are rounded; in bfloat16, scores and weights are, too."""
    monkeypatch.setattr(block_attention_sinkhorn, "computes_in_bfloat16", lambda: in_bfloat16)
    monkeypatch.setattr(block_attention_sinkhorn, "CHUNK_TOKENS", 16)
    tables, inputs, sorted_blocks, num_sorted = attention_case(SIZES[1], kind, 3, False)
    tables = [RotaryTables(*(x.to(dtype) for x in table)) for table in tables]
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    mask = torch.rand(2, 5, 2, 8, (num_sorted + 1) * 8) < 0.7
    mask[..., -8:] |= torch.eye(8, dtype=torch.bool)

    def run(attend, inputs, tables):
        sorted_next = sorted_blocks
        if kind == "mixed":
            sorted_next = MixedBlocks(*inputs[3:], tables[1])
        elif kind == "gathered":
            sorted_next = GatheredBlocks(sorted_blocks.index, inputs[3])
        output = attend(*inputs[:3], tables[0], sorted_next, mask, 0.3)
        return output, *torch.autograd.grad(output, inputs, torch.ones_like(output))

    actual = run(block_attention, inputs, tables)
    exact = run(
        formula,
        [x.detach().double().requires_grad_() for x in inputs],
        [RotaryTables(*(x.double() for x in table)) for table in tables],
    )
    # The distance to the next number, relative; of sums of a few numbers that may cancel.
    tolerance = torch.finfo(dtype).eps * (8 if in_bfloat16 else 0.51)
    for x, expected in zip(actual, exact):
        assert x.dtype == dtype
        assert_close(x.double(), expected, tolerance * expected.abs().max().item())


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["nothing", "mixed", "gathered"])
def test_dropped_weights_have_no_part_in_outputs_and_gradients(sizes, kind, monkeypatch):
    monkeypatch.setattr(block_attention_sinkhorn, "CHUNK_TOKENS", 2 * sizes[2])
    drawn = []
    draw = DroppedWeights.factors
    monkeypatch.setattr(
        DroppedWeights, "factors", lambda self, weights: drawn.append(draw(self, weights).clone()) or drawn[-1].clone()
    )
    tables, inputs, sorted_blocks, _ = attention_case(sizes, kind, 3, False)
    batch, blocks, b, heads, *_ = sizes
    actual = block_attention(*inputs[:3], tables[0], sorted_blocks, None, 0.3, 0.25)
    factors = [x.reshape(-1, heads, b, x.shape[-1]) for x in drawn]
    grads = torch.autograd.grad(actual, inputs, torch.ones_like(actual))
    assert len(drawn) == 2 * len(factors)
    assert all(torch.equal(again, x) for again, x in zip(drawn[len(factors) :], drawn))  # the same ones backward
    factors = torch.cat(factors).view(batch, blocks, heads, b, -1)
    assert ((factors == 0) | ((factors - 4 / 3).abs() < 1e-12)).all()
    expected = formula(*inputs[:3], tables[0], sorted_blocks, None, 0.3, factors)
    assert_close(actual, expected, 1e-12)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected, inputs, torch.ones_like(expected))):
        assert_close(grad, expected_grad, 1e-12)


def test_is_for_every_type_and_not_for_graphs():
    query = torch.zeros(1, 2, 4, 2, 8)
    assert all(
        is_block_attention_supported(query.to(dtype))
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    )
    assert not is_block_attention_supported(query.to("meta"))
    compiled = torch.compile(lambda x: x + 1 if is_block_attention_supported(x) else x - 1, backend="eager")
    assert compiled(query).max() == -1


def test_keeps_nothing_of_the_size_of_the_scores():
    """For backward: the inputs, and nothing that is larger than the largest of them."""
    query, key, value = random(1, 64, 4, 2, 8), *(random(1, 2, 64, 4, 8) for _ in "kv")
    tables = rotation(1, 64, 4, 8)
    index = torch.randint(64, (1, 2, 64, 4))
    sorted_blocks = GatheredBlocks(index, torch.ones(index.shape, dtype=torch.float64, requires_grad=True))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        block_attention(query, key, value, tables, sorted_blocks, None, 0.3)
    assert kept and max(kept) == query.numel()
