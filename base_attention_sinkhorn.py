# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What every kind of attention has, and ordinary attention, which is made of that alone.

Shape letters as in `layout_sinkhorn.py`, and `E` hidden size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs


try:  # a folder on the Hub, or any package
    from .configuration_sinkhorn import SinkhornConfig
    from .layout_sinkhorn import Layout
    from .norm_sinkhorn import SinkhornRMSNorm
    from .rotary_sinkhorn import RotaryTables, apply_rotary
except ImportError:  # flat modules, as installed
    from configuration_sinkhorn import SinkhornConfig
    from layout_sinkhorn import Layout
    from norm_sinkhorn import SinkhornRMSNorm
    from rotary_sinkhorn import RotaryTables, apply_rotary


class ProjectedBlocks(NamedTuple):
    """The input of a layer on a grid of `M` blocks of `Q` slots, and what is made of it."""

    inputs: Tensor  # (B, M, Q, E)
    query: Tensor  # (B, M, Q, H, D)
    key: Tensor  # (B, M, Q, G, D)
    value: Tensor  # (B, M, Q, G, D)

    def rotated(self, tables: RotaryTables) -> "ProjectedBlocks":
        """With queries and keys rotated by tables `(B or 1, M, Q, D)`."""
        cos, sin = tables.unsqueeze(-2)
        # Not `_replace`, which torch before 2.9 cannot compile.
        return ProjectedBlocks(
            self.inputs, apply_rotary(self.query, cos, sin), apply_rotary(self.key, cos, sin), self.value
        )


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """
    Attention as a formula. `query` `(*, H, Q, D)`, `key` and `value` `(*, G, K, D)`, `attention_mask` bool, or
    `is_causal` for queries and keys of the same tokens.

    Returns:
        The output `(*, Q, H, D)` and the weights `(*, H, Q, K)`, after dropout.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if is_causal:
        attention_mask = torch.ones(*scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SinkhornBaseAttention(nn.Module):
    """What every kind of attention has: the projections, and the call of the attention function."""

    sorts = False

    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        query_width = config.num_attention_heads * self.head_dim
        key_width = config.num_key_value_heads * self.head_dim
        has_bias = config.attention_bias in (True, "qkv")
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=has_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=has_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=has_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias is True)
        if config.qk_norm:
            self.q_norm = SinkhornRMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = SinkhornRMSNorm(self.head_dim, config.rms_norm_eps)

    @property
    def is_causal(self) -> bool:
        """Read by the library's attention functions too."""
        return self.config.is_decoder

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(..., E)` to queries `(..., H, D)`, keys and values `(..., G, D)`."""
        query, key, value = (
            proj(hidden_states).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def returns_maps(self, kwargs: dict[str, Any]) -> bool:
        wanted = kwargs.get("output_attentions", self.config.output_attentions)
        return bool(wanted) and self.config._attn_implementation == "eager"

    @property
    def dropout(self) -> float:
        """The probability of a weight to be dropped now."""
        return self.config.attention_dropout if self.training else 0.0

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        maps: bool,
        is_causal: bool = False,
        all_see: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        `query` `(*, Q, H, D)`, `key` and `value` `(*, G, K, D)`, `mask` bool `(* or 1, H or 1, Q or 1, K)`; `all_see`:
        whether every query is known to see something. Returns the output `(*, Q, H, D)`, 0 for queries that may see nothing, and with `maps` the weights `(*, H, Q, K)`.
        """
        sees_something = None
        if mask is not None:
            if not all_see:
                # Queries that see nothing may see everything, and their output is dropped: otherwise it would be NaN.
                sees_something = mask.any(-1, keepdim=True)
                mask = mask | ~sees_something
            mask = mask.expand(query.shape[0], -1, query.shape[1], -1)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query.transpose(1, 2),
            key.to(query.dtype),  # a cache may have been filled under autocast
            value.to(query.dtype),
            mask,
            dropout=self.dropout,
            scaling=self.scaling,
            is_causal=is_causal,
        )
        if not maps:
            weights = None
        if sees_something is not None:
            output = output.masked_fill(~sees_something.transpose(1, 2), 0)
            weights = None if weights is None else weights.masked_fill(~sees_something, 0)
        return output, weights


class SinkhornFullAttention(SinkhornBaseAttention):
    """Ordinary attention, `"full_attention"`, for comparison: no blocks, and the library's own cache layer."""

    def forward(
        self,
        hidden_states: Tensor,
        layout: Layout,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None, None]:
        """As `SinkhornAttention.forward`; there is no sort matrix."""
        layout, maps = layout.tokens, self.returns_maps(kwargs)
        query, key, value = self.project(hidden_states)
        cos, sin = layout.tables.unsqueeze(-2)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin).transpose(1, 2)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        output, weights = self.attend(query, key, value, layout.mask, maps, is_causal=layout.is_causal)
        if maps:
            if layout.is_real is not None:
                weights = weights.masked_fill(~layout.is_real[:, None, :, None], 0)
            # Once more, from the map, which is then part of the graph: see `attend_by_map`.
            value = value.repeat_interleave(self.num_key_value_groups, dim=1).to(weights.dtype)
            output = (weights @ value).transpose(1, 2)
        output = self.o_proj(output.flatten(-2))
        if layout.is_real is not None:
            output = output.masked_fill(~layout.is_real.unsqueeze(-1), 0)
        return output, weights, None
