# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The table of a classifier's predictions, which pandas and the `csv` module read back as it was."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor

from training.classification_data import Task


def write_predictions(path: Path, task: Task, data: Dataset, logits: Tensor) -> None:
    """
    A line for each row of `data`: its number in the file, its id and label where it has them, what is predicted, and
    for each class its probability. Several labels of a row are written as a JSON list.
    """
    known = [name for name in ("id", "label") if name in data.column_names]
    columns = {"index": data["row"][:]}
    if "id" in known:
        columns["id"] = data["id"][:]
    columns["prediction"], shares = _predictions(task, logits)
    if "label" in known:
        columns["label"] = [_label(task, label) for label in data["label"][:]]
    for index, name in enumerate(task.label_names or []):
        columns[f"p({name})"] = [f"{row[index]:.4f}" for row in shares]
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(_lines([columns, *zip(*columns.values())]))


def _predictions(task: Task, logits: Tensor) -> tuple[list[str], list[list[float]]]:
    """What is predicted for each row, and the probabilities."""
    if task.problem_type == "regression":
        return [f"{value:.6g}" for value in logits.flatten().tolist()], []
    if task.problem_type == "multi_label_classification":
        shares = logits.sigmoid().tolist()
        return [_names(task, [index for index, share in enumerate(row) if share > 0.5]) for row in shares], shares
    return [task.label_names[best] for best in logits.argmax(-1).tolist()], logits.softmax(-1).tolist()


def _label(task: Task, label: Any) -> str:
    if label is None:
        return ""
    if task.problem_type == "regression":
        return repr(label)
    if task.problem_type == "multi_label_classification":
        return _names(task, [index for index, one in enumerate(label) if one])
    return task.label_names[label]


def _names(task: Task, indices: list[int]) -> str:
    return json.dumps([task.label_names[index] for index in indices], ensure_ascii=False)


def _lines(rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """The writer quotes what is in its own end of line: with both signs also a `\\r` alone, as pandas needs it."""
    for cells in rows:
        line = io.StringIO(newline="")
        csv.writer(line, delimiter="\t", lineterminator="\r\n").writerow(cells)
        yield line.getvalue().removesuffix("\r\n") + "\n"
