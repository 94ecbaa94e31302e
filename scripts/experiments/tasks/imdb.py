# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Positive or negative film reviews (IMDb, Maas et al. 2011), on the official test split: as bytes (the `Text` task of
Long Range Arena) or as BPE. The reviews have no open licence, so no record quotes one.
"""

from pathlib import Path

from datasets import Dataset, load_dataset

from experiments.tasks import TaskData
from experiments.tasks.text import classification


HUB_NAME = "stanfordnlp/imdb"


def read(part: str, imdb_folder: str | None) -> Dataset:
    """`train`, `test` or `unsupervised`: from parquet files of those names in a folder, or else from the Hub."""
    if imdb_folder is None:
        return load_dataset(HUB_NAME, split=part)
    return Dataset.from_parquet(str(Path(imdb_folder) / f"{part}.parquet"))


def without_tags(row: dict) -> dict:
    return {"text": row["text"].replace("<br />", "\n")}


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
