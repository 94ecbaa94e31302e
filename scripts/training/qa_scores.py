# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The answers that a model gives, and their scores: exact match and F1 of words, as SQuAD counts them, from 0 to 1."""

import re
import string
from collections import Counter

import torch
from torch import Tensor


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
SCORES = ("exact_match", "f1")


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and spare spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def word_f1(prediction: str, reference: str) -> float:
    """Of the words of the two; 1 where nothing is left of both."""
    predicted, expected = normalised(prediction).split(), normalised(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def score_answer(prediction: str, references: list[str]) -> dict[str, float]:
    """Against the reference that is best for each score."""
    return {
        "exact_match": float(any(normalised(prediction) == normalised(reference) for reference in references)),
        "f1": max(word_f1(prediction, reference) for reference in references),
    }


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Over answers. There must be one."""
    return {name: sum(score[name] for score in scores) / len(scores) for name in SCORES}


def best_spans(starts: Tensor, ends: Tensor, first: Tensor, stop: Tensor, longest_answer: int) -> Tensor:
    """
    The span of the context with the largest sum of logits.

    Args:
        starts: `(B, L)` logits of the first token; `ends`: of the last.
        first: `(B,)` first token of the context; `stop`: the one behind its last.
        longest_answer: tokens of the longest span.

    Returns:
        `(B, 2)`: its first and last token. The memory is that of `(B, L, longest_answer)` numbers.
    """
    places = torch.arange(starts.shape[1], device=starts.device)
    is_outside = (places < first.unsqueeze(1)) | (places >= stop.unsqueeze(1))
    starts, ends = (part.float().masked_fill(is_outside, -torch.inf) for part in (starts, ends))
    ends = torch.nn.functional.pad(ends, (0, longest_answer - 1), value=-torch.inf)
    sums = starts.unsqueeze(2) + ends.unfold(1, longest_answer, 1)
    best = sums.flatten(1).argmax(1)
    begin = best // longest_answer
    return torch.stack((begin, begin + best % longest_answer), dim=1)
