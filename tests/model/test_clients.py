# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The libraries that people use models with, in one process: pipelines, `evaluate`, `Trainer`, streaming, saving in shards.
Each result is compared with what the model gives when called by hand. `test_clients_weights.py` has PEFT and int8,
`test_clients_distributed.py` what needs two processes, `test_export.py` ONNX.
"""

import copy
from pathlib import Path

import evaluate
import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from helpers import ALL_LAYERS, assert_close, tiny_config
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
)


METRICS = Path(__file__).resolve().parents[2] / "metrics"
TEXTS = ["the state of the union", "peace", "friendship with all mankind, and with the state of the union"]


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """A copy, since a pipeline that writes sets the side of the padding."""
    return copy.deepcopy(tiny_tokenizer)


def make(model_class: type, **overrides):
    """One layer of each type that the head allows; the vocabulary of `tiny_tokenizer`."""
    is_decoder = overrides.get("is_decoder", model_class is SinkhornForCausalLM)
    kinds = [kind for kind in ALL_LAYERS if not (is_decoder and kind == "sortcut_attention")]
    torch.manual_seed(0)
    settings = {"vocab_size": 300, "initializer_range": 0.2, "num_hidden_layers": len(kinds), **overrides}
    config = tiny_config(**settings)
    config.layer_types = kinds
    return model_class(config).eval()


@torch.no_grad()
def by_hand(model, tokenizer, text, *more, **flags) -> torch.Tensor:
    """Logits or last hidden states of a text alone, `(L, ...)` or `(num_labels,)`."""
    return model(tokenizer(text, *more, return_tensors="pt", **flags).input_ids)[0][0]


def rows(count: int) -> dict[str, list]:
    """Two classes that a bag of words could tell apart, of several lengths."""
    words = ("peace and friendship ", "the state of the union ")
    texts = [words[row % 2] * (1 + row % 3) + str(row) for row in range(count)]
    return {"text": texts, "label": [row % 2 for row in range(count)]}


# Pipelines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_feature_extraction_pipeline(batch_size, tokenizer):
    model = make(SinkhornModel)
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    for text, features in zip(TEXTS, extract(TEXTS, batch_size=batch_size, return_tensors=True)):
        expected = by_hand(model, tokenizer, text)
        assert_close(features[0, : len(expected)], expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification_pipeline_reads_a_long_text_whole(batch_size, tokenizer):
    model = make(SinkhornForSequenceClassification)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    texts = [*TEXTS, TEXTS[2] * 40]
    assert len(tokenizer(texts[3]).input_ids) > tokenizer.model_max_length
    for cut in ({}, {"truncation": True, "max_length": 5}):
        for text, scores in zip(texts, classify(texts, batch_size=batch_size, **cut)):
            expected = by_hand(model, tokenizer, text, **cut).softmax(-1)
            scores = {entry["label"]: entry["score"] for entry in scores}
            assert_close(torch.tensor([scores[f"LABEL_{label}"] for label in range(3)]), expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
def test_pipeline_in_half_precision(dtype, tolerance, tokenizer, tmp_path):
    model = make(SinkhornForSequenceClassification)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), dtype=dtype, top_k=None)
    assert classify.model.dtype == dtype
    for text, scores in zip(TEXTS, classify(TEXTS, batch_size=3)):
        scores = {entry["label"]: entry["score"] for entry in scores}
        expected = by_hand(model, tokenizer, text).softmax(-1)
        assert_close(torch.tensor([scores[f"LABEL_{label}"] for label in range(3)]), expected, tolerance)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_classification_pipeline(batch_size, tokenizer):
    model = make(SinkhornForTokenClassification)
    tag = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])
    for text, found in zip(TEXTS, tag(TEXTS, batch_size=batch_size)):
        scores, labels = by_hand(model, tokenizer, text).softmax(-1).max(-1)
        assert [entry["entity"] for entry in found] == [f"LABEL_{label}" for label in labels]
        assert_close(torch.tensor([float(entry["score"]) for entry in found]), scores)
        assert found[-1]["end"] == len(text)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_fill_mask_pipeline(batch_size, tokenizer):
    model = make(SinkhornForMaskedLM)
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=4)
    texts = ["the <mask> of the union", "<mask> and peace", TEXTS[2] + " of<mask>"]
    for text, found in zip(texts, fill(texts, batch_size=batch_size)):
        place = tokenizer(text).input_ids.index(tokenizer.mask_token_id)
        scores, tokens = by_hand(model, tokenizer, text)[place].softmax(-1).topk(4)
        assert [entry["token"] for entry in found] == tokens.tolist()
        assert_close(torch.tensor([entry["score"] for entry in found]), scores)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_zero_shot_pipeline(batch_size, tokenizer):
    model = make(SinkhornForSequenceClassification)
    model.config.label2id = {"contradiction": 0, "neutral": 1, "entailment": 2}
    classify = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)
    assert classify.entailment_id == 2
    subjects = ["war", "peace and friendship", "the union"]
    for text, found in zip(TEXTS, classify(TEXTS, candidate_labels=subjects, batch_size=batch_size)):
        pairs = [by_hand(model, tokenizer, text, f"This example is {subject}.")[2] for subject in subjects]
        scores = dict(zip(found["labels"], found["scores"]))
        assert_close(torch.tensor([scores[subject] for subject in subjects]), torch.stack(pairs).softmax(-1))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_generation_pipeline(batch_size, tokenizer):
    model = make(SinkhornForCausalLM, eos_token_id=None)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"max_new_tokens": 12, "do_sample": False, "return_tensors": True}
    for text, found in zip(TEXTS, write(TEXTS, batch_size=batch_size, **settings)):
        tokens = tokenizer(text, return_tensors="pt").input_ids
        for _ in range(12):  # without a cache and without generate()
            with torch.no_grad():
                tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), dim=1)
        assert [token for token in found[0]["generated_token_ids"] if token != 0][-12:] == tokens[0, -12:].tolist()


# evaluate ------------------------------------------------------------------------------------------------------------


def test_evaluate_evaluator(tokenizer):
    """With a model. A pipeline made before is refused, whatever is in it: evaluate asks for classes that are gone."""
    model, data = make(SinkhornForSequenceClassification, num_labels=2), rows(12)
    data["label"] = [row // 3 % 2 for row in range(12)]  # some right, some wrong
    result = evaluate.evaluator("text-classification").compute(
        model,
        Dataset.from_dict(data),
        tokenizer=tokenizer,
        metric=evaluate.load(str(METRICS / "accuracy")),
        label_mapping={"LABEL_0": 0, "LABEL_1": 1},
    )
    found = [by_hand(model, tokenizer, text).argmax().item() for text in data["text"]]
    expected = sum(a == b for a, b in zip(found, data["label"])) / 12
    assert 0 < expected < 1 and result["accuracy"] == pytest.approx(expected)


# Trainer -------------------------------------------------------------------------------------------------------------


def trainer_of(model, data, tokenizer, folder: Path, **settings) -> Trainer:
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **{"save_strategy": "no", "learning_rate": 0.01, **settings},
    )
    return Trainer(model, arguments, DataCollatorWithPadding(tokenizer), data)


def encoded(data: Dataset, tokenizer):
    return data.map(lambda row: tokenizer(row["text"]), remove_columns=["text"])


def assert_same_weights(actual, expected, tolerance: float = 0) -> None:
    for (name, parameter), other in zip(actual.named_parameters(), expected.parameters()):
        error = (parameter - other).abs().max().item()
        assert error <= tolerance, f"{name} differs by {error:.3g}"


def test_trainer_with_activation_checkpointing_resumes(tokenizer, tmp_path):
    data = encoded(Dataset.from_dict(rows(20)), tokenizer)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}

    def train(folder: str, checkpointing: bool = True, resume: Path | None = None):
        set_seed(1)
        model = make(SinkhornForSequenceClassification, num_labels=2, hidden_dropout=0.1)
        assert model.config.gumbel_noise
        trainer = trainer_of(
            model, data, tokenizer, tmp_path / folder, activation_checkpointing=checkpointing, **settings
        )
        trainer.train(resume_from_checkpoint=resume)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return model, losses

    whole, losses = train("whole")
    resumed, later = train("resumed", resume=tmp_path / "whole" / "checkpoint-3")
    assert len(losses) == 6 and later == losses
    assert_same_weights(resumed, whole)
    plain, plain_losses = train("plain", checkpointing=False)
    assert plain_losses == pytest.approx(losses, abs=1e-4)
    assert_same_weights(plain, whole, 1e-4)


def test_trainer_on_a_streamed_file(tokenizer, tmp_path):
    data = Dataset.from_dict(rows(20))
    data.to_parquet(tmp_path / "train.parquet")
    stream = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train", streaming=True)
    streamed, looped = (
        make(SinkhornForSequenceClassification, num_labels=2, gumbel_noise=False).train() for _ in range(2)
    )
    settings = {"max_steps": 4, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0}
    trainer_of(streamed, encoded(stream, tokenizer), tokenizer, tmp_path / "out", **settings).train()

    optimizer = torch.optim.SGD(looped.parameters(), lr=0.01)
    for start in range(0, 16, 4):
        batch = tokenizer(data["text"][start : start + 4], padding=True, return_tensors="pt")
        optimizer.zero_grad()
        looped(**batch, labels=torch.tensor(data["label"][start : start + 4])).loss.backward()
        optimizer.step()
    before = make(SinkhornForSequenceClassification, num_labels=2)
    assert (looped.score.weight - before.score.weight).abs().max() > 1e-3
    assert_same_weights(streamed, looped, 1e-6)


# Saving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", "disk"], ids=str)
@torch.no_grad()
def test_saved_in_shards_and_placed_by_accelerate(device_map, tmp_path):
    model = make(SinkhornForSequenceClassification)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    assert not list((tmp_path / "model").glob("*.bin"))
    flags = {} if device_map is None else {"device_map": device_map}
    if device_map == "disk":  # a layer is read when it is its turn
        flags["offload_folder"] = tmp_path / "offload"
        flags["device_map"] = {f"model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
        flags["device_map"] |= {"model.layers": "disk", "score": "cpu"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", **flags)
    assert loaded.model.layers[0].self_attn.q_proj.weight.is_meta == (device_map == "disk")
    batch = torch.randint(3, 300, (2, 37))
    assert torch.equal(loaded(batch).logits, model(batch).logits)
