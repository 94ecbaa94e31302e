# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Long documents for an encoder of short inputs: cut into windows, and the windows' predictions averaged."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import PreTrainedTokenizerBase


def windows_of(text: str, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> list[str]:
    """
    Consecutive pieces of `text` of at most `num_tokens` tokens with the special ones, at least one piece. A window ends
    with a word: the tokenizer would make other tokens of half a word.
    """
    room = num_tokens - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places, words = encoded["offset_mapping"], encoded.word_ids()
    pieces, start = [], 0
    while start < len(places):
        end = min(start + room, len(places))
        cut = end
        while start < cut < len(places) and words[cut] == words[cut - 1]:
            cut -= 1
        end = end if cut == start else cut  # a word longer than the window is cut
        pieces.append(text[places[start][0] : places[end - 1][1]])
        start = end
    return pieces or [text]


def to_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Dataset:
    """A row for each window: its `text`, its document's `label`, and the document's number as `document`."""
    return Dataset.from_list(
        [
            {"text": window, "label": row["label"], "document": number}
            for number, row in enumerate(rows)
            for window in windows_of(row["text"], tokenizer, num_tokens)
        ]
    )


def document_scores(predictions: Path) -> dict[str, float]:
    """
    Accuracy and macro F1 by document, of a `predict_results.tsv` whose rows are windows and whose `id` is the document:
    the class with the highest mean probability is predicted.
    """
    windows, truth = defaultdict(list), {}
    with open(predictions, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            shares = {name[2:-1]: float(cell) for name, cell in row.items() if name.startswith("p(")}
            windows[row["id"]].append(list(shares.values()))
            truth[row["id"]] = row["label"]
            classes = list(shares)
    predicted = [classes[np.mean(windows[document], axis=0).argmax()] for document in truth]
    return {
        "accuracy": float(accuracy_score(list(truth.values()), predicted)),
        "macro_f1": float(f1_score(list(truth.values()), predicted, average="macro")),
    }
