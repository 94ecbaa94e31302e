# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`extend_positions.py`: a folder in, a complete folder out, for longer inputs."""

import copy
import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import interface_sinkhorn  # noqa: F401  registers the attention
from helpers import assert_close, run_script
from tiny_models import TYPES


LIKE_ROBERTA = ("roberta", "camembert", "xlm-roberta")


@pytest.fixture
def make(tmp_path, tiny_tokenizer):
    def make(kind, auto_class=AutoModel, **overrides):
        torch.manual_seed(0)
        offset = 2 if kind in LIKE_ROBERTA else 0
        fields = TYPES["roberta" if offset else kind] | {"vocab_size": len(tiny_tokenizer)}
        if "max_position_embeddings" in fields:
            fields |= {"max_position_embeddings": 10 + offset}
        if offset:
            fields |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        model = auto_class.from_config(AutoConfig.for_model(kind, **(fields | overrides)))
        model.save_pretrained(tmp_path / "source")
        tokenizer = copy.deepcopy(tiny_tokenizer)  # other tests read it too
        tokenizer.model_max_length = 10
        tokenizer.save_pretrained(tmp_path / "source")
        return model.eval()

    return make


def extend(monkeypatch, tmp_path, length, *flags):
    run_script(
        monkeypatch, "extend_positions.py", "--model_name_or_path", tmp_path / "source", "--output_dir",
        tmp_path / "long", "--max_position_embeddings", length, *flags
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", *LIKE_ROBERTA])
def test_the_table_is_repeated(kind, make, monkeypatch, tmp_path):
    source = make(kind)
    extend(monkeypatch, tmp_path, 27)
    model = AutoModel.from_pretrained(tmp_path / "long", attn_implementation="sinkhorn").eval()
    first = 2 if kind in LIKE_ROBERTA else 0
    assert model.config.max_position_embeddings == 27 + first
    old, new = (x.embeddings.position_embeddings.weight for x in (source, model))
    assert torch.equal(new[:first], old[:first])
    for place in range(27):
        assert torch.equal(new[first + place], old[first + place % 10])
    assert AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == 27
    ids = torch.randint(5, 100, (2, 27))
    assert_close(model(ids[:, :10]).last_hidden_state, source(ids[:, :10]).last_hidden_state, 1e-6)
    assert model(ids).last_hidden_state.shape == (2, 27, 16)


@pytest.mark.parametrize("auto_class", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_no_weight_is_lost(auto_class, make, monkeypatch, tmp_path):
    source = make("bert", auto_class)
    extend(monkeypatch, tmp_path, 27)
    model = auto_class.from_pretrained(tmp_path / "long")
    weights = model.state_dict()
    for name, weight in source.state_dict().items():
        assert torch.equal(weights[name][: len(weight)], weight), name
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {x.name for x in (tmp_path / "long").iterdir()}
    assert json.loads((tmp_path / "long" / "config.json").read_text())["architectures"] == [type(source).__name__]


def test_what_cannot_be_extended_is_refused(make, monkeypatch, tmp_path):
    make("bert")
    with pytest.raises(SystemExit, match="takes 10 tokens already"):
        extend(monkeypatch, tmp_path, 10)
    extend(monkeypatch, tmp_path, 11)
    with pytest.raises(SystemExit, match="is not empty"):
        extend(monkeypatch, tmp_path, 12)
    extend(monkeypatch, tmp_path, 12, "--overwrite_output_dir")
    with pytest.raises(SystemExit, match="there is no folder"):
        extend(monkeypatch, tmp_path, 12, "--model_name_or_path", tmp_path / "none", "--overwrite_output_dir")
    make("bert", position_embedding_type="relative_key")
    with pytest.raises(SystemExit, match="relative_key"):
        extend(monkeypatch, tmp_path, 27, "--overwrite_output_dir")
    make("llama")
    with pytest.raises(SystemExit, match="llama models have no table of learned positions"):
        extend(monkeypatch, tmp_path, 27, "--overwrite_output_dir")
