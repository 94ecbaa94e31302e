# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The SortNet, which learns which block is sorted next to which: block descriptors to logits to a balanced sort matrix
(design sections 2.2 to 2.4). What it needs to resume from a cache is in `cached_attention_sinkhorn.py`.

Shape letters as in `sorting_sinkhorn.py`, and `E` hidden size, `M` destination blocks.
"""

import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast


try:  # a folder on the Hub, or any package
    from .balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
    from .configuration_sinkhorn import SinkhornConfig
    from .layout_sinkhorn import BlockLayout
    from .sorting_sinkhorn import (
        block_means,
        block_sums,
        causal_block_descriptors,
        gumbel_noise,
        packed_causal_descriptors,
    )
except ImportError:  # flat modules, as installed
    from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
    from configuration_sinkhorn import SinkhornConfig
    from layout_sinkhorn import BlockLayout
    from sorting_sinkhorn import (
        block_means,
        block_sums,
        causal_block_descriptors,
        gumbel_noise,
        packed_causal_descriptors,
    )


class SinkhornSortNet(nn.Module):
    """Learns which block is sorted next to which."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.config = config
        if config.sort_net == "bilinear":
            width = config.num_key_value_heads * config.head_dim
            self.row_proj = nn.Linear(config.hidden_size, width, bias=False)
            self.column_proj = nn.Linear(config.hidden_size, width, bias=False)
        else:
            if config.sort_net == "mlp":
                self.hidden_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.max_num_blocks, bias=False)

    def forward(self, blocks: Tensor, layout: BlockLayout) -> Tensor:
        """`(B, N, b, E)` blocks of the attention's input to the sort matrix `(B, G, N, N)` in float32."""
        pooling = self.config.sort_pooling
        if not self.config.is_decoder:
            means = block_means(blocks, layout.grid)
            descriptors = means
            if pooling != "mean":
                descriptors = block_sums(blocks) if pooling == "sum" else blocks[:, :, 0]
            logits = self.logits(descriptors, means, blocks.dtype, layout)
            return sinkhorn_balance(self.perturb(logits), layout.balanced, self.config.sinkhorn_iterations)
        sums, b = block_sums(blocks), self.config.block_size
        if layout.grid.document is None:
            descriptors, _ = causal_block_descriptors(blocks[:, :, 0], sums, b, pooling, None, None)
        else:
            descriptors = packed_causal_descriptors(blocks[:, :, 0], sums, layout.grid, pooling)
        logits = self.logits(descriptors, sums / b, blocks.dtype, layout)
        return self.balance_causally(logits, layout.balanced)[0]

    def logits(self, descriptors: Tensor, means: Tensor, dtype: torch.dtype, layout: BlockLayout) -> Tensor:
        """Descriptors and means `(B, N, E)` to sorting logits `(B, G, N, N)` in float32."""
        rows, columns = self.features(descriptors, means, dtype)
        number = layout.grid.block_of_document
        if columns is not None or number is None:
            return self.compare(rows, columns, layout.grid.num_blocks)
        # The outputs of a net of fixed size are for the blocks of a document, wherever it is in a packed row.
        logits = self.compare(rows, None, self.config.max_num_blocks)  # (B, G, N, max_num_blocks)
        index = number.clamp(max=self.config.max_num_blocks - 1)[:, None, None]
        return logits.gather(-1, index.expand(*logits.shape[:-1], -1))

    def features(self, descriptors: Tensor, means: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """
        What is compared of each block: as a destination, from its descriptor, and as a source, from its mean, both
        `(B, N, E)`. Returns `(B, N, G * D)` twice, or logits for all sources, `(B, N, G * max_num_blocks)`, and
        `None`.
        """
        same = descriptors is means
        descriptors = descriptors.to(dtype)
        if self.config.sort_net == "bilinear":
            return self.row_proj(descriptors), self.column_proj(descriptors if same else means.to(dtype))
        if self.config.sort_net == "mlp":
            descriptors = self.hidden_proj(descriptors).relu()
        return self.proj(descriptors), None

    def compare(self, rows: Tensor, columns: Tensor | None, num_blocks: int) -> Tensor:
        """`features` of `M` destinations and `num_blocks` sources to sorting logits `R`, `(B, G, M, N)` in float32."""
        config = self.config
        if columns is None:
            logits = rows.unflatten(-1, (-1, config.max_num_blocks)).transpose(1, 2)
            missing = num_blocks - config.max_num_blocks  # a cache has one more block, which never holds a token
            return _at_least_float32(nn.functional.pad(logits, (0, missing)))
        rows, columns = (x.unflatten(-1, (-1, config.head_dim)).transpose(1, 2) for x in (rows, columns))
        # In half precision, also under autocast, logits that differ by little would be rounded to ties.
        with maybe_autocast(device_type=rows.device.type, enabled=False):
            return _at_least_float32(rows) @ _at_least_float32(columns).transpose(-1, -2) * config.head_dim**-0.5

    def balance_causally(
        self, logits: Tensor, allowed: Tensor, columns: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`causal_sinkhorn_balance` as configured: the sort matrix and the new column sums."""
        config = self.config
        capacity = config.causal_balancing == "capacity"
        return causal_sinkhorn_balance(self.perturb(logits), allowed, config.sinkhorn_iterations, columns, capacity)

    def perturb(self, logits: Tensor) -> Tensor:
        """Applies Gumbel noise, in training mode alone, and the temperature."""
        if self.training and self.config.gumbel_noise:
            logits = logits + gumbel_noise(logits)
        return logits / self.config.sinkhorn_temperature


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, double stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
