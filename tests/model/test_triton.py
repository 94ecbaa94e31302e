# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The kernels for a GPU compute what the torch path and the formula do, gradients included. Where there is no GPU, Triton's
interpreter runs them on the CPU, which tells whether they are right, not whether they compile.
"""

import numpy as np
import pytest
import torch
from packaging.version import Version
from test_block_attention import attention_case, formula, rotation

import attention_sinkhorn
import balancing_sinkhorn
import block_attention_sinkhorn
import sorting_sinkhorn
from helpers import assert_close, in_pairs, padding_masks, tiny_config
from modeling_sinkhorn import SinkhornModel


slow = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.importorskip("triton").__version__
NUMPY_REFUSES_ITS_LOOPS = (
    DEVICE == "cpu" and Version(TRITON) < Version("3.5") and Version(np.__version__) >= Version("2.4")
)
import triton_attention_sinkhorn  # noqa: E402
import triton_balancing_sinkhorn  # noqa: E402
from triton_sinkhorn import tl  # noqa: E402


# Triton 3.4 comes with torch 2.8. Only on a CPU: no kernel for a GPU goes through NumPy.
needs_loops = pytest.mark.skipif(
    NUMPY_REFUSES_ITS_LOOPS, reason=f"the interpreter of triton {TRITON} cannot count a loop with numpy 2.4"
)


def shrink_tiles(monkeypatch, **sizes):
    """So that few blocks are several tiles; where the interpreter runs them, as a compiled kernel keeps its sizes."""
    if DEVICE == "cpu":
        for name, size in sizes.items():
            monkeypatch.setattr(triton_balancing_sinkhorn, name, tl.constexpr(size))


@needs_loops
@pytest.mark.parametrize("size, masked, whole", in_pairs([(1, 2), (5, 0), (8, 1), (9, 3)], [False, True], [0, 128]))
def test_balancing(size, masked, whole, monkeypatch):
    num_blocks, iterations = size
    monkeypatch.setattr(triton_balancing_sinkhorn, "MAX_BLOCKS_IN_ONE_PROGRAM", whole)
    shrink_tiles(monkeypatch, LINES_PER_TILE=4, ENTRIES_PER_TILE=8)
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 2, num_blocks, num_blocks, device=DEVICE)).requires_grad_()
    allowed = None
    if masked:
        has_tokens = torch.rand(2, num_blocks, device=DEVICE) < 0.7  # rows and columns that allow nothing
        allowed = (has_tokens.unsqueeze(-1) & has_tokens.unsqueeze(-2)).unsqueeze(1)
    expected = balancing_sinkhorn.sinkhorn_balance(logits.double(), allowed, iterations)
    masked_logits = logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))
    actual = triton_balancing_sinkhorn.balance(masked_logits, iterations)
    assert_close(actual.double(), expected, 1e-5)
    upstream = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, logits, upstream)
    (grad,) = torch.autograd.grad(actual, logits, upstream.float())
    assert_close(grad, expected_grad, 1e-4)


@needs_loops
@pytest.mark.parametrize(
    "size, masked, capacity",
    in_pairs([(1, 2), (2, 0), (2, 1), (10, 3)], [False, True], [False, True])
    + [pytest.param((11, 1), False, True, marks=slow), pytest.param((11, 1), True, False, marks=slow)],
)
def test_causal_balancing(size, masked, capacity, monkeypatch):
    num_blocks, iterations = size
    shrink_tiles(monkeypatch, CAUSAL_ROWS=4, CAUSAL_COLUMNS=4, LINES_PER_TILE=4, ENTRIES_PER_TILE=8)
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 1, num_blocks, num_blocks, device=DEVICE)).requires_grad_()
    allowed = torch.ones(num_blocks, num_blocks, dtype=torch.bool, device=DEVICE).tril(-1).expand(2, 1, -1, -1)
    if masked:  # documents in one row, and empty blocks
        document = torch.randint(3, (2, num_blocks), device=DEVICE).sort(-1).values
        allowed = allowed & sorting_sinkhorn.same_document(document, document).unsqueeze(1)
        allowed = allowed & (torch.rand(2, 1, 1, num_blocks, device=DEVICE) < 0.7)
    expected, sums = balancing_sinkhorn.causal_sinkhorn_balance(
        logits.double(), allowed, iterations, capacity=capacity
    )
    masked_logits = logits.masked_fill(~allowed, float("-inf"))
    actual, actual_sums = triton_balancing_sinkhorn.balance_causally(masked_logits, iterations, capacity)
    assert_close(actual.double(), expected, 1e-5)
    known = sums > balancing_sinkhorn.causal_floor(torch.float32)
    if iterations:
        assert_close(actual_sums.double().masked_fill(~known, 0), sums.masked_fill(~known, 0), 1e-5)
    assert (actual_sums[~known] == float("-inf")).all()
    upstream = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, logits, upstream)
    (grad,) = torch.autograd.grad(actual, logits, upstream.float())
    assert_close(grad, expected_grad, 1e-4)


# Rows, blocks, slots, query heads, key/value heads, width.
SIZES = [(1, 1, 16, 2, 2, 32), (2, 2, 16, 4, 2, 32)]


KINDS, MASKS = ["nothing", "mixed", "gathered"], ["no", "keys", "queries"]


@pytest.mark.parametrize(
    "sizes, kind, masked",
    [
        # Each kind of sorting and of mask once with one block and once with several; the rest of the product is slow.
        pytest.param(sizes, kind, masked, marks=() if (KINDS.index(kind) - MASKS.index(masked)) % 3 == turn else slow)
        for turn, sizes in enumerate(SIZES)
        for kind in KINDS
        for masked in MASKS
    ],
)
def test_block_attention(sizes, kind, masked):
    batch, blocks, b, heads, groups, width = sizes
    tables, inputs, sorted_blocks, num_sorted = attention_case(sizes, kind, 2, shared_tables=masked == "keys")
    query, key, value, *_ = inputs
    mask = None
    if masked == "keys":
        mask = torch.rand(batch, blocks, 1, 1, (num_sorted + 1) * b) < 0.7
        mask[..., -1] = True
    elif masked == "queries":
        mask = torch.rand(batch, blocks, groups, b, (num_sorted + 1) * b) < 0.7
        mask[..., -b:] |= torch.eye(b, dtype=torch.bool)
    expected = formula(query, key, value, tables[0], sorted_blocks, mask, 0.3)
    upstream = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)

    def single(x):
        return x.detach().to(DEVICE, torch.float32).requires_grad_(x.requires_grad)

    inputs = [single(x) for x in inputs]
    tables = [tuple(single(x) for x in table) for table in tables]
    actual = triton_attention_sinkhorn.block_attention(
        *inputs[:3],
        tables[0],
        (*inputs[3:5], tables[1]) if kind == "mixed" else None,
        (sorted_blocks.index.to(DEVICE), inputs[3]) if kind == "gathered" else None,
        None if mask is None else mask.to(DEVICE),
        0.3,
    )
    assert_close(actual.cpu().double(), expected, 1e-5)
    grads = torch.autograd.grad(actual, inputs, single(upstream))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad.cpu().double(), expected_grad, 1e-4)


@needs_loops
@pytest.mark.parametrize(
    "overrides, checkpointing",
    [
        ({"sort_assignment": "soft"}, True),
        pytest.param({"sort_assignment": "hard"}, False, marks=pytest.mark.slow),
        pytest.param({"sort_assignment": "soft", "is_decoder": True}, True, marks=pytest.mark.slow),
        pytest.param(
            {"sort_assignment": "hard", "is_decoder": True, "causal_balancing": "capacity"},
            False,
            marks=pytest.mark.slow,
        ),
        ({"layer_type": "local_attention"}, False),
    ],
)
def test_the_model_computes_the_same(overrides, checkpointing, monkeypatch):
    """With the kernels and without, in a padded batch, gradients included; with activation checkpointing too."""
    shrink_tiles(monkeypatch, CAUSAL_ROWS=4, CAUSAL_COLUMNS=4)
    torch.manual_seed(0)
    sizes = {"block_size": 16, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = SinkhornModel(tiny_config(**sizes, num_hidden_layers=1, **overrides)).to(DEVICE).train()
    mask = padding_masks(37)[[0, 3, 4]].to(DEVICE)
    ids = torch.randint(3, 50, mask.shape, device=DEVICE)
    if DEVICE == "cpu":

        def attend(*arguments):
            *arguments, dropout = arguments
            assert dropout == 0
            return block_attention_sinkhorn.block_attention_on_gpu(*arguments)

        monkeypatch.setattr(attention_sinkhorn, "block_attention", attend)
        for name in ("balance_on_gpu", "balance_causally_on_gpu"):
            kernel = getattr(triton_balancing_sinkhorn, name.removesuffix("_on_gpu"))
            monkeypatch.setattr(balancing_sinkhorn, name, kernel)
        monkeypatch.setattr(block_attention_sinkhorn, "attend_on_gpu", triton_attention_sinkhorn.block_attention)
    results = []
    for used in (True, False):
        monkeypatch.setattr(attention_sinkhorn, "is_block_attention_supported", lambda query, used=used: used)
        monkeypatch.setattr(balancing_sinkhorn, "is_triton_supported", lambda x, used=used: used)
        if used and checkpointing:
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        torch.manual_seed(1)  # of the noise
        output = model(ids, attention_mask=mask).last_hidden_state
        parameters = list(model.parameters())
        results.append((output, *torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)))
    for actual, expected in zip(*results):
        if expected is not None:
            assert_close(actual, expected, 1e-3)


@needs_loops
def test_the_ops_are_what_they_say(monkeypatch):
    """Schemas, shapes without data (for `torch.compile`) and gradients are registered as torch asks for."""
    shrink_tiles(monkeypatch, CAUSAL_ROWS=4, CAUSAL_COLUMNS=4, LINES_PER_TILE=4, ENTRIES_PER_TILE=8)
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 2, device=DEVICE, requires_grad=True)
    grad = torch.randn_like(logits)
    query, key, value, mixed_key, mixed_value = (
        torch.randn(*shape, device=DEVICE, requires_grad=True)
        for shape in [(1, 2, 16, 2, 32), *[(1, 2, 16, 1, 32)] * 2, *[(1, 1, 2, 16, 32)] * 2]
    )
    cos, sin = (x.float().to(DEVICE) for x in rotation(1, 2, 16, 32))
    index = torch.randint(2, (1, 1, 2, 2), device=DEVICE)
    weight = torch.ones(index.shape, device=DEVICE, requires_grad=True)
    mixed = (query, key, value, mixed_key, mixed_value, None, None, None, cos, sin, cos, sin, 0.3)
    gathered = (query, key, value, None, None, weight, index, None, cos, sin, None, None, 0.3)
    calls = [
        (triton_balancing_sinkhorn._balance, (logits, 2)),
        (triton_balancing_sinkhorn._balance_causally, (logits, 1, True)),
    ]
    calls += [(triton_attention_sinkhorn._attend, arguments) for arguments in (mixed, gathered)]
    _, rows, columns = triton_balancing_sinkhorn._balance(logits.detach(), 2)
    calls.append((triton_balancing_sinkhorn._balance_backward, (grad, logits.detach(), rows, columns)))
    calls.append((triton_balancing_sinkhorn._balance_causally_backward, (grad, logits.detach(), 1, True)))
    for arguments in (mixed, gathered):
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        kept = triton_attention_sinkhorn._attend(*arguments)
        calls.append((triton_attention_sinkhorn._attend_backward, (torch.randn_like(query), *kept, *arguments)))
    for op, arguments in calls:
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(op, arguments, test_utils=checks)
