# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""One layer: Llama's block around the attention of `attention_sinkhorn.py`. `E` is the hidden size."""

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs


try:  # a folder on the Hub, or any package
    from .attention_sinkhorn import SinkhornAttention
    from .base_attention_sinkhorn import SinkhornFullAttention
    from .configuration_sinkhorn import SinkhornConfig
    from .layout_sinkhorn import Layout
    from .norm_sinkhorn import SinkhornRMSNorm
    from .token_attention_sinkhorn import SinkhornTokenAttention
except ImportError:  # flat modules, as installed
    from attention_sinkhorn import SinkhornAttention
    from base_attention_sinkhorn import SinkhornFullAttention
    from configuration_sinkhorn import SinkhornConfig
    from layout_sinkhorn import Layout
    from norm_sinkhorn import SinkhornRMSNorm
    from token_attention_sinkhorn import SinkhornTokenAttention


class SinkhornMLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def attention_class(config: SinkhornConfig, layer_idx: int) -> type[nn.Module]:
    layer_type = config.layer_types[layer_idx]
    if layer_type == "full_attention":
        return SinkhornFullAttention
    by_token = config.sort_granularity == "token" and layer_type != "local_attention"
    return SinkhornTokenAttention if by_token else SinkhornAttention


class SinkhornLayer(GradientCheckpointingLayer):
    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__()
        self.self_attn = attention_class(config, layer_idx)(config, layer_idx)
        self.mlp = SinkhornMLP(config)
        self.input_layernorm = SinkhornRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SinkhornRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        layout: Layout,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """`(B, L, E)` to `(B, L, E)`."""
        attended, _, _ = self.self_attn(self.input_layernorm(hidden_states), layout, cache, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
