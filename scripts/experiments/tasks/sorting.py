# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sorting integers, the algorithmic task of the paper (section 4.1 there), as tagging by an encoder: at each position the model
names the integer that stands there once the sequence is sorted. Trained at one length; tested at it and at twice that.

The paper has it as sequence to sequence. Tagging lets every kind of attention take part, SortCut and BigBird too.
"""

import numpy as np
from transformers import AutoModelForTokenClassification

from experiments.tasks import TEST, Generated, TaskData, chosen, generated_parts, pad


FIRST, LAST = 1, 2  # tokens before and after the sequence: the only marks of where it begins and ends
INTEGERS = 3  # token of the integer 0


def draw(generator: np.random.Generator, length: int, integers: int) -> dict[str, np.ndarray]:
    """Integers between two marks; the label of a position is the integer there in sorted order, of a mark none."""
    values = generator.integers(integers, size=length)
    return {
        "input_ids": np.concatenate(([FIRST], INTEGERS + values, [LAST])),
        "labels": np.concatenate(([-100], np.sort(values), [-100])),
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
    predictions, labels = predictions[:, 1:-1], labels[:, 1:-1]  # without the marks
    return {
        "exact_match": float((predictions == labels).all(1).mean()),
        "token_accuracy": float((predictions == labels).mean()),
        "edit_distance": float(edit_distances(predictions, labels).mean() / labels.shape[1]),
    }


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    length, integers = data["length"], data["integers"]
    train, validation, test = generated_parts(lambda g: draw(g, length, integers), data, seed, training)
    # Rows of another length come from another seed, so that they are not the shorter ones with more behind them.
    twice = Generated(data["test_rows"], lambda g: draw(g, 2 * length, integers), seed, TEST, 2)
    return TaskData(
        auto_class=AutoModelForTokenClassification,
        config={"vocab_size": INTEGERS + integers, "num_labels": integers, "pad_token_id": 0},
        train=train,
        validation=validation,
        tests={"test": test, "twice": twice},
        longest=2 * length + 2,
        reduce=chosen,
        score=score,
        collate=pad,
        facts={"train": len(train), "test": len(test), "length": length, "integers": integers},
    )
