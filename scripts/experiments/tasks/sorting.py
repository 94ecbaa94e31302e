# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sorting integers, the algorithmic task of the paper (section 4.1 there), as tagging with an encoder: at each position
the model predicts the integer at that position of the sorted sequence. Trained at one length; tested at that length
and at twice that. Every eighth token is a mark with its number. A model with attention inside blocks only has no other
way to know the position of a block; the marks of the second half of the longer rows are new to all models.

The paper has it as sequence to sequence. Tagging lets every kind of attention take part, SortCut and BigBird too.
"""

import numpy as np
from transformers import AutoModelForTokenClassification

from experiments.tasks import TEST, GeneratedRows, TaskData, generated_parts, most_likely_class, pad


MARK_SPACING = 8  # tokens from one mark to the next
FIRST_INTEGER = 1  # token of the integer 0; marks follow on the integers


def draw(generator: np.random.Generator, length: int, integers: int) -> dict[str, np.ndarray]:
    """`length` tokens with their marks; the label of an integer is the one there in sorted order, of a mark none."""
    marks = length // MARK_SPACING
    values = generator.integers(integers, size=length - marks)
    opened = FIRST_INTEGER + integers + np.arange(marks)
    return {
        "input_ids": np.column_stack((opened, FIRST_INTEGER + values.reshape(marks, -1))).reshape(-1),
        "labels": np.column_stack((np.full(marks, -100), np.sort(values).reshape(marks, -1))).reshape(-1),
    }


def edit_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Levenshtein distances `(R,)` of the rows of `(R, L)` and `(R, M)`."""
    rows, columns = a.shape[1], b.shape[1]
    above = np.tile(np.arange(columns + 1), (len(a), 1))
    for i in range(rows):
        here = np.empty_like(above)
        here[:, 0] = i + 1
        replaced = above[:, :-1] + (a[:, i : i + 1] != b)
        for j in range(columns):
            here[:, j + 1] = np.minimum(np.minimum(above[:, j + 1], here[:, j]) + 1, replaced[:, j])
        above = here
    return above[:, -1]


def score(predictions: np.ndarray, labels: np.ndarray, rows) -> dict[str, float]:
    places = labels[0] >= 0  # without the marks
    predictions, labels = predictions[:, places], labels[:, places]
    return {
        "exact_match": float((predictions == labels).all(1).mean()),
        "token_accuracy": float((predictions == labels).mean()),
        "edit_distance": float(edit_distances(predictions, labels).mean() / labels.shape[1]),
    }


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    length, integers = data["length"], data["integers"]
    train, validation, test = generated_parts(lambda g: draw(g, length, integers), data, seed, training)
    # Rows of another length come from another seed, so that they are not the shorter ones with more behind them.
    twice = GeneratedRows(data["test_rows"], lambda g: draw(g, 2 * length, integers), seed, TEST, 2)
    return TaskData(
        auto_class=AutoModelForTokenClassification,
        config={
            "vocab_size": FIRST_INTEGER + integers + 2 * length // MARK_SPACING,
            "num_labels": integers,
            "pad_token_id": 0,
        },
        train=train,
        validation=validation,
        tests={"test": test, "twice": twice},
        longest=2 * length,
        reduce=most_likely_class,
        score=score,
        collate=pad,
        facts={"train": len(train), "test": len(test), "length": length, "integers": integers},
    )
