# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Texts to tokens: bytes, or a BPE trained on the training texts alone. And classification of texts."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification

from experiments.tasks import TaskData, most_likely_class, pad
from training.tokenizer import SPECIAL_TOKENS, train_tokenizer


SPECIALS = len(SPECIAL_TOKENS)  # a byte's token is its value plus this
BYTE_VOCABULARY = SPECIALS + 256
START, END = SPECIAL_TOKENS.index("<s>"), SPECIAL_TOKENS.index("</s>")


def bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + SPECIALS


class Encoder:
    """Texts to tokens, `<s>` first, cut to `max_tokens` (`None`: whole)."""

    def __init__(self, train_texts: Sequence[str], vocabulary: int | None, max_tokens: int | None):
        self.max_tokens = max_tokens
        self.tokenizer = None if vocabulary is None else train_tokenizer(train_texts, vocabulary, False)
        self.vocab_size = BYTE_VOCABULARY if vocabulary is None else len(self.tokenizer)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.tokenizer is None:
            rows = [np.concatenate(([START], bytes_of(text[: self.max_tokens]))) for text in texts]
        else:
            rows = [np.array(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        return [row[: self.max_tokens] for row in rows]


def macro_f1(predictions: np.ndarray, labels: np.ndarray, rows) -> dict[str, float]:
    return {
        "accuracy": float((predictions == labels).mean()),
        "macro_f1": float(f1_score(labels, predictions, average="macro")),
    }


def classification(parts: dict[str, Dataset], data: dict, num_labels: int, facts: dict) -> TaskData:
    """From `train`, `validation` and `test` with the columns `text` and `label`."""
    encode = Encoder(parts["train"]["text"], data.get("vocabulary"), data.get("max_tokens"))
    rows = {
        part: [{"input_ids": ids, "labels": label} for ids, label in zip(encode(split["text"]), split["label"])]
        for part, split in parts.items()
    }
    lengths = [len(row["input_ids"]) for part in rows.values() for row in part]
    return TaskData(
        auto_class=AutoModelForSequenceClassification,
        config={
            "vocab_size": encode.vocab_size,
            "num_labels": num_labels,
            "pad_token_id": 0,
            "classifier_pooling": "mean",
        },
        train=rows["train"],
        validation=rows["validation"],
        tests={"test": rows["test"]},
        longest=max(lengths),
        reduce=most_likely_class,
        score=macro_f1,
        collate=pad,
        facts=facts
        | {part: len(split) for part, split in rows.items()}
        | {"median_tokens": float(np.median(lengths))},
    )
