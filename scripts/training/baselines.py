# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Baselines for a classifier: the majority class, and a bag of words (TF-IDF)."""

from collections import Counter

from datasets import DatasetDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score


FIRST_WORDS = 512


def baseline_scores(splits: DatasetDict, part: str) -> dict[str, dict[str, float]]:
    """Accuracy and macro F1 of each baseline on `splits[part]`, trained on `splits["train"]`."""
    train, held_out = splits["train"], splits[part]
    labels, truth = train["label"][:], held_out["label"][:]
    majority = Counter(labels).most_common(1)[0][0]
    scores = {"majority class": _scores(truth, [majority] * len(truth))}
    if len(set(labels)) == 1:  # a small sample of documents: nothing to learn
        return scores
    for name, num_words in ((f"TF-IDF, first {FIRST_WORDS} words", FIRST_WORDS), ("TF-IDF, whole text", None)):
        vectorizer = TfidfVectorizer(sublinear_tf=True)
        features = vectorizer.fit_transform(_first_words(train["text"][:], num_words))
        model = LogisticRegression(C=10, max_iter=1000).fit(features, labels)
        predicted = model.predict(vectorizer.transform(_first_words(held_out["text"][:], num_words)))
        scores[name] = _scores(truth, predicted)
    return scores


def _first_words(texts: list[str], num_words: int | None) -> list[str]:
    return texts if num_words is None else [" ".join(text.split()[:num_words]) for text in texts]


def _scores(truth, predicted) -> dict[str, float]:
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro")),
    }
