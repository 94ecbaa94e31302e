# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""F1 as a local `evaluate` metric, so that no network is needed: `evaluate.load("metrics/f1")`."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    def _info(self):
        integer = datasets.Value("int64")
        feature = datasets.Sequence(integer) if self.config_name == "multilabel" else integer
        return evaluate.MetricInfo(
            description="The harmonic mean of precision and recall.",
            citation="",
            inputs_description="predictions and references: lists of class numbers; average: as in scikit-learn.",
            features=datasets.Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, predictions, references, average="macro"):
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0))}
