# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The tasks. Each module has `load(data, seed, training, imdb_folder)`, which returns a `TaskData`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass
class TaskData:
    auto_class: type  # the head
    config: dict[str, Any]  # what the task says about the model: vocabulary, labels, special tokens
    train: Any
    validation: Any
    tests: dict[str, Any]  # by name
    longest: int  # tokens of the longest row
    reduce: Callable[[Any, Any], Tensor]  # logits and labels of a batch to what is kept of them, a row each
    score: Callable[[np.ndarray, Any, Any], dict[str, Any]]  # what was kept, the labels and the rows, to scores
    collate: Callable[[list[dict]], dict[str, Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)  # for the record


class GeneratedRows(Dataset):
    """Rows drawn on demand, each from its own seed: any order and any restart gives the same rows."""

    def __init__(self, size: int, make: Callable[[np.random.Generator], dict], *seed: int):
        self.size, self.make, self.seed = size, make, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.make(np.random.default_rng([*self.seed, index]))


TRAIN, VALIDATION, TEST = range(3)  # second part of the seed of generated rows


def generated_parts(
    make: Callable[[np.random.Generator], dict], data: dict, seed: int, training: dict
) -> tuple[GeneratedRows, GeneratedRows, GeneratedRows]:
    """Training rows, each seen once, and the numbers of validation and test rows that `data` names."""
    rows = training["max_steps"] * training["per_device_train_batch_size"]
    return (
        GeneratedRows(rows, make, seed, TRAIN),
        GeneratedRows(data["validation_rows"], make, seed, VALIDATION),
        GeneratedRows(data["test_rows"], make, seed, TEST),
    )


def pad(rows: list[dict], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Pads on the right; lists of labels with -100. A mask only where something is padded."""
    lengths = [len(row["input_ids"]) for row in rows]
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], (int, np.integer)):
            batch[name] = torch.tensor(values)
        else:
            filler = -100 if name == "labels" else pad_token_id
            if min(lengths) < max(lengths):  # rows of one length are many in a run, and need no slow np.pad
                values = [np.pad(value, (0, max(lengths) - len(value)), constant_values=filler) for value in values]
            batch[name] = torch.from_numpy(np.stack(values)).long()
    if min(lengths) < max(lengths):
        batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)).long()
    return batch


def first_output(logits: Any) -> Tensor:
    return logits[0] if isinstance(logits, tuple) else logits


def most_likely_class(logits: Any, labels: Any) -> Tensor:
    """The most likely class, of each row or of each token."""
    return first_output(logits).argmax(-1)


def accuracy(predictions: np.ndarray, labels: np.ndarray, rows: Any) -> dict[str, float]:
    return {"accuracy": float((predictions == labels).mean())}


def load_task(name: str, data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    return importlib.import_module(f"experiments.tasks.{name}").load(data, seed, training, imdb_folder)
