# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sparse Sinkhorn Attention (Tay et al., ICML 2020, arXiv:2002.11296) as modules: the SortNet that learns which block
belongs beside which, and the attention of one layer, of any entry of `layer_types`. The mathematics is in
`balancing_sinkhorn.py` and `sorting_sinkhorn.py`.

Shape letters as there and in `context_sinkhorn.py`, and `E` hidden size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import maybe_autocast


try:  # a folder on the Hub, or any package
    from .balancing_sinkhorn import causal_floor, causal_sinkhorn_balance, sinkhorn_balance
    from .cache_sinkhorn import OpenBlock, SinkhornDynamicLayer
    from .configuration_sinkhorn import SinkhornConfig
    from .context_sinkhorn import BlockContext, Context, TokenContext
    from .kernels_sinkhorn import Gathered, Mixed, Rotation, block_attention, fits
    from .sorting_sinkhorn import (
        BlockGrid,
        HardSort,
        block_means,
        block_sums,
        causal_block_descriptors,
        from_blocks,
        gather_blocks,
        gumbel_noise,
        hard_assignment,
        hard_sort,
        local_offsets,
        local_window,
        packed_causal_descriptors,
        soft_sort,
        to_blocks,
    )
except ImportError:  # flat modules, as installed
    from context_sinkhorn import BlockContext, Context, TokenContext
    from kernels_sinkhorn import Gathered, Mixed, Rotation, block_attention, fits

    from balancing_sinkhorn import causal_floor, causal_sinkhorn_balance, sinkhorn_balance
    from cache_sinkhorn import OpenBlock, SinkhornDynamicLayer
    from configuration_sinkhorn import SinkhornConfig
    from sorting_sinkhorn import (
        BlockGrid,
        HardSort,
        block_means,
        block_sums,
        causal_block_descriptors,
        from_blocks,
        gather_blocks,
        gumbel_noise,
        hard_assignment,
        hard_sort,
        local_offsets,
        local_window,
        packed_causal_descriptors,
        soft_sort,
        to_blocks,
    )


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates `x` by tables that broadcast to it."""
    return x * cos + rotate_half(x) * sin


# --------------------------------------------------------------------------------------------------------------------
# Sorting
# --------------------------------------------------------------------------------------------------------------------


class SinkhornSortNet(nn.Module):
    """Learns which block belongs beside which: descriptors to logits to a balanced sort matrix (design 2.2 to 2.4)."""

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

    def forward(self, blocks: Tensor, context: BlockContext) -> Tensor:
        """`(B, N, b, E)` blocks of the attention's input to the sort matrix `(B, G, N, N)` in float32."""
        pooling = self.config.sort_pooling
        if not self.config.is_decoder:
            means = block_means(blocks, context.grid)
            descriptors = means
            if pooling != "mean":
                descriptors = block_sums(blocks) if pooling == "sum" else blocks[:, :, 0]
            logits = self.logits(descriptors, means, blocks, context)
            return sinkhorn_balance(self.perturb(logits), context.balanced, self.config.sinkhorn_iterations)
        sums, b = block_sums(blocks), self.config.block_size
        if context.grid.document is None:
            descriptors, _ = causal_block_descriptors(blocks[:, :, 0], sums, b, pooling, None, None)
        else:
            descriptors = packed_causal_descriptors(blocks[:, :, 0], sums, context.grid, pooling)
        logits = self.logits(descriptors, sums / b, blocks, context)
        return self.balance_causally(logits, context.balanced)[0]

    def logits(self, descriptors: Tensor, means: Tensor, blocks: Tensor, context: BlockContext) -> Tensor:
        rows, columns = self.features(descriptors, means, blocks.dtype)
        number = context.grid.block_of_document
        if columns is not None or number is None:
            return self.compare(rows, columns, context.grid.num_blocks)
        # The outputs of a net of fixed size are for the blocks of a document, wherever in a packed row they stand.
        logits = self.compare(rows, None, self.config.max_num_blocks)  # (B, G, N, max_num_blocks)
        index = number.clamp(max=self.config.max_num_blocks - 1)[:, None, None]
        return logits.gather(-1, index.expand(*logits.shape[:-1], -1))

    def resume(self, blocks: Tensor | None, context: BlockContext, cache: SinkhornDynamicLayer) -> Tensor | None:
        """
        The rows of the sort matrix of blocks that go on from a cache.

        Args:
            blocks: `(B, M, b, E)`, the blocks that new tokens touch, or `None` where none opens or is filled up.

        Returns:
            `(B, G, M, N)` in float32; `None` where no block opens, so that the cache's open block is all there is.
        """
        cached = context.cached
        if blocks is None:
            return None
        sums, b = block_sums(blocks), self.config.block_size
        descriptors, after = causal_block_descriptors(
            blocks[:, :, 0], sums, b, self.config.sort_pooling, cached.first_block, cache.total_before(cached)
        )
        rows, columns = self.features(descriptors, sums / b, blocks.dtype)
        # A block that is not full yet is no source; its entries are written again when it is.
        cache.put_blocks("totals", after, cached)
        columns = None if columns is None else cache.put_blocks("column_features", columns, cached)
        if not cached.opens:
            return None
        cache.put_blocks("row_features", rows, cached, written=cached.opened)
        return self._balance_on(rows, columns, context.balanced, cached.num_blocks, cache)

    def rebuild(self, num_left: Tensor, num_blocks: int, cache: SinkhornDynamicLayer) -> Tensor:
        """
        Balances anew the first `num_left` `(B,)` rows of the sort matrix from what the cache knows of their blocks.

        Returns:
            `(B, G, N, N)`.
        """
        block = torch.arange(num_blocks, device=num_left.device)
        balanced = (block < block.unsqueeze(-1)) & (block.unsqueeze(-1) < num_left[:, None, None])
        columns = None if cache.column_features is None else cache.column_features[:, :num_blocks]
        cache.keep("columns", torch.full_like(cache.column_sums(num_blocks), causal_floor(torch.float32)))
        return self._balance_on(cache.row_features[:, :num_blocks], columns, balanced.unsqueeze(1), num_blocks, cache)

    def _balance_on(self, rows, columns, balanced: Tensor, num_blocks: int, cache: SinkhornDynamicLayer) -> Tensor:
        logits = self.compare(rows, columns, num_blocks)
        matrix, sums = self.balance_causally(logits, balanced, cache.column_sums(num_blocks))
        cache.keep("columns", sums)
        return matrix

    def features(self, descriptors: Tensor, means: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """
        What is compared of each block: as a destination, from its descriptor, and as a source, from its mean, both
        `(B, N, E)`. Returns `(B, N, G * D)` twice, or logits for all sources, `(B, N, G * max_num_blocks)`, and `None`.
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
            missing = num_blocks - config.max_num_blocks
            return _float32(nn.functional.pad(logits, (0, missing)))  # of a cache, the block that holds no token
        rows, columns = (x.unflatten(-1, (-1, config.head_dim)).transpose(1, 2) for x in (rows, columns))
        # Half precision would round logits that differ by little to ties, also under autocast.
        with maybe_autocast(device_type=rows.device.type, enabled=False):
            return _float32(rows) @ _float32(columns).transpose(-1, -2) * config.head_dim**-0.5

    def balance_causally(self, logits: Tensor, allowed: Tensor, columns: Tensor | None = None) -> tuple:
        config = self.config
        capacity = config.causal_balancing == "capacity"
        return causal_sinkhorn_balance(self.perturb(logits), allowed, config.sinkhorn_iterations, columns, capacity)

    def perturb(self, logits: Tensor) -> Tensor:
        """Gumbel noise in training mode, and the temperature."""
        if self.training and self.config.gumbel_noise:
            logits = logits + gumbel_noise(logits)
        return logits / self.config.sinkhorn_temperature


def _float32(x: Tensor) -> Tensor:
    """At least float32: half precision is raised, double stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --------------------------------------------------------------------------------------------------------------------
# Attention
# --------------------------------------------------------------------------------------------------------------------


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


class SortedBlocks(NamedTuple):
    """What was sorted beside each of `n` destination blocks, `S` blocks of `b` slots each."""

    key: Tensor  # (B, n, G, S * b, D) rotated
    value: Tensor  # (B, n, G, S * b, D)
    mask: Tensor | None  # (B or 1, n, 1 or G, S * b) bool
    source: Callable[[], Tensor]  # gives (B, G, n, S, N, b): the share of slot t of each source block; for maps


class SinkhornAttention(nn.Module):
    """Attention of one layer, of any entry of `layer_types`. All but full attention works on blocks."""

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
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.sorts = self.layer_type not in ("local_attention", "full_attention")
        # Rotated keys of different places must not be mixed: their phases would cancel. So mix first, then rotate.
        self.mixes_keys = self.sorts and config.sort_assignment == "soft"
        if self.sorts:
            self.sort_net = SinkhornSortNet(config)

    @property
    def is_causal(self) -> bool:
        """Read by the library's attention functions too."""
        return self.config.is_decoder

    def forward(
        self,
        hidden_states: Tensor,
        context: Context,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            hidden_states: `(B, L, E)`.
            past_key_values: takes in the new tokens, and gives those before them.

        Returns:
            The output `(B, L, E)`, 0 at padding; the source-token map `(B, H, L, tokens with those in the cache)`, or
            `None` where it was not asked for; the sort matrix `(B, G, N, N)`, from a cache the rows of the blocks that
            new tokens touch, or `None` in a layer that does not sort.
        """
        if self.layer_type == "full_attention":
            return self._full_attention(hidden_states, context.tokens, past_key_values, **kwargs)
        context = context.blocks
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        blocks = to_blocks(hidden_states, context.grid)
        query, key, value = self._project(blocks)
        if cache is None and self._attends_by_kernel(query, kwargs):
            output, sort_matrix = self._attend_by_kernel(blocks, query, key, value, context)
            return from_blocks(self.o_proj(output.flatten(-2)), context.grid), None, sort_matrix
        cos, sin = context.cos.unsqueeze(-2), context.sin.unsqueeze(-2)
        query, rotated_key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

        reads_maps = self._reads_maps(kwargs)
        if cache is not None:
            cache.make_room(context.cached, self.config.block_size, like=key)
            reopened = cache.go_back(context.cached)
            cache.append(key if self.mixes_keys else rotated_key, value, context.cached, rotated=not self.mixes_keys)
        sort_matrix, sorted_blocks = None, None
        if self.sorts and cache is None:
            sort_matrix = self.sort_net(blocks, context)
            sorted_blocks = self._sort(sort_matrix, key if self.mixes_keys else rotated_key, value, context)
        elif self.sorts:
            if reopened:
                self._reopen(cache, context)
            sort_matrix = self.sort_net.resume(cache.append_inputs(blocks, context.cached), context, cache)
            sort_matrix, sorted_blocks = self._sort_from_cache(sort_matrix, context, cache, reads_maps)

        attend = self._sortcut_attention if self.layer_type == "sortcut_attention" else self._block_attention
        if cache is None:
            local = self._local_blocks(rotated_key, value)
        else:
            local = self._local_blocks_from_cache(context, cache)
        output, attention_map = attend(query, sorted_blocks, local, context, **kwargs)
        if self.layer_type == "mixture_attention":
            # A mixture adds two outputs, each a mean of values; its map is the mean of the two maps.
            everything = (rotated_key, value) if cache is None else self._all_from_cache(context, cache)
            full_output, full_map = self._attention_to_all_blocks(query, *everything, context, **kwargs)
            output = output + full_output
            attention_map = (attention_map + full_map) / 2 if reads_maps else None

        output = from_blocks(self.o_proj(output.flatten(-2)), context.grid)
        if reads_maps:
            attention_map = _map_of_tokens(attention_map, context.grid, context.key_grid or context.grid)
        if cache is not None and sort_matrix is not None:  # no token ever stands in the last block
            sort_matrix = sort_matrix[:, :, : context.cached.num_blocks - 1, : context.cached.num_blocks - 1]
        return output, attention_map, sort_matrix

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(..., E)` to queries `(..., H, D)`, keys and values `(..., G, D)`."""
        return tuple(
            proj(hidden_states).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )

    def _reads_maps(self, kwargs: dict[str, Any]) -> bool:
        wanted = kwargs.get("output_attentions", self.config.output_attentions)
        return bool(wanted) and self.config._attn_implementation == "eager"

    # Sorting --------------------------------------------------------------------------------------------------------

    def _sort(self, sort_matrix: Tensor, key: Tensor, value: Tensor, context: BlockContext) -> SortedBlocks:
        """Sorts the keys and values `(B, N, b, G, D)` of whole rows by one matrix (design 2.5 and 2.7)."""
        rows = slice(None)
        candidates = context.candidates
        if self.layer_type == "sortcut_attention":
            rows = slice(min(self.config.sortcut_blocks, sort_matrix.shape[-1]))
            candidates = context.allowed  # it has no local blocks, so every block is a candidate
            if candidates is None:
                candidates = torch.ones(1, 1, *sort_matrix.shape[-2:], dtype=torch.bool, device=key.device)
        sort_matrix, grid = sort_matrix[:, :, rows], context.grid
        key, value = (x.permute(0, 3, 1, 2, 4) for x in (key, value))
        if not self.mixes_keys:
            return self._hard_sort(sort_matrix, candidates[:, :, rows], key, value, grid.filled)
        mask = None if context.sorted_mask is None else context.sorted_mask[:, rows]
        tables = context.sorted_cos[:, rows], context.sorted_sin[:, rows]
        mixed = self._mix(sort_matrix, key, value, context)
        return self._place(sort_matrix, *mixed, None if self.is_causal else grid.filled, mask, *tables)

    def _mix(self, sort_matrix: Tensor, key: Tensor, value: Tensor, context: BlockContext) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, G, N, b, D)` of whole rows, softly sorted by `n` rows, `(B, G, n, b, D)`."""
        filled = None if self.is_causal else context.grid.filled
        if filled is None:
            sort_matrix = sort_matrix.to(key.dtype)  # once for both
        if self.config.attention_bias and filled is not None:
            key, value = (x.masked_fill(~filled[:, None, :, :, None], 0) for x in (key, value))
        allowed = None if context.grid.document is None else context.allowed
        return tuple(soft_sort(sort_matrix, x, filled, allowed) for x in (key, value))

    def _place(self, sort_matrix, mixed_key, mixed_value, filled, mask, cos, sin) -> SortedBlocks:
        """
        Softly sorted `mixed_key` and `mixed_value` `(B, G, n, b, D)` at the positions of the rotary tables
        `(B or 1, n, b, D)`. `filled` `(B or 1, N, b)`, the slots of the source blocks with tokens, `None` for all; `mask`
        `(B or 1, n, b)`.
        """
        mixed_key, mixed_value = mixed_key.transpose(1, 2), mixed_value.transpose(1, 2)

        def source() -> Tensor:
            share = sort_matrix.unsqueeze(-1).expand(*sort_matrix.shape, self.config.block_size)
            if filled is not None:
                share = share * filled[:, None, None].to(sort_matrix.dtype)
                share = share / share.sum(-2, keepdim=True).clamp_min(1e-30)
            return share.unsqueeze(3)

        mixed_key = apply_rotary(mixed_key, cos.unsqueeze(2), sin.unsqueeze(2))
        return SortedBlocks(mixed_key, mixed_value, None if mask is None else mask.unsqueeze(2), source)

    def _hard_sort(self, sort_matrix, candidates, key, value, filled) -> SortedBlocks:
        """Blocks are moved whole, so the true position of a key, `(B, G, N, b, D)` and rotated, moves with it."""
        choice = hard_assignment(sort_matrix, candidates, self.config.num_sorted_blocks)
        key, value = (hard_sort(choice, x).flatten(3, 4).transpose(1, 2) for x in (key, value))

        def source() -> Tensor:
            share = nn.functional.one_hot(choice.index, sort_matrix.shape[-1]).to(sort_matrix.dtype)
            return share.unsqueeze(-1).expand(*share.shape, self.config.block_size)

        return SortedBlocks(key, value, _hard_mask(choice, filled, self.config.block_size), source)

    def _sort_from_cache(
        self, sort_matrix: Tensor | None, context: BlockContext, cache: SinkhornDynamicLayer, reads_maps: bool
    ) -> tuple[Tensor, SortedBlocks]:
        """
        Sorts for the blocks that new tokens touch. Beside a block that was open before stands what the cache kept.

        Returns:
            The rows of the sort matrix `(B, G, M, N)`, and `M` sorted blocks.
        """
        cached, kept_row = context.cached, cache.open_row_of(context.cached.num_blocks)
        if sort_matrix is None:
            blocks = SortedBlocks(*cache.open_block, source=None)
            if reads_maps:
                blocks = blocks._replace(source=self._sort_rows(kept_row, context, cache).source)
            return kept_row, blocks
        was_open = ~cached.opened[:, 0]
        if kept_row is not None:
            sort_matrix = _replace_first(sort_matrix, kept_row, was_open, dim=2)
        blocks = self._sort_rows(sort_matrix, context, cache)
        if kept_row is not None:
            # To sort again would give the same, but for positions that only the pass knew that opened the block.
            parts = zip(blocks[:3], cache.open_block)
            blocks = SortedBlocks(*(_replace_first(new, kept, was_open, dim=1) for new, kept in parts), blocks.source)
        row = torch.arange(was_open.shape[0], device=was_open.device)
        last = (part[row, cached.last_block].unsqueeze(1) for part in blocks[:3])
        cache.keep_open_block(OpenBlock(*last), sort_matrix[row, :, cached.last_block])
        return sort_matrix, blocks

    def _sort_rows(self, sort_matrix: Tensor, context: BlockContext, cache: SinkhornDynamicLayer) -> SortedBlocks:
        """Sorts the cache's blocks by `(B, G, M, N)` rows for the blocks that new tokens touch."""
        key, value = cache.key_value_blocks()
        if self.mixes_keys:
            key, value = (x[:, :, : sort_matrix.shape[-1]] for x in (key, value))
            tables = context.sorted_cos, context.sorted_sin
            mixed = (soft_sort(sort_matrix, x, None) for x in (key, value))
            return self._place(sort_matrix, *mixed, None, context.sorted_mask, *tables)
        return self._hard_sort(sort_matrix, context.candidates, key, value, None)

    def _reopen(self, cache: SinkhornDynamicLayer, context: BlockContext) -> None:
        """After a `crop` beyond the open block: undoes the balancing of later blocks, and sorts for the one now open."""
        b, cached = self.config.block_size, context.cached
        num_blocks = cached.num_blocks
        block = (cached.past_counts - 1).clamp(min=0) // b  # (B,) the last one with a token
        matrix = self.sort_net.rebuild((cached.past_counts + b - 1) // b, num_blocks, cache)
        number = torch.arange(len(block), device=block.device)
        row = matrix[number, :, block].unsqueeze(2)
        key, value = cache.key_value_blocks()
        if self.mixes_keys:
            key, value = key[:, :, :num_blocks], value[:, :, :num_blocks]
            start = cache.positions.gather(1, block.unsqueeze(-1) * b)
            slot = torch.arange(b, device=block.device)
            cos, sin = context.rotary(start + slot - self.config.num_local_blocks * b)
            mask = (block > 0).view(-1, 1, 1).expand(-1, 1, b)
            mixed = (soft_sort(row, x, None) for x in (key, value))
            blocks = self._place(row, *mixed, None, mask, cos.unsqueeze(1), sin.unsqueeze(1))
        else:
            far = torch.arange(num_blocks, device=block.device) <= (block - self.config.num_local_blocks).unsqueeze(-1)
            blocks = self._hard_sort(row, far[:, None, None], key, value, None)
        cache.keep_open_block(OpenBlock(*blocks[:3]), row.squeeze(2))

    # Keys in reach --------------------------------------------------------------------------------------------------

    def _local_blocks(self, rotated_key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N, b, G, D)` to the local blocks of each block in a row, `(B, N, G, K, D)`."""
        offsets = local_offsets(self.config.num_local_blocks, self.is_causal)
        return tuple(local_window(x, offsets).transpose(2, 3) for x in (rotated_key, value))

    def _local_blocks_from_cache(self, context: BlockContext, cache: SinkhornDynamicLayer) -> tuple[Tensor, Tensor]:
        """The same for the blocks that new tokens touch, `(B, M, G, K, D)`."""
        key, value = cache.key_value_blocks()
        index = context.local_index.unsqueeze(1).expand(-1, key.shape[1], -1, -1)
        key, value = (gather_blocks(index, x).flatten(3, 4).transpose(1, 2) for x in (key, value))
        if self.mixes_keys:
            slots = context.local_index.unsqueeze(-1) * self.config.block_size
            slots = (slots + torch.arange(self.config.block_size, device=slots.device)).flatten(1)
            cos, sin = context.rotary(cache.positions.gather(1, slots))
            cos, sin = (x.unflatten(1, (key.shape[1], -1)).unsqueeze(2) for x in (cos, sin))
            key = apply_rotary(key, cos, sin)
        return key, value

    def _all_from_cache(self, context: BlockContext, cache: SinkhornDynamicLayer) -> tuple[Tensor, Tensor]:
        """All keys, rotated, and values, `(B, N, b, G, D)`."""
        num_blocks, b = context.cached.num_blocks, self.config.block_size
        key, value = (x[:, :, :num_blocks].permute(0, 2, 3, 1, 4) for x in cache.key_value_blocks())
        if self.mixes_keys:
            cos, sin = context.rotary(cache.positions[:, : num_blocks * b])
            cos, sin = (x.unflatten(1, (num_blocks, b)).unsqueeze(-2) for x in (cos, sin))
            key = apply_rotary(key, cos, sin)
        return key, value

    # Attending ------------------------------------------------------------------------------------------------------

    def _attends_by_kernel(self, query: Tensor, kwargs: dict[str, Any]) -> bool:
        config = self.config
        return (
            fits(query)
            and self.layer_type in ("sinkhorn_attention", "local_attention")
            and config.num_local_blocks == 1
            and config._attn_implementation == "sdpa"
            and not (self.training and config.attention_dropout > 0)
        )

    def _attend_by_kernel(
        self, blocks: Tensor, query: Tensor, key: Tensor, value: Tensor, context: BlockContext
    ) -> tuple[Tensor, Tensor | None]:
        """
        What `_block_attention` does, for whole rows, and faster.

        Args:
            blocks: `(B, N, b, E)`, the layer's input; `query` `(B, N, b, H, D)`, `key` and `value` `(B, N, b, G, D)`, not
                rotated.

        Returns:
            The output `(B, N, b, H, D)`, and the sort matrix `(B, G, N, N)`.
        """
        sort_matrix, beside, sorted_mask = None, None, None
        key, value = (x.permute(0, 3, 1, 2, 4) for x in (key, value))
        if self.sorts:
            sort_matrix = self.sort_net(blocks, context)
            if key.device.type == "cpu":
                key, value = key.contiguous(), value.contiguous()  # read twice, by sorting and by attention
            if self.mixes_keys:
                mixed = self._mix(sort_matrix, key, value, context)
                beside = Mixed(*mixed, Rotation(context.sorted_cos, context.sorted_sin))
                sorted_mask = None if context.sorted_mask is None else context.sorted_mask.unsqueeze(2)
            else:
                choice = hard_assignment(sort_matrix, context.candidates, self.config.num_sorted_blocks)
                beside = Gathered(choice.index, choice.weight)
                sorted_mask = _hard_mask(choice, context.grid.filled, self.config.block_size)
        mask = self._block_mask(sorted_mask, context, 0 if beside is None else self.config.num_sorted_blocks)
        rotation = Rotation(context.cos, context.sin)
        output = block_attention(query, key, value, rotation, beside, mask, self.scaling)
        return output, sort_matrix

    def _block_attention(
        self, query: Tensor, sorted_blocks: SortedBlocks | None, local: tuple[Tensor, Tensor], context, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One softmax over [sorted blocks ; local blocks] (design 2.6). Every block is a batch entry of its own."""
        keys, values = local
        num_local = keys.shape[3]
        mask = self._block_mask(None, context, 0)
        if sorted_blocks is not None:
            mask = self._block_mask(sorted_blocks.mask, context, self.config.num_sorted_blocks)
            keys = torch.cat((sorted_blocks.key, keys), dim=3)
            values = torch.cat((sorted_blocks.value, values), dim=3)
        if mask is not None:
            mask = self._per_query_head(mask, dim=2).expand(query.shape[0], *[-1] * 4).flatten(0, 1)
        output, weights = self._attend(query.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), mask, **kwargs)
        output = output.unflatten(0, query.shape[:2])
        if weights is None:
            return output, None
        weights = weights.unflatten(0, query.shape[:2]).transpose(1, 2)  # (B, H, M, Q, K)
        offsets = local_offsets(self.config.num_local_blocks, self.is_causal)
        local_map = _local_map(weights[..., -num_local:], offsets, context)
        if sorted_blocks is None:
            return output, local_map
        return output, local_map + self._sorted_map(weights[..., :-num_local], sorted_blocks)

    def _block_mask(self, sorted_mask: Tensor | None, context: BlockContext, num_sorted: int) -> Tensor | None:
        """
        Who may see whom in a block: `sorted_mask` `(B or 1, M, 1 or G, S * b)` of `S` sorted blocks and the local mask,
        `(B or 1, M, 1 or G, 1 or Q, K)`. `None` where nothing is masked.
        """
        local_mask = None if context.local_mask is None else context.local_mask.unsqueeze(2)
        if num_sorted == 0:
            return local_mask
        b = self.config.block_size
        num_local = len(local_offsets(self.config.num_local_blocks, self.is_causal)) * b
        sorted_mask = None if sorted_mask is None else sorted_mask.unsqueeze(3)
        return _join_masks(sorted_mask, num_sorted * b, local_mask, num_local, context.cos.device)

    def _sortcut_attention(
        self, query: Tensor, sorted_blocks: SortedBlocks, local: Any, context, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Every query attends to the kept sorted blocks, and to nothing else."""
        mask = sorted_blocks.mask
        if mask is not None:
            mask = self._per_query_head(mask.transpose(1, 2).flatten(2)[:, :, None, :], dim=1)
        keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (sorted_blocks.key, sorted_blocks.value))
        output, weights = self._attend(query.flatten(1, 2), keys, values, mask, **kwargs)
        output = output.unflatten(1, query.shape[1:3])
        if weights is None:
            return output, None
        kept = sorted_blocks.key.shape[1]
        # (B, H, N, b, K) weights; every block reads the same n destinations, side by side.
        weights = weights.unflatten(2, query.shape[1:3]).unflatten(-1, (kept, -1))
        source = self._source_per_query_head(sorted_blocks)
        weights = weights.unflatten(-1, (source.shape[3], source.shape[5]))
        return output, torch.einsum("bhiqnst,bhnsjt->bhiqjt", weights, source)

    def _attention_to_all_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, context: BlockContext, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The Mixture's full attention, on the grid. `key` and `value` `(B, N, b, G, D)`."""
        mask = context.earlier_slots
        if mask is not None:
            mask = mask.flatten(1, 2).unsqueeze(1)
        keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (key, value))
        output, weights = self._attend(query.flatten(1, 2), keys, values, mask, **kwargs)
        output = output.unflatten(1, query.shape[1:3])
        if weights is None:
            return output, None
        return output, weights.unflatten(2, query.shape[1:3]).unflatten(-1, key.shape[1:3])

    def _full_attention(
        self, hidden_states: Tensor, context: TokenContext, past_key_values: Cache | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        """Ordinary attention, for comparison: no blocks, and the library's own cache layer."""
        query, key, value = self._project(hidden_states)
        cos, sin = context.cos.unsqueeze(-2), context.sin.unsqueeze(-2)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin).transpose(1, 2)
        value = value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output, weights = self._attend(query, key, value, context.mask, is_causal=context.is_causal, **kwargs)
        output = self.o_proj(output.flatten(-2))
        if context.is_real is not None:
            output = output.masked_fill(~context.is_real.unsqueeze(-1), 0)
            weights = None if weights is None else weights.masked_fill(~context.is_real[:, None, :, None], 0)
        return output, weights, None

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """
        `query` `(*, Q, H, D)`, `key` and `value` `(*, G, K, D)`, `mask` bool `(* or 1, H or 1, Q or 1, K)`. Returns the
        output `(*, Q, H, D)`, 0 for queries that may see nothing, and the weights if a map was asked for.
        """
        sees_something = None
        if mask is not None:
            # Rows that see nothing are opened, and their output is dropped: no softmax over nothing, no NaN.
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
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=is_causal,
        )
        if not self._reads_maps(kwargs):
            weights = None
        if sees_something is not None:
            output = output.masked_fill(~sees_something.transpose(1, 2), 0)
            weights = None if weights is None else weights.masked_fill(~sees_something, 0)
        return output, weights

    def _per_query_head(self, mask: Tensor, dim: int) -> Tensor:
        """Repeats a mask of `G` key/value heads for the `H` query heads; one for all heads stays one."""
        return mask if mask.shape[dim] == 1 else mask.repeat_interleave(self.num_key_value_groups, dim)

    def _source_per_query_head(self, sorted_blocks: SortedBlocks) -> Tensor:
        return sorted_blocks.source().repeat_interleave(self.num_key_value_groups, dim=1)

    def _sorted_map(self, weights: Tensor, sorted_blocks: SortedBlocks) -> Tensor:
        """Weights on sorted slots `(B, H, M, Q, S * b)` to weights on the tokens they came from, `(B, H, M, Q, N, b)`."""
        source = self._source_per_query_head(sorted_blocks)
        weights = weights.unflatten(-1, (source.shape[3], source.shape[5]))
        return torch.einsum("bhiqst,bhisjt->bhiqjt", weights, source.to(weights.dtype))


