# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Rotary position embeddings (RoPE). Shape letters as in `sorting_sinkhorn.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.utils.generic import maybe_autocast


try:  # a folder on the Hub, or any package
    from .configuration_sinkhorn import SinkhornConfig
except ImportError:  # flat modules, as installed
    from configuration_sinkhorn import SinkhornConfig


class RotaryTables(NamedTuple):
    """
    Cosines and sines, of one shape each; their second half of `D` repeats the first. Both are `None` where nothing is
    rotated here: `NO_ROTATION`.
    """

    cos: Tensor | None
    sin: Tensor | None

    def unsqueeze(self, dim: int) -> "RotaryTables":
        return self if self.cos is None else RotaryTables(self.cos.unsqueeze(dim), self.sin.unsqueeze(dim))

    def rows(self, rows: slice) -> "RotaryTables":
        """Cuts dimension 1."""
        return self if self.cos is None else RotaryTables(self.cos[:, rows], self.sin[:, rows])


NO_ROTATION = RotaryTables(None, None)  # of queries and keys that are rotated already, or need not be


class SinkhornRotaryEmbedding(nn.Module):
    """Rotary position embeddings (RoPE), every variant of `rope_parameters` that the library knows."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = self.rope_init_fn(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "SinkhornRotaryEmbedding":
        """Keeps the dtype of frequencies under `model.to(dtype)`: rounded ones give wrong phases far into a text."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    @property
    def rope_init_fn(self) -> Callable:
        if self.rope_type == "default":
            return self.compute_default_rope_parameters
        return ROPE_INIT_FUNCTIONS[self.rope_type]

    @staticmethod
    def compute_default_rope_parameters(config: SinkhornConfig, **kwargs: Any) -> tuple[Tensor, float]:
        """Inverse frequencies `(D / 2,)` and the scale of the tables, 1."""
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponent, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, L)` positions to cosines and sines, `(B, L, D)` in the dtype of `x`."""
        return self.tables(position_ids, x.dtype)

    @torch.no_grad()
    @dynamic_rope_update
    def update_frequencies(self, x: Tensor, position_ids: Tensor) -> None:
        """Chooses the frequencies of a pass, where they depend on the largest position. Call it before `tables`."""

    def update_for(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_length: int | Tensor,
    ) -> None:
        """The same for the tokens of a pass, `(B, L, E)`, which continue `past_length` others."""
        if self.rope_type == "default":
            return
        if position_ids is None:  # ranks: the largest is enough
            counts = inputs_embeds.shape[1] + past_length if attention_mask is None else attention_mask.sum(-1)
            position_ids = torch.zeros_like(inputs_embeds[:, :1, 0], dtype=torch.long) + (counts - 1)
        self.update_frequencies(inputs_embeds, position_ids)

    @torch.no_grad()
    def tables(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As `forward`, with the current frequencies."""
        with maybe_autocast(device_type=position_ids.device.type, enabled=False):
            angles = position_ids.unsqueeze(-1).float() * self.inv_freq.to(position_ids.device, torch.float)
            angles = torch.cat((angles, angles), dim=-1)
            cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(dtype), sin.to(dtype)


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Rotates `x` by tables that broadcast to it; by `NO_ROTATION`, not at all."""
    if cos is None:
        return x
    return x * cos + rotate_half(x) * sin
