# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Scores of a model: negative log-likelihood by position, and answers, given token by token and written by itself."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from compatibility_sinkhorn import CACHE_NAME, cache_of
from evaluation.tasks import Prompt


LOGITS_AT_ONCE = 512  # rows, of as many numbers as the vocabulary has


@torch.no_grad()
def nats_by_position(model: PreTrainedModel, tokens: list[int], edges: list[int]) -> dict[str, Any]:
    """
    Of the tokens of one text, each predicted from those before it.

    Args:
        edges: positions between which the loss is averaged, `[0, 1024, 2048]` for two parts.

    Returns:
        `nats`, the sum in each part, and `tokens`, how many were predicted there.
    """
    ids = torch.tensor([tokens], device=model.device)
    logits = model(ids, use_cache=False).logits[0, :-1]
    losses = torch.cat([_losses(part, ids[0, 1:][at]) for part, at in _parts(logits)])
    sums, counts = [], []
    for start, end in pairwise(edges):
        part = losses[max(start - 1, 0) : end - 1]  # the loss at 0 is of token 1
        sums.append(part.sum().item())
        counts.append(len(part))
    return {"nats": sums, "tokens": counts}


def _parts(logits: Tensor):
    for start in range(0, len(logits), LOGITS_AT_ONCE):
        at = slice(start, start + LOGITS_AT_ONCE)
        yield logits[at], at


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()


@torch.no_grad()
def answer_scores(model: PreTrainedModel, prompt: Prompt) -> dict[str, float]:
    """
    The prompt is read once, into a cache. `given`: the share of the answer's tokens that are the likeliest where those
    before them are given; `nats`: their mean loss; `written`: whether the model itself writes the answer.
    """
    ids, answer = (torch.tensor([tokens], device=model.device) for tokens in prompt)
    cache = DynamicCache(config=model.config)
    first = _next(model, ids, cache)
    given = first
    if answer.shape[1] > 1:
        if hasattr(cache, "activate_past_recording"):  # what is cropped again below must be undone in every layer
            cache.activate_past_recording()
        given = torch.cat((first, _next(model, answer[:, :-1], cache, answer.shape[1] - 1)))
        cache.crop(1 - answer.shape[1])
    losses = _losses(given, answer[0])
    right = given.argmax(-1) == answer[0]
    written, logits = [], first
    for _ in range(answer.shape[1]):
        written.append(int(logits.argmax()))
        if written[-1] != prompt.answer[len(written) - 1]:
            break
        if len(written) < answer.shape[1]:
            logits = _next(model, torch.tensor([written[-1:]], device=model.device), cache)
    return {
        "given": right.double().mean().item(),
        "nats": losses.mean().item(),
        "written": float(written == prompt.answer),
    }


def _next(model: PreTrainedModel, ids: Tensor, cache: DynamicCache, keep: int = 1) -> Tensor:
    """Logits after each of the last `keep` tokens, `(keep, V)`."""
    outputs = model(ids, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=keep)
    assert cache_of(outputs) is cache
    return outputs.logits[0]
