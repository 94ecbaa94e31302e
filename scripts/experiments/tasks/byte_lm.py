# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Language modelling of bytes, on State of the Union addresses or IMDb's unsupervised reviews: bits per byte, in total
and by position in the row, in its blocks and in the document.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from experiments.tasks import TaskData, first_output, pad
from experiments.tasks.imdb import shuffled_reviews
from experiments.tasks.text import BYTE_VOCABULARY, bytes_of
from training.reviews import read
from training.shipped_data import load_address_splits


POSITIONS = 16  # parts of a row and of a document that are scored separately
BLOCK = 64  # positions inside a block that are scored separately, for any block size of the model


def chunks_of(texts: list[str], length: int) -> list[dict]:
    """Whole chunks of single documents, with where they begin, as a share of their document."""
    rows = []
    for text in texts:
        tokens = bytes_of(text)
        for start in range(0, len(tokens) - length + 1, length):
            ids = tokens[start : start + length]
            rows.append(
                {"input_ids": ids, "labels": ids, "begins": start / len(tokens), "spans": length / len(tokens)}
            )
    return rows


def collate(rows: list[dict]) -> dict[str, Tensor]:
    return pad([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])


def bits(logits: Any, labels: Tensor) -> Tensor:
    """`(B, L - 1)`: of every byte but the first."""
    losses = torch.nn.functional.cross_entropy(
        first_output(logits)[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none"
    )
    return losses / math.log(2)


def means(values: np.ndarray, bins: np.ndarray, number: int) -> list[float | None]:
    """Mean of the values in each bin."""
    sums, counts = np.bincount(bins, values, number), np.bincount(bins, minlength=number)
    return [float(total / count) if count else None for total, count in zip(sums, counts)]


def score(spent: np.ndarray, labels: np.ndarray, rows: list[dict]) -> dict[str, Any]:
    positions = np.tile(np.arange(1, spent.shape[1] + 1), (len(rows), 1))
    length = spent.shape[1] + 1
    begins, spans = (np.array([row[name] for row in rows])[:, None] for name in ("begins", "spans"))
    in_document = begins + spans * positions / length
    in_block = (positions % BLOCK).ravel()
    late = positions >= BLOCK  # the first block of a row has nothing before it, for any model
    flat = spent.ravel()
    return {
        "bits_per_byte": float(spent.mean()),
        "first_8_of_block": float(spent[late & (positions % BLOCK < 8)].mean()),
        "second_half_of_block": float(spent[late & (positions % BLOCK >= BLOCK // 2)].mean()),
        "by_position_in_block": means(flat[late.ravel()], in_block[late.ravel()], BLOCK),
        "by_position_in_row": means(flat, (positions * POSITIONS // length).ravel(), POSITIONS),
        "by_position_in_document": means(
            flat, np.minimum((in_document * POSITIONS).astype(int), POSITIONS - 1).ravel(), POSITIONS
        ),
    }


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    length = data["length"]
    if data["source"] == "sotu":
        # The same held-out addresses for all seeds: their difficulty varies more than models do.
        texts = {part: list(rows["text"]) for part, rows in load_address_splits(0).items()}
    else:
        reviews = list(shuffled_reviews(read("unsupervised", imdb_folder), 0, data["documents"])["text"])
        tenth = len(reviews) // 10
        texts = {"test": reviews[:tenth], "validation": reviews[tenth : 2 * tenth], "train": reviews[2 * tenth :]}
    chunks = {part: chunks_of(documents, length) for part, documents in texts.items()}
    for part in ("validation", "test"):
        shuffled = np.random.default_rng(0).permutation(len(chunks[part]))[: data[f"{part}_rows"]]
        chunks[part] = [chunks[part][index] for index in shuffled]
    return TaskData(
        auto_class=AutoModelForCausalLM,
        config={"vocab_size": BYTE_VOCABULARY, "pad_token_id": 0, "is_decoder": True},
        train=chunks["train"],
        validation=chunks["validation"],
        tests={"test": chunks["test"]},
        longest=length,
        reduce=bits,
        score=score,
        collate=collate,
        facts={"source": data["source"], **{part: len(rows) for part, rows in chunks.items()}},
    )
