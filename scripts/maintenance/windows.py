# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The classes of documents that were read in windows: the mean of the windows' predictions."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, f1_score


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
