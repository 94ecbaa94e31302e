# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The Synthesizers of the experiments compute what their paper says: token by token, as plain loops."""

import math

import pytest
import torch
from transformers import AutoModel

from experiments.models import make_model
from experiments.synthesizer import KINDS
from helpers import assert_close


SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "block_size": 8,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}
LONGEST = 24


def by_loops(attention, hidden_states, real):
    """Section 3 of arXiv:2005.00743, one row: weights from a token and its place, or from two places."""
    length, width = hidden_states.shape
    per_head = width // attention.num_heads
    values = attention.v_proj(hidden_states)
    outputs = torch.zeros(length, width)
    for t in range(length):
        place = [
            math.sin(t / 10_000 ** (i / width)) if i % 2 == 0 else math.cos(t / 10_000 ** ((i - 1) / width))
            for i in range(width)
        ]
        for head in range(attention.num_heads):
            table, part = attention.position_embeddings[head], slice(head * per_head, (head + 1) * per_head)
            seen = [j for j in range(length) if real[j] and (j <= t or not attention.is_decoder)]
            if attention.kind == "random":
                logits = torch.stack([table[t, j] for j in seen])
            else:
                hidden = attention.hidden_proj(hidden_states[t] + torch.tensor(place)).relu()[part]
                logits = torch.stack([hidden @ table[:, j] for j in seen])
            weights = logits.softmax(0)
            outputs[t, part] = sum(weight * values[j, part] for weight, j in zip(weights, seen))
    return attention.o_proj(outputs)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_equals_loops(kind, is_decoder, is_padded):
    model = make_model(f"synthesizer_{kind}", SMALL | {"is_decoder": is_decoder}, LONGEST, AutoModel, 0)
    attention, states = model.layers[0].self_attn, []
    attention.register_forward_hook(lambda module, inputs, outputs: states.append((inputs[0], outputs[0])))
    mask = torch.ones(2, 19, dtype=torch.long)
    mask[1, 11 if is_padded else 19 :] = 0
    model(torch.randint(3, 50, (2, 19)), attention_mask=mask if is_padded else None)
    ((hidden_states, outputs),) = states
    for row in range(2):
        real = mask[row].bool()
        assert_close(outputs[row][real], by_loops(attention, hidden_states[row], real)[real])


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_compared_with_another(kind):
    """The weights of a token stay when the others change."""
    model = make_model(f"synthesizer_{kind}", SMALL, LONGEST, AutoModel, 0)
    attention = model.layers[0].self_attn
    one, other = torch.randn(2, 1, 10, 32)
    other[:, 4] = one[:, 4]
    value = torch.eye(10, 16).expand(1, 2, -1, -1)  # what is mixed of these are the weights
    first, second = (attention.mix(states, value, None)[:, :, 4] for states in (one, other))
    assert_close(first, second)
    assert first.std() > 0


def test_all_of_it_learns():
    for kind in KINDS:
        model = make_model(f"synthesizer_{kind}", SMALL, LONGEST, AutoModel, 0)
        model(torch.randint(3, 50, (2, LONGEST))).last_hidden_state.sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.layers.parameters())
