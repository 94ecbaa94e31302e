# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Accuracy as a local `evaluate` metric, so that no network is needed: `evaluate.load("metrics/accuracy")`."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score


class Accuracy(evaluate.Metric):
    def _info(self):
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="The share of predictions that equal their references.",
            citation="",
            inputs_description="predictions and references: lists of class numbers.",
            features=datasets.Features({"predictions": integer, "references": integer}),
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
