# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The party of the president who gave a State of the Union address, from a passage of it (`training/shipped_data.py`). No
address, or no president, is in both training and test.
"""

from experiments.tasks import TaskData
from experiments.tasks.text import classification
from training.shipped_data import PARTIES, load_passages


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    """The seed also sets the split."""
    parts = load_passages(data["split_by"], seed)
    limit = data.get("max_rows")
    if limit is not None:
        parts = {part: rows.shuffle(seed=seed).select(range(min(limit, len(rows)))) for part, rows in parts.items()}
    return classification(dict(parts), data, len(PARTIES), {"split_by": data["split_by"]})
