# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Losses that the Trainer has not, or only for models that it knows by name."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def causal_loss(smoothing: float) -> Callable | None:
    """
    Of the next token, with label smoothing; `None` without, where the model computes it. The Trainer's own smoothing
    takes only models whose class it knows for causal ones: it would teach others to copy their input.
    """
    if not smoothing:
        return None

    def loss(outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits, labels = _logits(outputs)[:, :-1].float(), labels[:, 1:].to(_logits(outputs).device)
        losses = cross_entropy(logits.transpose(1, 2), labels, label_smoothing=smoothing, reduction="none")
        return _mean(losses, (labels != -100).sum(), num_items_in_batch)

    return loss


def classification_loss(weights: list[float] | None, smoothing: float) -> Callable | None:
    """Of one class a document, each weighted by its class; `None` without weights, where library and model compute it."""
    if weights is None:
        return None

    def loss(outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = _logits(outputs).float()
        labels, of_classes = labels.to(logits.device), torch.tensor(weights, device=logits.device)
        losses = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return _mean(losses * of_classes[labels], labels.numel(), num_items_in_batch)

    return loss


def balanced_weights(labels: list[int], num_classes: int) -> list[float]:
    """Each class weighs as much as any other in all; the mean over documents is 1. A class without documents has 1."""
    counts = Counter(labels)
    return [len(labels) / (len(counts) * counts[label]) if counts[label] else 1.0 for label in range(num_classes)]


def _logits(outputs) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs[0]


def _mean(losses: Tensor, number: Tensor | int, in_batch: Tensor | int | None) -> Tensor:
    """Over the items of the accumulated batch where the Trainer gives their number, else over those here."""
    total = number if in_batch is None else in_batch
    return losses.sum() / (total.to(losses.device) if isinstance(total, Tensor) else total)
