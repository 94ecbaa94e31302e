# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""How a classifier does on each class, and which classes it takes for which."""

from typing import Any

import numpy as np
from sklearn.metrics import classification_report, confusion_matrix


MOST_CLASSES = 12  # of a confusion matrix that fits a screen
MOST_ROWS = 40
MOST_PAIRS = 10


def scores_by_class(truth: np.ndarray, predicted: np.ndarray, names: list[str]) -> dict[str, Any]:
    """
    `classes`: precision, recall, F1 and support by name; with one class a document also `confusion`, whose rows are the
    true classes, or for many classes `confused`: the pairs that are most often taken for each other.
    """
    numbers = list(range(len(names)))
    table = classification_report(truth, predicted, labels=numbers, output_dict=True, zero_division=0)
    keys = {"precision": "precision", "recall": "recall", "f1-score": "f1", "support": "support"}
    scores: dict[str, Any] = {
        "classes": {
            name: {short: float(table[str(number)][long]) for long, short in keys.items()}
            for number, name in enumerate(names)
        }
    }
    if truth.ndim == 1:
        matrix = confusion_matrix(truth, predicted, labels=numbers)
        if len(names) <= MOST_CLASSES:
            scores["confusion"] = {"names": names, "rows": matrix.tolist()}
        else:
            wrong = [(int(matrix[i, j]), names[i], names[j]) for i in numbers for j in numbers if i != j]
            pairs = sorted((pair for pair in wrong if pair[0]), key=lambda pair: (-pair[0], pair[1:]))
            scores["confused"] = [list(pair) for pair in pairs[:MOST_PAIRS]]
    return scores


def report_lines(scores: dict[str, Any]) -> list[str]:
    """For the screen."""
    rows = scores["classes"]
    shown = sorted(rows, key=lambda name: -rows[name]["support"])[:MOST_ROWS] if len(rows) > MOST_ROWS else list(rows)
    width = max(map(len, [*shown, "class"]))
    lines = [f"| {'class':{width}} | precision | recall |    f1 | documents |"]
    lines.append(f"|-{'-' * width}-|----------:|-------:|------:|----------:|")
    for name in shown:
        row = rows[name]
        lines.append(
            f"| {name:{width}} | {row['precision']:9.3f} | {row['recall']:6.3f} | {row['f1']:5.3f} | "
            f"{row['support']:9.0f} |"
        )
    if len(rows) > len(shown):
        lines.append(f"and {len(rows) - len(shown)} classes of fewer documents, in run.json")
    if "confusion" in scores:
        matrix = scores["confusion"]["rows"]
        cell = max(3, *(len(str(count)) for row in matrix for count in row))
        lines += ["", "Rows are the true classes, columns the predicted ones, in the same order:"]
        for name, row in zip(scores["confusion"]["names"], matrix):
            lines.append(f"{name:>{width + 2}}  " + " ".join(f"{count:{cell}}" for count in row))
    elif scores.get("confused"):
        lines += ["", "Most often mistaken:"]
        lines += [f"  {count} of {true} taken for {taken}" for count, true, taken in scores["confused"]]
    return lines
