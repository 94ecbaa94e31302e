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
from torch.nn.functional import scaled_dot_product_attention
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
        value = self.v_proj(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        mixed = self.mix(hidden_states, value, layout.tokens.is_real)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2)), None, None

    def mix(self, hidden_states: Tensor, value: Tensor, is_real: Tensor | None) -> Tensor:
        """`value` `(B, H, L, D)`, mixed by the softmax of the logits over the places `(B, L)` that are real."""
        batch, length = hidden_states.shape[:2]
        if self.kind == "dense":
            # A token alone does not know where it stands. The paper's model adds positions to its inputs; here they are
            # added to what the logits are made from, as rotary positions turn what they are made from elsewhere.
            hidden = self.hidden_proj(hidden_states + self.places[:length].to(hidden_states.dtype)).relu()
            # Its logits are products, with the same keys whatever the text: what is fast for attention serves.
            query = hidden.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            key = self.position_embeddings[..., :length].mT.expand(batch, -1, -1, -1).to(query.dtype)
            may_see = self.may_see(length, is_real, query.device) if is_real is not None else None
            return scaled_dot_product_attention(
                query, key, value, attn_mask=may_see, is_causal=self.is_decoder and may_see is None, scale=1.0
            )
        logits = self.position_embeddings[:, :length, :length]
        may_see = self.may_see(length, is_real, logits.device)
        weights = logits.masked_fill(~may_see, torch.finfo(logits.dtype).min).softmax(-1).to(value.dtype)
        if is_real is None:  # one map for all rows, which a product with broadcasting would copy for each
            return torch.einsum("hij,bhjd->bhid", weights, value)
        return weights @ value

    def may_see(self, length: int, is_real: Tensor | None, device: torch.device) -> Tensor:
        """`(L, L)`, or `(B, 1, L, L)` where some places are not real."""
        may_see = torch.ones(length, length, dtype=torch.bool, device=device)
        may_see = may_see.tril() if self.is_decoder else may_see
        return may_see if is_real is None else may_see & is_real[:, None, None]


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
