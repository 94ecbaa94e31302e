# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`attn_implementation="sinkhorn"` as people use it: the Trainer, `pipeline()`, sentence_transformers, our scripts."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

import interface_sinkhorn
from helpers import assert_close, run_script
from tiny_models import SPARSE, TYPES


WORDS = "cats and dogs at home sails and masts at sea"
LONG = " ".join([WORDS] * 12)


def save(folder, kind, auto_class, tokenizer, **fields):
    """A tiny random model with a tokenizer, as a folder."""
    torch.manual_seed(0)
    fields = TYPES[kind] | {"vocab_size": len(tokenizer), "initializer_range": 0.1} | fields
    auto_class.from_config(AutoConfig.for_model(kind, **fields)).save_pretrained(folder)
    tokenizer = copy.deepcopy(tokenizer)  # other tests read it too
    tokenizer.model_max_length = 160
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bert(tmp_path, tiny_tokenizer):
    return save(tmp_path / "bert", "bert", AutoModelForSequenceClassification, tiny_tokenizer)


@pytest.fixture
def calls(monkeypatch):
    """The sparse layers that ran."""
    seen, attend = [], interface_sinkhorn._attend
    monkeypatch.setattr(interface_sinkhorn, "_attend", lambda *args: (seen.append(args[3]), attend(*args))[1])
    return seen


def load(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sinkhorn")
    model.config.sinkhorn_attention = SPARSE
    return model


def test_a_plain_trainer(bert, tmp_path, calls):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    texts = [LONG[: 300 + 20 * row] for row in range(8)]
    rows = Dataset.from_dict({**tokenizer(texts, truncation=True), "labels": [row % 2 for row in range(8)]})
    args = TrainingArguments(tmp_path / "out", per_device_train_batch_size=4, max_steps=2, report_to=[], use_cpu=True)
    model = load(bert)
    before = model.bert.encoder.layer[0].attention.self.query.weight.clone()
    trainer = Trainer(
        model, args, train_dataset=rows, eval_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0 and calls
    assert not torch.equal(before, model.bert.encoder.layer[0].attention.self.query.weight)
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", attn_implementation="sinkhorn")
    assert again.config.sinkhorn_attention == SPARSE


def test_pipeline(bert, calls):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    classify = pipeline("text-classification", model=load(bert), tokenizer=tokenizer, truncation=True)
    together = classify([LONG, WORDS], batch_size=2)
    assert calls
    for text, expected in zip([LONG, WORDS], together):
        assert classify(text)[0]["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_sentence_transformers(bert, calls):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="no dependency of this repository")
    model = sentence_transformers.SentenceTransformer(str(bert), model_kwargs={"attn_implementation": "sinkhorn"})
    model[0].auto_model.config.sinkhorn_attention = SPARSE
    embeddings = model.encode([LONG, WORDS], convert_to_tensor=True)
    assert calls
    assert_close(model.encode([WORDS], convert_to_tensor=True)[0], embeddings[1], 1e-5)


SETTINGS = ("--attn_implementation", "sinkhorn", "--sinkhorn_attention", "block_size=4,num_sorted_blocks=2")


def test_run_classification(bert, tmp_path, monkeypatch, calls):
    """A trained folder says how it reads, and new documents are scored so."""
    texts = [f"{WORDS} {row} " * 10 for row in range(16)]
    Dataset.from_dict({"text": texts, "label": ["a", "b"] * 8}).to_csv(tmp_path / "train.csv")
    out = tmp_path / "out"
    flags = ("--train_file", tmp_path / "train.csv", "--num_train_epochs", 1, "--use_cpu", "--skip_baselines")
    run = ("run_classification.py", "--model_name_or_path")
    run_script(monkeypatch, *run, bert, "--output_dir", out, *flags, *SETTINGS)
    saved = json.loads((out / "config.json").read_text())["sinkhorn_attention"]
    assert saved == SPARSE | {"num_global_blocks": 1, "sort_granularity": "block", "sinkhorn_iterations": 0}
    assert calls and {mask.settings.block_size for mask in calls} == {4}
    calls.clear()
    flags = ("--test_file", tmp_path / "train.csv", "--do_predict", "--use_cpu", "--skip_baselines")
    run_script(monkeypatch, *run, out, "--output_dir", tmp_path / "scores", *flags)
    assert calls and {mask.settings.block_size for mask in calls} == {4}


@pytest.mark.parametrize(
    "script, kind, auto_class, length",
    [
        ("run_clm.py", "llama", AutoModelForCausalLM, "--block_size"),
        ("run_mlm.py", "bert", AutoModelForMaskedLM, "--max_seq_length"),
    ],
)
def test_language_models(script, kind, auto_class, length, tmp_path, monkeypatch, tiny_tokenizer, calls):
    folder = save(tmp_path / "source", kind, auto_class, tiny_tokenizer)
    Dataset.from_dict({"text": [LONG] * 6}).to_json(tmp_path / "train.jsonl")
    flags = ("--train_file", tmp_path / "train.jsonl", length, 100, "--max_steps", 1, "--use_cpu")
    out = ("--output_dir", tmp_path / "out")
    run_script(monkeypatch, script, "--model_name_or_path", folder, *out, *flags, *SETTINGS)
    assert {(mask.settings.block_size, mask.causal) for mask in calls} == {(4, kind == "llama")}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sinkhorn_attention"]["num_sorted_blocks"] == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--attn_implementation", "sinkhorn"), "is for models of other types"),
        (("--sinkhorn_attention", "block_size=4"), "give that too"),
        ((*SETTINGS[:3], "blocks=4", "--model_name_or_path", "BERT"), "no field 'blocks'"),
        ((*SETTINGS[:3], "block_size", "--model_name_or_path", "BERT"), "'block_size' is not name=value"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, bert, tmp_path, monkeypatch):
    flags = [bert if flag == "BERT" else flag for flag in flags]
    Dataset.from_dict({"text": [WORDS] * 8, "label": ["a", "b"] * 4}).to_csv(tmp_path / "train.csv")
    with pytest.raises(SystemExit, match=message):
        run_script(
            monkeypatch, "run_classification.py", "--output_dir", tmp_path / "out", "--use_cpu",
            "--train_file", tmp_path / "train.csv", "--from_scratch" if bert not in flags else "--do_train", *flags
        )  # fmt: skip
