# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Film reviews, positive or negative (IMDb, Maas et al. 2011). They have no open licence, so no record quotes one."""

from pathlib import Path

from datasets import Dataset, load_dataset


HUB_NAME = "stanfordnlp/imdb"


def read(part: str, imdb_folder: str | None) -> Dataset:
    """`train`, `test` or `unsupervised`: from parquet files of those names in a folder, or else from the Hub."""
    if imdb_folder is None:
        return load_dataset(HUB_NAME, split=part)
    return Dataset.from_parquet(str(Path(imdb_folder) / f"{part}.parquet"))


def without_tags(row: dict) -> dict:
    return {"text": row["text"].replace("<br />", "\n")}
