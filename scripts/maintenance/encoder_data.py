# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The documents on which `maintain.py encoders` fine-tunes, as files for `run_classification.py`. A seed draws them."""

import functools
import random
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maintenance.small_data import PERIODS, period_of
from maintenance.windows import to_windows
from training.classification_data import hold_out_validation
from training.reviews import read as read_reviews
from training.reviews import without_tags
from training.shipped_data import PARTIES, load_address_splits, load_passages


SHORT_LENGTH = 512
SHIPPED_TASKS = ("address", "president", "period")
REVIEWS, ALL_REVIEWS = "reviews", "reviews of any length"
# Reviews to train on, of more than `SHORT_LENGTH` tokens or of any length. Those to validate and to test with are long.
TRAINING_REVIEWS = {REVIEWS: 1000, ALL_REVIEWS: 3000}
VALIDATION_ROWS = slice(1000, 1200)  # of the long ones of the official training part
TEST_REVIEWS = 1000
# Training addresses of each period: unbalanced, and no more than any seed's split has.
PERIOD_SIZES = dict(zip((name for name, *_ in PERIODS), (65, 15, 40, 54)))


def draw_addresses(seed: int) -> dict[str, Dataset]:
    """`train` and `test`: whole addresses as `text` with their `period`. The test part is of the shipped task."""
    splits = load_address_splits(seed, "classification")
    pool = concatenate_datasets([splits["train"], splits["validation"]])
    draw = random.Random(seed)
    train = []
    for period, size in PERIOD_SIZES.items():
        rows = [row for row, year in enumerate(pool["year"][:]) if period_of(year) == period]
        train += draw.sample(rows, size)
    draw.shuffle(train)
    return {
        part: Dataset.from_dict({"text": rows["text"][:], "period": [period_of(year) for year in rows["year"][:]]})
        for part, rows in (("train", pool.select(train)), ("test", splits["test"]))
    }


def draw_reviews(
    task: str, seed: int, tokenizer: PreTrainedTokenizerBase, imdb_folder: str | None
) -> dict[str, Dataset]:
    """
    `train`, `validation` and `test`: reviews as `text` with their `label`. Those of the test are the same for every seed,
    from the official test part.
    """
    long, others = _long_and_others(seed, "train", tokenizer, imdb_folder)
    validation = long[VALIDATION_ROWS]
    pool = long[: VALIDATION_ROWS.start] + long[VALIDATION_ROWS.stop :]
    if task == ALL_REVIEWS:
        pool += others
        random.Random(seed).shuffle(pool)
    test, _ = _long_and_others(0, "test", tokenizer, imdb_folder)
    drawn = {"train": pool[: TRAINING_REVIEWS[task]], "validation": validation, "test": test[:TEST_REVIEWS]}
    return {name: Dataset.from_list(rows) for name, rows in drawn.items()}


@functools.cache  # the test part is the same for every seed
def _long_and_others(
    seed: int, part: str, tokenizer: PreTrainedTokenizerBase, imdb_folder: str | None
) -> tuple[list[dict], list[dict]]:
    """The reviews of more than `SHORT_LENGTH` tokens, and the others, shuffled."""
    rows = read_reviews(part, imdb_folder).shuffle(seed=seed)
    room = SHORT_LENGTH - tokenizer.num_special_tokens_to_add()
    parts: tuple[list[dict], list[dict]] = [], []
    for row in rows:
        text = without_tags(row)["text"]
        is_long = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) > room
        parts[not is_long].append({"text": text, "label": row["label"]})
    return parts


def labelled_documents(
    task: str, seed: int, tokenizer: PreTrainedTokenizerBase, imdb_folder: str | None
) -> dict[str, Dataset]:
    """`train`, `validation` and `test` with the columns `text` and `label`, the parts that the other conditions have."""
    if task in TRAINING_REVIEWS:
        return draw_reviews(task, seed, tokenizer, imdb_folder)
    if task == "period":
        parts = {name: rows.rename_column("period", "label") for name, rows in draw_addresses(seed).items()}
        parts["train"], parts["validation"] = hold_out_validation(parts["train"], seed)
        return parts
    return {
        name: Dataset.from_dict({"text": rows["text"][:], "label": [PARTIES[label] for label in rows["label"][:]]})
        for name, rows in load_passages(task, seed).items()
    }


def write_parts(parts: dict[str, Dataset], stem: Path) -> list[str]:
    """Writes a CSV file for each part, and returns the flags that name them."""
    flags = []
    for part, rows in parts.items():
        path = stem.with_name(f"{stem.name}-{part}.csv")
        rows.to_csv(str(path))
        flags += [f"--{part}_file", str(path)]
    return flags


def data_flags(folder: Path, tokenizer_name: str, imdb_folder: str | None) -> Callable[[str, bool, int], list[str]]:
    """How a task, as windows or not, with a seed is named to `run_classification.py`. Files are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    documents = functools.cache(lambda task, seed: labelled_documents(task, seed, tokenizer, imdb_folder))

    @functools.cache  # also since a run may be reading them
    def flags(task: str, by_window: bool, seed: int) -> list[str]:
        stem = folder / f"{task.replace(' ', '_')}-{seed}"
        if by_window:
            windows = {name: to_windows(rows, tokenizer, SHORT_LENGTH) for name, rows in documents(task, seed).items()}
            return [*write_parts(windows, folder / f"{stem.name}-windows"), "--id_column_name", "document"]
        if task == "period":
            return [*write_parts(draw_addresses(seed), stem), "--label_column_name", "period"]
        if task in TRAINING_REVIEWS:
            return write_parts(documents(task, seed), stem)
        return ["--split_by", task]

    return flags
