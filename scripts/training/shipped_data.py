# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The shipped task: the president's party from a long passage of a State of the Union address.

Passages of one address, or of one president, are never on both sides of a split: otherwise a model could recognise the
speech instead of the party.
"""

import re
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict
from sklearn.model_selection import StratifiedGroupKFold

from training.files import read_parquet


ADDRESSES = Path(__file__).resolve().parents[2] / "data" / "sotu" / "addresses.parquet"
PARTIES = ["Democratic", "Republican"]
PASSAGE_WORDS = 2048
SHORTEST_PASSAGE_WORDS = 1024


def load_addresses() -> Dataset:
    """All 249 addresses: `address_id`, `year`, `president`, `party`, `delivery`, `text`."""
    return read_parquet(ADDRESSES)


def split_words(text: str, num_words: int) -> list[str]:
    """Consecutive pieces of `num_words` words with their white space; the last may be shorter."""
    # One match for each piece, not for each word: a third of the time.
    return [match[0].strip() for match in re.finditer(rf"(?:\S+\s*){{1,{num_words}}}", text)] or [""]


def passages() -> Dataset:
    """Pieces of 2,048 words, at least 1,024, of the addresses by Democrats and Republicans, labelled by party."""
    records = []
    for address in load_addresses():
        if address["party"] in PARTIES:
            for text in split_words(address["text"], PASSAGE_WORDS):
                if len(text.split()) >= SHORTEST_PASSAGE_WORDS:
                    records.append(
                        {
                            "text": text,
                            "label": address["party"],
                            "address_id": address["address_id"],
                            "year": address["year"],
                            "president": address["president"],
                        }
                    )
    return Dataset.from_list(records).cast_column("label", ClassLabel(names=PARTIES))


def load_passages(split_by: str = "address", seed: int = 0) -> DatasetDict:
    """
    Train, validation and test passages, about 64, 16 and 20 percent, split by complete addresses
    (`split_by="address"`) or by complete presidents (`"president"`), with balanced parties.
    """
    everything = passages()
    # Lists, as a column of a data set reads its file for every row that is asked for.
    labels = list(everything["label"])
    groups = list(everything["address_id" if split_by == "address" else "president"])
    everything_but_test, test = _held_out_fold(labels, groups, range(len(everything)), seed)
    train, validation = _held_out_fold(labels, groups, everything_but_test, seed)
    return DatasetDict(
        {
            "train": everything.select(train),
            "validation": everything.select(validation),
            "test": everything.select(test),
        }
    )


def load_address_splits(seed: int = 0, hold_out: str = "random") -> DatasetDict:
    """
    Complete train, validation and test addresses: about 85, 5 and 10 percent, drawn by `seed`. With
    `hold_out="classification"`, the test part has the addresses that `load_passages(seed=seed)` tests on, so an
    encoder trained on the rest has never read them.
    """
    addresses = load_addresses().shuffle(seed=seed)
    rows = list(range(len(addresses)))
    if hold_out == "classification":
        tested = set(load_passages("address", seed)["test"]["address_id"])
        ids = list(addresses["address_id"])
        rows.sort(key=lambda row: ids[row] not in tested)  # stable: the rest stays shuffled
        num_test = len(tested)
    else:
        num_test = round(0.1 * len(addresses))
    num_validation = round(0.05 * len(addresses))
    return DatasetDict(
        {
            "train": addresses.select(rows[num_test + num_validation :]),
            "validation": addresses.select(rows[num_test : num_test + num_validation]),
            "test": addresses.select(rows[:num_test]),
        }
    )


def _held_out_fold(labels: list[int], groups: list[str], rows: range | list[int], seed: int) -> tuple[list, list]:
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=seed)
    splits = folds.split(list(rows), [labels[row] for row in rows], [groups[row] for row in rows])
    # A few large groups are split the same way for every random state, so another seed takes another fold.
    kept, held_out = list(splits)[seed % 5]
    return [rows[index] for index in kept], [rows[index] for index in held_out]