def _replace_first(new: Tensor, kept: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """`new` with its first entry along `dim` replaced by `kept` in the rows of the batch that are `chosen` `(B,)`."""
    first = torch.where(chosen.view(-1, *[1] * (new.dim() - 1)), kept, new.narrow(dim, 0, 1))
    return torch.cat((first, new.narrow(dim, 1, new.shape[dim] - 1)), dim)


def _hard_mask(choice: HardSort, filled: Tensor | None, block_size: int) -> Tensor:
    """`(B, n, G, S * b)` bool: slots of chosen blocks that hold a token. `filled` `(B or 1, N, b)`; `None` for all."""
    mask = choice.chosen.unsqueeze(-1)
    if filled is None:
        mask = mask.expand(*choice.index.shape, block_size)
    else:
        batch, heads, destinations, num_sorted = choice.index.shape
        index = choice.index.reshape(batch, -1, 1).expand(-1, -1, block_size)
        filled = filled.expand(batch, -1, -1).gather(1, index)
        mask = mask & filled.view(batch, heads, destinations, num_sorted, block_size)
    return mask.flatten(-2).transpose(1, 2)


def _join_masks(left: Tensor | None, left_size: int, right: Tensor | None, right_size: int, device) -> Tensor | None:
    """Two masks side by side on the last dimension; a missing one is all True."""
    if left is None and right is None:
        return None
    if left is None:
        left = torch.ones(*[1] * right.dim(), dtype=torch.bool, device=device).expand(*right.shape[:-1], left_size)
    if right is None:
        right = torch.ones(*[1] * left.dim(), dtype=torch.bool, device=device).expand(*left.shape[:-1], right_size)
    shape = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat((left.expand(*shape, left_size), right.expand(*shape, right_size)), dim=-1)


def _local_map(weights: Tensor, offsets: range, context: BlockContext) -> Tensor:
    """Weights on local slots `(B, H, M, Q, K_local)` to weights on tokens of the grid, `(B, H, M, Q, N, b)`."""
    if context.cached is None:
        num_blocks, block = context.grid.num_blocks, torch.arange(context.grid.num_blocks, device=weights.device)
        touched = block.unsqueeze(0)
    else:
        num_blocks = context.cached.num_blocks
        block = torch.arange(num_blocks, device=weights.device)
        touched = context.cached.first_block.unsqueeze(-1) + block[: weights.shape[2]]
    offset = torch.tensor(list(offsets), device=weights.device)
    is_source = (touched[..., None, None] + offset.view(-1, 1)) == block  # (B or 1, M, offsets, N)
    weights = weights.unflatten(-1, (len(offsets), -1))
    return torch.einsum(
        "bhiqot,bioj->bhiqjt", weights, is_source.expand(weights.shape[0], -1, -1, -1).to(weights.dtype)
    )


def _map_of_tokens(grid_map: Tensor, grid: BlockGrid, key_grid: BlockGrid) -> Tensor:
    """A map between slots, `(B, H, M, Q, N, b)`, to one between tokens, `(B, H, L, keys)`, 0 at padding."""
    tokens = _tokens_of_slots(grid_map.flatten(4, 5).flatten(2, 3), grid, dim=2)
    return _tokens_of_slots(tokens, key_grid, dim=3)


def _tokens_of_slots(grid_map: Tensor, grid: BlockGrid, dim: int) -> Tensor:
    """Slots to tokens in dimension `dim` of `(B, H, rows, columns)`, 0 at padding."""
    if grid.slot_of_token is None:
        return grid_map.narrow(dim, 0, grid.num_tokens)
    shape = [grid.slot_of_token.shape[0], 1, 1, 1]
    shape[dim] = grid.num_tokens
    sizes = list(grid_map.shape)
    sizes[dim] = grid.num_tokens
    tokens = grid_map.gather(dim, grid.slot_of_token.view(shape).expand(sizes))
    return tokens.masked_fill(~grid.is_real.view(shape), 0)
