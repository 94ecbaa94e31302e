# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Synthesizers (Tay et al., Synthesizer: Rethinking Self-Attention, arXiv:2005.00743), baselines that compare no token with
another: the logits of attention are made from one token alone (`dense`), or are parameters (`random`). For rows of up to
a fixed length. The rest of the network is that of the other models.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from configuration_sinkhorn import SinkhornConfig
from layout_sinkhorn import Layout


KINDS = ("dense", "random")


class SynthesizerAttention(nn.Module):
    """
    In the place of `SinkhornFullAttention`. What has an entry for each position of the longest row is named
    `position_embeddings`, and counts as tables of positions do.
    """

    def __init__(self, config: SinkhornConfig, kind: str, longest: int):
        super().__init__()
        self.is_decoder, self.num_heads = config.is_decoder, config.num_attention_heads
        width = self.num_heads * config.head_dim
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        entries = config.head_dim if kind == "dense" else longest  # by which a row of logits is made
        self.position_embeddings = nn.Parameter(torch.empty(self.num_heads, entries, longest))
        if kind == "dense":
            self.hidden_proj = nn.Linear(config.hidden_size, width)
            self.register_buffer("places", sinusoids(longest, config.hidden_size), persistent=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=config.initializer_range)
        self.kind = kind

    def forward(
        self, hidden_states: Tensor, layout: Layout, cache: None = None, **_: Any
    ) -> tuple[Tensor, None, None]:
        """`(B, L, E)` to `(B, L, E)`. There is no cache: a step would need no keys, but experiments take no steps."""
        length, is_real = hidden_states.shape[1], layout.tokens.is_real
        logits = self.logits(hidden_states)
        may_see = torch.ones(length, length, dtype=torch.bool, device=logits.device)
        may_see = may_see.tril() if self.is_decoder else may_see
        if is_real is not None:
            may_see = may_see & is_real[:, None, None]
        weights = logits.masked_fill(~may_see, torch.finfo(logits.dtype).min).softmax(-1)
        value = self.v_proj(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.o_proj((weights.to(value.dtype) @ value).transpose(1, 2).flatten(-2)), None, None

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`(B or 1, H, L, L)`: of each token for each position."""
        length = hidden_states.shape[1]
        if self.kind == "random":
            return self.position_embeddings[None, :, :length, :length]
        # A token alone does not know where it stands. The paper's model adds positions to its inputs; here they are
        # added to what the logits are made from, as rotary positions turn what they are made from elsewhere.
        hidden = self.hidden_proj(hidden_states + self.places[:length].to(hidden_states.dtype)).relu()
        return hidden.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) @ self.position_embeddings[..., :length]


def sinusoids(longest: int, width: int) -> Tensor:
    """`(L, E)`, as Vaswani et al., arXiv:1706.03762, section 3.5."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(longest)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def as_synthesizer(model: PreTrainedModel, kind: str, longest: int) -> PreTrainedModel:
    """The model, a Sinkhorn one, with every attention replaced."""
    for layer in model.base_model.layers:
        layer.self_attn = SynthesizerAttention(model.config, kind, longest)
    return model
