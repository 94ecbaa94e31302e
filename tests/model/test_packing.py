# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Packed rows: documents end to end in one row, told apart by positions that start again, equal the documents alone."""

import pytest
import torch
from transformers import DataCollatorWithFlattening, DynamicCache

from compatibility_sinkhorn import cache_of
from helpers import assert_close, layer_cases, tiny_config
from modeling_sinkhorn import SinkhornForCausalLM, SinkhornForSequenceClassification, SinkhornModel


CASES = [case for case in layer_cases() if case[0] != "sortcut_attention"]
# Of block size 4: one token, less than a block, a whole block, several blocks and a rest.
LENGTHS = (1, 13, 4, 3, 22, 8)


def make(model_class=SinkhornModel, layer_type="sinkhorn_attention", **overrides):
    torch.manual_seed(0)
    return model_class(tiny_config(layer_type, gumbel_noise=False, **overrides))


def documents(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 50, (length,), generator=generator) for length in lengths]


def pack(texts):
    return torch.cat(texts).unsqueeze(0), torch.cat([torch.arange(len(text)) for text in texts]).unsqueeze(0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layer_type, assignment, is_decoder", CASES)
def test_each_document_equals_the_document_alone(layer_type, assignment, is_decoder, implementation):
    overrides = {"sort_assignment": assignment, "is_decoder": is_decoder, "attn_implementation": implementation}
    model = make(layer_type=layer_type, **overrides).train()
    texts = documents()
    weight = torch.randn(len(torch.cat(texts)), 16, generator=torch.Generator().manual_seed(2))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids, positions = pack(texts)
    packed = model(ids, position_ids=positions).last_hidden_state[0]
    alone = torch.cat([model(text.unsqueeze(0)).last_hidden_state[0] for text in texts])
    assert_close(packed, alone)
    packed_grads = torch.autograd.grad((packed * weight).sum(), parameters)
    for actual, expected in zip(packed_grads, torch.autograd.grad((alone * weight).sum(), parameters)):
        assert_close(actual, expected, 1e-4)


@pytest.mark.parametrize("overrides", [
    {"sort_net": "linear"},
    {"sort_net": "mlp", "is_decoder": True},
    {"sort_net": "linear", "max_position_embeddings": 24, "sort_pooling": "sum"},
    {"num_local_blocks": 2},
    {"num_local_blocks": 3, "is_decoder": True, "sort_assignment": "hard", "num_sorted_blocks": 2},
    {"attention_bias": True, "mlp_bias": True},
    {"sort_pooling": "sum", "is_decoder": True},
    {"sort_pooling": "first", "is_decoder": True, "causal_balancing": "capacity"},
    {"sort_pooling": "first"},
])  # fmt: skip
def test_with_every_setting(overrides):
    model = make(**overrides).eval()
    texts = documents()
    ids, positions = pack(texts)
    alone = torch.cat([model(text.unsqueeze(0)).last_hidden_state[0] for text in texts])
    assert_close(model(ids, position_ids=positions).last_hidden_state[0], alone)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_rows_of_different_documents(is_decoder):
    """Several packed rows of one length, with different numbers of documents and blocks."""
    model = make(is_decoder=is_decoder).eval()
    rows = [documents((5, 1, 9), seed=3), documents((15,), seed=4), documents((1,) * 15, seed=5)]
    packed = [pack(row) for row in rows]
    together = model(
        torch.cat([ids for ids, _ in packed]), position_ids=torch.cat([positions for _, positions in packed])
    ).last_hidden_state
    for actual, texts in zip(together, rows):
        alone = torch.cat([model(text.unsqueeze(0)).last_hidden_state[0] for text in texts])
        assert_close(actual, alone)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_documents_do_not_see_each_other(is_decoder):
    model = make(is_decoder=is_decoder, layer_type="mixture_attention").eval()
    texts = documents()
    ids, positions = pack(texts)
    embeds = model.embed_tokens(ids).detach().requires_grad_()
    output = model(inputs_embeds=embeds, position_ids=positions).last_hidden_state
    start, end = 14, 18  # the third document
    (grad,) = torch.autograd.grad(output[0, start:end].square().sum(), embeds)
    assert grad[0, :start].abs().sum() == 0 and grad[0, end:].abs().sum() == 0
    assert (grad[0, start:end].abs().sum(-1) > 0).all()


def test_attention_maps_and_sort_matrices_of_packed_rows():
    model = make(attn_implementation="eager").eval()
    ids, positions = pack(documents())
    output = model(ids, position_ids=positions, output_attentions=True, output_sort_matrices=True)
    number = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for attention in output.attentions:
        assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        assert attention[0][:, number[:, None] != number].abs().max() == 0
    blocks = [(length + 3) // 4 for length in LENGTHS]
    number = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(blocks))
    for matrix in output.sort_matrices:
        assert matrix.shape[-1] == sum(blocks)
        assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))
        assert matrix[0][:, number[:, None] != number].abs().max() == 0


def test_the_librarys_collator_gives_the_loss_of_the_documents():
    model = make(SinkhornForCausalLM).eval()
    texts = documents()
    batch = DataCollatorWithFlattening(return_tensors="pt")([{"input_ids": text.tolist()} for text in texts])
    packed = model(**batch).loss
    counts = torch.tensor([len(text) - 1 for text in texts], dtype=torch.float)
    losses = torch.stack([model(text[None], labels=text[None]).loss for text in texts if len(text) > 1])
    assert_close(packed, (losses * counts[counts > 0]).sum() / counts.sum())
    assert cache_of(model(**batch)) is None
    model.train()(**batch).loss.backward()


def test_what_is_not_packed_stays_so():
    """Positions under a mask or a cache, and positions that grow with gaps, tell nothing of documents."""
    model = make(is_decoder=True).eval()
    ids = documents((9,))[0].unsqueeze(0)
    restart = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]])
    as_packed = model(ids, position_ids=restart).last_hidden_state
    masked = model(ids, attention_mask=torch.ones_like(ids), position_ids=restart).last_hidden_state
    cached = model(ids, position_ids=restart, cache=DynamicCache(config=model.config)).last_hidden_state
    assert_close(masked, cached)
    assert (as_packed - masked).abs().max() > 1e-3
    one = model(ids, position_ids=torch.arange(9).unsqueeze(0) * 3)
    assert cache_of(one) is not None


def test_what_cannot_be_packed_says_so():
    ids, positions = pack(documents())
    with pytest.raises(ValueError, match="one prediction a row: give each document a row of its own"):
        make(SinkhornForSequenceClassification)(ids, position_ids=positions)
    with pytest.raises(ValueError, match="'sortcut_attention' .*give each document a row of its own"):
        make(layer_type="sortcut_attention")(ids, position_ids=positions)
    with pytest.raises(ValueError, match="The input has 6 blocks"):
        make(sort_net="linear", max_position_embeddings=20)(ids, position_ids=positions)
