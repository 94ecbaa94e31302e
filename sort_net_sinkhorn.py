# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The SortNet, which says which block is sorted next to which: block descriptors, or queries and keys, to logits to a
balanced sort matrix (design sections 2.2 to 2.4 and 9.3). What it needs to resume from a cache is in
`cached_attention_sinkhorn.py`.

Shape letters as in `routing_sinkhorn.py`, and `E` hidden size, `M` destination blocks.
"""

import math

import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast


try:  # a folder on the Hub, or any package
    from .balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
    from .configuration_sinkhorn import SinkhornConfig
    from .layout_sinkhorn import BlockLayout
    from .shares_sinkhorn import log_piece_lengths, log_shares, piece_means, prefix_means
    from .sorting_sinkhorn import (
        block_means,
        block_sums,
        causal_block_descriptors,
        gumbel_noise,
        packed_causal_descriptors,
        same_document,
    )
    from .token_scores_sinkhorn import MAX_OF_PLAN, BlockScores, KeyScores, slices
except ImportError:  # flat modules, as installed
    from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
    from configuration_sinkhorn import SinkhornConfig
    from layout_sinkhorn import BlockLayout
    from shares_sinkhorn import log_piece_lengths, log_shares, piece_means, prefix_means
    from sorting_sinkhorn import (
        block_means,
        block_sums,
        causal_block_descriptors,
        gumbel_noise,
        packed_causal_descriptors,
        same_document,
    )
    from token_scores_sinkhorn import MAX_OF_PLAN, BlockScores, KeyScores, slices


class SinkhornSortNet(nn.Module):
    """Learns which block is sorted next to which."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.config = config
        self.compares_keys = config.sort_net in ("keys", "index")
        # Not the number of heads, of which a process has a part under tensor parallelism.
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        if config.sort_net == "index":
            self.index_proj = nn.Parameter(
                torch.empty(config.num_key_value_heads, config.head_dim, config.index_head_dim)
            )
            if config.merges_index_heads:
                width = self.num_key_value_groups * config.head_dim
                self.index_query_proj = nn.Parameter(
                    torch.empty(config.num_key_value_heads, width, config.index_head_dim)
                )
        elif config.sort_net == "bilinear":
            width = config.num_key_value_heads * config.head_dim
            self.row_proj = nn.Linear(config.hidden_size, width, bias=False)
            self.column_proj = nn.Linear(config.hidden_size, width, bias=False)
        elif not self.compares_keys:
            if config.sort_net == "mlp":
                self.hidden_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.max_num_blocks, bias=False)

    def forward(
        self, blocks: Tensor, layout: BlockLayout, query: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """
        `(B, N, b, E)` blocks of the attention's input to the sort matrix `(B, G, N, N)` in float32. What compares keys
        reads `query` `(B, N, b, H, D)` and `key` `(B, G, N, b, D)` instead, rotated.
        """
        if self.compares_keys:
            logits = self._logits_of_keys(query, key, layout)
            if not self.config.is_decoder:
                return sinkhorn_balance(self.perturb(logits), layout.balanced, self.config.sinkhorn_iterations)
            return self.balance_causally(logits, layout.balanced)[0]
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

    # Queries and keys -----------------------------------------------------------------------------------------------

    @property
    def piece_size(self) -> int:
        """Tokens whose keys are averaged."""
        return self.config.key_piece_size if self.config.sort_net == "keys" else 1

    @property
    def queries_per_group(self) -> int:
        """Queries of one token that are compared with a key: `r`."""
        return 1 if self.config.merges_index_heads else self.num_key_value_groups

    def compared_queries(self, query: Tensor) -> Tensor:
        """`(B, M, Q, H, D)` rotated queries to what is compared, `(B, G, r, M * Q, C)`; `r` is 1 of merged heads."""
        return self.of_query_heads(query.flatten(1, 2).unflatten(2, (-1, self.num_key_value_groups)).transpose(1, 2))

    def compared_keys(self, key: Tensor) -> Tensor:
        """`(B, G, N, b, D)` rotated keys to what is compared, `(B, G, N, b, C)`."""
        return self.of_heads(key.flatten(2, 3)).unflatten(2, key.shape[2:4])

    def of_heads(self, x: Tensor) -> Tensor:
        """Rotated queries or keys of heads, `(B, G, *, D)`, to what is compared of them, `(B, G, *, C)`."""
        return _at_least_float32(x.detach()) if self.config.sort_net == "keys" else _project(x, self.index_proj)

    def of_query_heads(self, query: Tensor) -> Tensor:
        """`(B, G, n, r, D)` rotated queries to what is compared of them, `(B, G, r, n, C)`; `r` is 1 of merged heads."""
        if self.config.merges_index_heads:
            return _project(query.flatten(3), self.index_query_proj).unsqueeze(2)
        query = query.transpose(2, 3)
        return self.of_heads(query.flatten(2, 3)).unflatten(2, query.shape[2:4])

    def key_scores(
        self,
        query: Tensor,
        pieces: Tensor,
        own_key: Tensor | None,
        slot: Tensor,
        filled: Tensor | None = None,
        same_document: Tensor | None = None,
    ) -> KeyScores:
        """
        Args:
            query: `compared_queries`.
            pieces: `(B, G, N, p, C)`, means of `compared_keys`.
            own_key: of causal queries, `(B, G, n, C)`.
            slot: `(B or 1, n)` where the queries stand.
            filled: `(B or 1, N, b)`, slots of keys that hold a token; `None` for all.
        """
        lengths: Tensor | float = math.log2(self.piece_size)
        if filled is not None:
            lengths = log_piece_lengths(filled, self.piece_size, query.dtype)
        query = query * (self.config.head_dim**-0.5 / math.log(2))
        return KeyScores(query, pieces, lengths, own_key, slot, self.piece_size, same_document)

    def scores_of_tokens(
        self, blocks: Tensor, query: Tensor, key: Tensor, layout: BlockLayout
    ) -> BlockScores | KeyScores:
        """What routing by token compares in whole rows, of the same as `forward`."""
        if self.compares_keys:
            return self._scores_of_keys(query, key, layout)
        return self.block_scores(
            self.row_proj(blocks), self.column_proj(block_means(blocks, layout.grid).to(blocks.dtype))
        )

    def block_scores(self, rows: Tensor, columns: Tensor) -> BlockScores:
        """`(B, M, Q, G * D)` features of tokens and `(B, N, G * D)` of blocks."""
        rows, columns = (
            _at_least_float32(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for x in (rows.flatten(1, 2), columns)
        )
        return BlockScores(rows, columns, self.config.head_dim**-0.5)

    def _scores_of_keys(self, query: Tensor, key: Tensor, layout: BlockLayout) -> KeyScores:
        grid, keys, own_key = layout.grid, self.compared_keys(key), None
        if self.config.is_decoder:
            own_key = prefix_means(keys, self.piece_size).flatten(2, 3)
        pieces = piece_means(keys, grid.filled, self.piece_size)
        slot = torch.arange(grid.num_blocks * grid.block_size, device=key.device).unsqueeze(0)
        same = None if grid.document is None else same_document(grid.document, grid.document)
        return self.key_scores(self.compared_queries(query), pieces, own_key, slot, grid.filled, same)

    def _logits_of_keys(self, query: Tensor, key: Tensor, layout: BlockLayout) -> Tensor:
        """`(B, G, N, N)`: in a decoder of each block's first token, otherwise of the mean share of its tokens."""
        grid, b = layout.grid, layout.grid.block_size
        if self.config.is_decoder:
            scores = self._scores_of_keys(query, key, layout)
            first = KeyScores(
                scores.query[:, :, :, ::b],
                scores.pieces,
                scores.log_lengths,
                scores.own_key[:, :, ::b],
                scores.slot[:, ::b],
                scores.piece_size,
                scores.same_document,
            )
            return first.logits(slice(0, grid.num_blocks), grid.num_blocks)
        scores = self._scores_of_keys(query, key, layout)
        parts = []
        for blocks in slices(slice(0, grid.num_blocks), scores.of_plan * b, MAX_OF_PLAN, key.device):
            shares = scores.shares(slice(blocks.start * b, blocks.stop * b), grid.num_blocks).unflatten(2, (-1, b))
            if grid.filled is None:
                parts.append(shares.mean(3))
                continue
            filled = grid.filled[:, blocks, :, None].unsqueeze(1)
            parts.append(shares.masked_fill(~filled, 0).sum(3) / filled.sum(3).clamp(min=1))
        return log_shares(torch.cat(parts, dim=2))

    # Balancing ------------------------------------------------------------------------------------------------------

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


def _project(x: Tensor, projection: Tensor) -> Tensor:
    """`(B, G, n, D)` by the `(D, C)` of its head."""
    if hasattr(projection, "to_local"):  # under tensor parallelism, a part for the heads of this process
        projection = projection.to_local()
    with maybe_autocast(device_type=x.device.type, enabled=False):
        return _at_least_float32(x) @ _at_least_float32(projection)


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, double stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
