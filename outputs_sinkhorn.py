# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What the models return: the library's outputs, with the sort matrices."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)


@dataclass
class SinkhornModelOutput(BaseModelOutputWithPast):
    """
    `BaseModelOutputWithPast`, and `sort_matrices`: with `output_sort_matrices=True`, one `(B, G, N, N)` tensor for
    each layer that sorts, from the first to the last.
    """

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornMaskedLMOutput(MaskedLMOutput):
    """`MaskedLMOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornSequenceClassifierOutput(SequenceClassifierOutputWithPast):
    """`SequenceClassifierOutputWithPast`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornTokenClassifierOutput(TokenClassifierOutput):
    """`TokenClassifierOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """`QuestionAnsweringModelOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None
