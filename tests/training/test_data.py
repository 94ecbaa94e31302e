# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The shipped data and its splits."""

import functools

import pytest
from datasets import Dataset

from training import shipped_data as sotu


@pytest.fixture(autouse=True, scope="module")
def cut_once():
    """The passages are the same for every seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sotu, "passages", functools.cache(sotu.passages))
        yield


def test_addresses_are_whole_and_small():
    assert sotu.ADDRESSES.stat().st_size < 6e6
    addresses = sotu.load_addresses()
    assert len(addresses) == 249
    assert addresses.column_names == ["address_id", "year", "president", "party", "delivery", "text"]
    assert (min(addresses["year"]), max(addresses["year"])) == (1790, 2026)
    parties = addresses["party"]
    assert (parties.count("Democratic"), parties.count("Republican")) == (94, 103)
    for address in addresses:
        assert len(address["text"].split()) > 1000
        ending = address["text"].strip().splitlines()[-1].lower()
        assert len(ending.split()) > 6 or address["president"].split()[-1].lower() not in ending


def test_passages_are_consecutive_pieces():
    text = " one two\n three  four five six seven"
    pieces = sotu.split_words(text, 3)
    assert [piece.split() for piece in pieces] == [["one", "two", "three"], ["four", "five", "six"], ["seven"]]
    lengths = [len(passage["text"].split()) for passage in sotu.passages()]
    assert 860 < len(lengths) < 880
    assert max(lengths) == 2048 and min(lengths) >= 1024


@pytest.mark.parametrize("split_by, group", [("address", "address_id"), ("president", "president")])
def test_no_group_stands_on_two_sides(split_by, group):
    splits = sotu.load_passages(split_by, seed=1)
    members = {name: set(part[group]) for name, part in splits.items()}
    assert not members["train"] & members["validation"]
    assert not members["train"] & members["test"]
    assert not members["validation"] & members["test"]
    assert sum(len(part) for part in splits.values()) == len(sotu.passages())
    for part in splits.values():
        assert len(part) >= 100
        assert 0.3 < sum(part["label"]) / len(part) < 0.7
    assert set(sotu.load_passages(split_by, seed=1)["test"][group]) == members["test"]
    assert set(sotu.load_passages(split_by, seed=2)["test"][group]) != members["test"]


def test_books_are_whole_and_split_by_document():
    folder = sotu.ADDRESSES.parent.parent / "books"
    parts = {name: Dataset.from_parquet(str(folder / f"{name}.parquet")) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 207, "validation": 11, "test": 25}
    titles = [(row["source"], row["title"]) for part in parts.values() for row in part]
    assert len(set(titles)) == len(titles)
    for part in parts.values():
        assert set(part["source"]) == {"Shakespeare", "King James Bible", "Moby Dick"}
        assert min(len(text.split()) for text in part["text"]) > 30
        assert not any("[was]" in text or "\r" in text or "\n\n\n" in text for text in part["text"])


def test_encoder_never_reads_what_the_classifier_is_tested_on():
    splits = sotu.load_address_splits(seed=1, hold_out="classification")
    tested = set(sotu.load_passages("address", seed=1)["test"]["address_id"])
    assert set(splits["test"]["address_id"]) == tested
    assert not tested & {*splits["train"]["address_id"], *splits["validation"]["address_id"]}
    assert sum(len(part) for part in splits.values()) == len(sotu.load_addresses())
