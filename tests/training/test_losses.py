# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The losses of the scripts against values worked out by hand, and as the Trainer calls them."""

import json
import math

import pytest
import torch
from datasets import Dataset

from helpers import run_script


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def smoothed(row: list[float], label: int, smoothing: float) -> float:
    logs = log_softmax(row)
    return -(1 - smoothing) * logs[label] - smoothing * sum(logs) / len(logs)


def test_causal_loss_is_shifted_and_smoothed(monkeypatch):
    from training.losses import causal_loss

    assert causal_loss(0.0) is None
    logits = [
        [[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [9.0, 9.0, 0.0]],
        [[0.0, 3.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 7.0]],
    ]
    labels = [[1, 0, 2], [0, 1, -100]]
    # The first position predicts the second label, the second the third; the last predicts nothing.
    by_hand = [smoothed(logits[0][0], 0, 0.1), smoothed(logits[0][1], 2, 0.1), smoothed(logits[1][0], 1, 0.1)]
    loss, outputs = causal_loss(0.1), {"logits": torch.tensor(logits)}
    assert loss(outputs, torch.tensor(labels)).item() == pytest.approx(sum(by_hand) / 3)
    in_all = loss(outputs, torch.tensor(labels), num_items_in_batch=torch.tensor(6))  # over accumulated batches
    assert in_all.item() == pytest.approx(sum(by_hand) / 6)


def test_weighted_loss(monkeypatch):
    from training.losses import balanced_weights, classification_loss

    assert classification_loss(None, 0.1) is None
    weights = balanced_weights([0, 0, 0, 1, 3, 3], 4)
    assert weights == [6 / 9, 2.0, 1.0, 1.0]  # class 2 has no documents
    logits = [[1.0, 0.0, 0.0, 2.0], [0.0, 4.0, 1.0, 0.0]]
    loss = classification_loss(weights, 0.2)({"logits": torch.tensor(logits)}, torch.tensor([0, 1]))
    by_hand = (6 / 9 * smoothed(logits[0], 0, 0.2) + 2 * smoothed(logits[1], 1, 0.2)) / 2
    assert loss.item() == pytest.approx(by_hand)


def test_label_smoothing_of_a_causal_model_does_not_teach_it_to_copy(tmp_path, monkeypatch):
    """The unshifted loss gives a perplexity that grows with training."""
    sentences = ["cats and dogs at home", "sails and masts at sea", "peace and friendship with all mankind"]
    texts = [" ".join(sentences[(row + word) % 3] for word in range(4 + row % 5)) for row in range(60)]
    Dataset.from_dict({"text": texts}).to_json(tmp_path / "train.jsonl")
    flags = ["--train_file", tmp_path / "train.jsonl", "--block_size", "32", "--num_train_epochs", "2", "--use_cpu"]
    flags += ["--train_tokenizer_vocab_size", "300", "--learning_rate", "0.02", "--label_smoothing_factor", "0.1"]
    flags += [
        "--config_overrides",
        "hidden_size=16,intermediate_size=24,num_attention_heads=2,block_size=8,num_hidden_layers=1",
    ]
    run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "out", *flags)
    scores = json.loads((tmp_path / "out" / "run.json").read_text())["models"]["this model"]["scores"]
    assert scores["validation"]["perplexity"] < 12
