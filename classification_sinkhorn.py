# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What the classification heads need next to the model: dropout, the pooling of tokens, and the scale of a loss."""

from typing import Any

import torch
from torch import Tensor


def classifier_dropout(config: Any) -> float:
    return config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout


def pool_tokens(hidden_states: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """
    `(B, L, E)` tokens to `(B, E)`: the `"mean"` over real tokens, the `"last"` real token, or the first (`"cls"`),
    wherever padding is. A row without a real token gives 0 for the mean.
    """
    if attention_mask is None:
        if pooling == "mean":
            return hidden_states.mean(1)
        return hidden_states[:, 0 if pooling == "cls" else -1]
    is_real = attention_mask != 0
    if pooling == "mean":
        total = hidden_states.masked_fill(~is_real.unsqueeze(-1), 0).sum(
            1, dtype=torch.promote_types(hidden_states.dtype, torch.float32)
        )
        return (total / is_real.sum(1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)
    order = torch.arange(is_real.shape[1], device=is_real.device)
    if pooling == "cls":
        order = -order
    index = order.masked_fill(~is_real, -is_real.shape[1]).argmax(1)
    return hidden_states[torch.arange(index.shape[0], device=index.device), index]


def scale_to_step(loss: Tensor, labels: Tensor, problem_type: str, num_items_in_batch: Tensor | int | None) -> Tensor:
    """
    The part that this batch has in the loss of a whole step, of `num_items_in_batch` labels. The Trainer adds up these
    parts when it accumulates gradients. Of the library's losses of documents only the cross entropy divides by that
    number itself; the squared error and the loss of several labels are means over the labels of this batch.
    """
    if num_items_in_batch is None or problem_type == "single_label_classification":
        return loss
    return loss * (labels.numel() / num_items_in_batch)


def mask_of_new_tokens(config: Any, attention_mask: Tensor | None, num_all: int, num_tokens: int) -> Tensor | None:
    """
    The mask of the last `num_tokens` of all `num_all` tokens, where those before them are in a cache.

    Raises:
        ValueError: the pooling reads those too.
    """
    if num_all <= num_tokens:
        return attention_mask
    if config.pooling != "last":
        raise ValueError(
            f"`classifier_pooling='{config.pooling}'` reads all tokens, and those in the cache are not "
            "here: give the whole document, or use a model with `classifier_pooling='last'`."
        )
    return None if attention_mask is None else attention_mask[:, :num_all][:, -num_tokens:]
