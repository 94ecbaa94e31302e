# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Positive or negative film reviews (IMDb, Maas et al. 2011), on the official test split: as bytes (the `Text` task of
Long Range Arena) or as BPE. The reviews have no open licence, so no record quotes one.
"""

from datasets import Dataset

from experiments.tasks import TaskData
from experiments.tasks.text import classification
from training.reviews import HUB_NAME, read, without_tags


def shuffled_reviews(rows: Dataset, seed: int, number: int) -> Dataset:
    """Of rows that are sorted by label."""
    return rows.shuffle(seed=seed).select(range(min(number, len(rows)))).map(without_tags)


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    """Validation reviews are taken from the official training split; the test reviews are the same for every seed."""
    validation_rows = data["validation_rows"]
    train = shuffled_reviews(read("train", imdb_folder), seed, data["train_rows"] + validation_rows)
    parts = {
        "train": train.select(range(validation_rows, len(train))),
        "validation": train.select(range(validation_rows)),
        "test": shuffled_reviews(read("test", imdb_folder), 0, data["test_rows"]),
    }
    return classification(parts, data, 2, {"dataset": HUB_NAME})
