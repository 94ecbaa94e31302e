# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A document's class as the mean of what its tokens say, for encoders whose own classifiers read the first token alone, as
BERT's do. The model is one that classifies tokens, so that its folder needs no code of ours: the mean of its logits is a
linear head on the mean of its last states.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from common.errors import UserError


FIELD, MEAN, FIRST = "classifier_pooling", "mean", "cls"


def choose_pooling(config: PreTrainedConfig, pooling: str | None) -> None:
    """
    Writes the pooling that a flag names into the configuration; `None` leaves it.

    Raises:
        UserError: the flag names none, or not one of this type of model.
    """
    if pooling is None:
        return
    if pooling not in (MEAN, FIRST):
        raise UserError(f"--{FIELD} must be {MEAN} or {FIRST}, got {pooling}.")
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise UserError(f"--{FIELD} {pooling}: {config.model_type} models do not classify tokens; leave the flag out.")
    setattr(config, FIELD, pooling)


def takes_mean_of_tokens(config: PreTrainedConfig) -> bool:
    """Whether a document's class is the mean of its tokens' ones, as the model's own classifier does not pool so."""
    return getattr(config, FIELD, None) == MEAN and not hasattr(AutoConfig.for_model(config.model_type), FIELD)


def classifier_class(config: PreTrainedConfig) -> type:
    """The Auto class of a classifier of documents."""
    return AutoModelForTokenClassification if takes_mean_of_tokens(config) else AutoModelForSequenceClassification


def mean_logits(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """`(B, L, classes)` and `(B, L)` to `(B, classes)`."""
    mask = attention_mask.unsqueeze(-1)
    return (logits * mask).sum(1, dtype=torch.promote_types(logits.dtype, torch.float32)) / mask.sum(1)


def read_documents(model: PreTrainedModel) -> None:
    """Makes the forward pass of a model that classifies tokens one of a model that classifies documents."""
    classify_tokens = model.forward

    @functools.wraps(classify_tokens)  # whose signature tells the Trainer which columns it takes
    def forward(*args: Any, attention_mask: Tensor, labels: Tensor | None = None, **kwargs: Any):
        tokens = classify_tokens(*args, attention_mask=attention_mask, **kwargs).logits
        logits, loss = mean_logits(tokens, attention_mask), None
        if labels is not None:
            loss = ForSequenceClassificationLoss(labels, logits, model.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    model.forward = forward
    model.accepts_loss_kwargs = False  # the loss is a mean over the batch, which the Trainer scales
