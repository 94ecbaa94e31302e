# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/experiments/interventions.py`: what replaces the sorting of a language model is what it says."""

import json

import pytest
import torch

import sort_net_sinkhorn
from experiments import interventions
from helpers import assert_close, tiny_config
from modeling_sinkhorn import SinkhornForCausalLM


@pytest.fixture(params=["equality", "capacity"])
def model(request) -> SinkhornForCausalLM:
    torch.manual_seed(0)
    config = tiny_config(is_decoder=True, num_hidden_layers=2, block_size=4, causal_balancing=request.param)
    return SinkhornForCausalLM(config).eval()


IDS = torch.arange(40).view(2, 20) + 3


@torch.no_grad()
def matrices(model: SinkhornForCausalLM, name: str) -> list[torch.Tensor]:
    with interventions.replacing_sort_matrices(interventions.REPLACEMENTS[name]):
        return model(IDS, use_cache=False, output_sort_matrices=True).sort_matrices


def test_as_trained_is_the_model(model):
    expected = model(IDS, use_cache=False, output_sort_matrices=True)
    for found, matrix in zip(matrices(model, "as trained"), expected.sort_matrices):
        assert_close(found, matrix, 0)
    assert sort_net_sinkhorn.causal_sinkhorn_balance is interventions.balance


@pytest.mark.parametrize("name", interventions.REPLACEMENTS)
def test_replacements_are_causal_and_whole(model, name):
    for matrix in matrices(model, name):
        assert matrix.triu().abs().sum() == 0
        assert_close(matrix[:, :, 1:].sum(-1), torch.ones(2, matrix.shape[1], 4))


def test_replacements_are_what_they_say(model):
    assert_close(matrices(model, "the block before")[0][0, 0].argmax(-1)[1:], torch.arange(4))
    assert (matrices(model, "the first block")[0][0, 0, 1:, 0] == 1).all()
    assert_close(matrices(model, "all earlier blocks evenly")[0][0, 0, 4, :4], torch.full((4,), 0.25))
    equal = matrices(model, "equal logits, balanced")[0]
    assert_close(equal[0, 0], equal[1, 1])  # of no row or head
    assert equal[0, 0, 4].argmax() == 3  # the block before
    trained, plain = (matrices(model, name)[0] for name in ("as trained", "trained logits, not balanced"))
    assert (trained - plain).abs().max() > 0.01


def test_the_command(model, tmp_path, monkeypatch):
    rows = {"test": {"input_ids": IDS.tolist()}}
    monkeypatch.setattr(interventions.SinkhornForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(interventions.AutoTokenizer, "from_pretrained", lambda name: None)
    monkeypatch.setattr(interventions, "load_documents", lambda data: None)
    monkeypatch.setattr(interventions, "to_chunks", lambda *args: (rows, {"test": 0.25}))
    interventions.main(["--results_file", str(tmp_path / "found.json"), "--batch_size", "1"])
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["rows"] == [2, 20] and set(record["scores"]) == {*interventions.REPLACEMENTS, "nothing"}
    loss = model(IDS, labels=IDS, use_cache=False).loss
    assert record["scores"]["as trained"]["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    weights = record["weights"]["the block before"]
    assert len(weights) == 2 and weights[0]["the block before"] == 1
