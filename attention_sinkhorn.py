# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sparse Sinkhorn Attention (Tay et al., ICML 2020, arXiv:2002.11296) of one layer: any entry of `layer_types` but
`"full_attention"`, which is in `base_attention_sinkhorn.py`. The mathematics is in `balancing_sinkhorn.py` and
`sorting_sinkhorn.py`; what continues a cache, in `cached_attention_sinkhorn.py`.

Shape letters as in `layout_sinkhorn.py`, and `E` hidden size.
"""

from functools import partial

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs


try:  # a folder on the Hub, or any package
    from .base_attention_sinkhorn import ProjectedBlocks, SinkhornBaseAttention
    from .block_attention_sinkhorn import MixedBlocks, block_attention, is_block_attention_supported
    from .block_step_sinkhorn import attend_in_block, is_step_in_block
    from .cached_attention_sinkhorn import CacheLayer, attend_from_cache
    from .configuration_sinkhorn import SinkhornConfig
    from .layout_sinkhorn import BlockLayout, Layout
    from .maps_sinkhorn import attend_by_map, local_map, map_of_tokens, sortcut_map, sorted_map, source_shares
    from .masks_sinkhorn import join_masks
    from .sort_net_sinkhorn import SinkhornSortNet
    from .sorted_blocks_sinkhorn import (
        SortedBlocks,
        blocks_to_gather,
        gather_sorted_blocks,
        mix_blocks,
        place_mixed_blocks,
    )
    from .sorting_sinkhorn import always_read, from_blocks, hard_assignment, local_offsets, to_blocks
except ImportError:  # flat modules, as installed
    from base_attention_sinkhorn import ProjectedBlocks, SinkhornBaseAttention
    from block_attention_sinkhorn import MixedBlocks, block_attention, is_block_attention_supported
    from block_step_sinkhorn import attend_in_block, is_step_in_block
    from cached_attention_sinkhorn import CacheLayer, attend_from_cache
    from configuration_sinkhorn import SinkhornConfig
    from layout_sinkhorn import BlockLayout, Layout
    from maps_sinkhorn import attend_by_map, local_map, map_of_tokens, sortcut_map, sorted_map, source_shares
    from masks_sinkhorn import join_masks
    from sort_net_sinkhorn import SinkhornSortNet
    from sorted_blocks_sinkhorn import (
        SortedBlocks,
        blocks_to_gather,
        gather_sorted_blocks,
        mix_blocks,
        place_mixed_blocks,
    )
    from sorting_sinkhorn import always_read, from_blocks, hard_assignment, local_offsets, to_blocks


class SinkhornAttention(SinkhornBaseAttention):
    """Attention on blocks, of any entry of `layer_types` but `"full_attention"`."""

    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.sorts = self.layer_type != "local_attention"
        # Rotated keys of different positions must not be mixed: their phases would cancel. So mix first, then rotate.
        self.mixes_keys = self.sorts and config.sort_assignment == "soft"
        if self.sorts:
            self.sort_net = SinkhornSortNet(config)

    def forward(
        self,
        hidden_states: Tensor,
        layout: Layout,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            hidden_states: `(B, L, E)`.
            cache: stores the new tokens and returns those before them.

        Returns:
            The output `(B, L, E)`, 0 at padding; the source-token map `(B, H, L, tokens with those in the cache)`, from
            which the output is computed then, or `None` where it was not asked for; the sort matrix `(B, G, N, N)`,
            from a cache the rows of the blocks that new tokens touch, or `None` in a layer that does not sort.
        """
        layout, maps = layout.blocks, self.returns_maps(kwargs)
        keeps_matrix = bool(kwargs.get("output_sort_matrices", getattr(self.config, "output_sort_matrices", False)))
        blocks = to_blocks(hidden_states, layout.grid)
        projected = ProjectedBlocks(blocks, *self.project(blocks))
        layer = None if cache is None else cache.layers[self.layer_idx]
        attend = self.attend_to_rows if layer is None else partial(self.attend_from_cache, layer)
        output, attention_map, sort_matrix = attend(projected, layout, maps, keeps_matrix)
        if not maps:
            return from_blocks(self.o_proj(output.flatten(-2)), layout.grid), None, sort_matrix
        value = projected.value
        if layer is not None:
            value = layer.key_value_blocks()[1].permute(0, 2, 3, 1, 4).to(value.dtype)
        attention_map = map_of_tokens(attention_map, layout)
        output = attend_by_map(attention_map, value, layout.key_grid or layout.grid, self.num_key_value_groups)
        if self.layer_type == "mixture_attention":
            output = 2 * output  # its map is the mean of two, its output their sum
        output = self.o_proj(output.flatten(-2))
        if layout.grid.is_real is not None:
            output = output.masked_fill(~layout.grid.is_real.unsqueeze(-1), 0)
        return output, attention_map, sort_matrix

    # Whole rows -----------------------------------------------------------------------------------------------------

    def attend_to_rows(
        self, projected: ProjectedBlocks, layout: BlockLayout, maps: bool, keeps_matrix: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            projected: not rotated.
            keeps_matrix: whether the sort matrix will be asked for, where it costs anything to keep.

        Returns:
            The output `(B, N, b, H, D)`; with `maps` the map between slots `(B, H, N, b, N, b)`; the sort matrix.
        """
        sort_matrix = None
        if self.sorts and self.sort_net.compares_keys:
            rotated = projected.rotated(layout.tables)
            sort_matrix = self.sort_net(rotated.inputs, layout, rotated.query, rotated.key.permute(0, 3, 1, 2, 4))
        elif self.sorts:
            sort_matrix = self.sort_net(projected.inputs, layout)
        attend = self._attend_in_chunks if self._uses_block_attention(projected.query) else self._attend_in_whole
        return *attend(projected, sort_matrix, layout, maps), sort_matrix

    def attend_from_cache(
        self, cache: CacheLayer, projected: ProjectedBlocks, layout: BlockLayout, maps: bool, keeps_matrix: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same for new tokens, which are stored in the cache, on their grid of `M` blocks of `Q` slots."""
        if not (maps or keeps_matrix) and is_step_in_block(self, layout.cached, cache):
            return attend_in_block(self, projected, layout, cache), None, None
        return attend_from_cache(self, projected, layout, cache, maps)

    def _attend_in_whole(
        self, projected: ProjectedBlocks, sort_matrix: Tensor | None, layout: BlockLayout, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """
        One operation after the other on whole tensors, which any implementation of attention can do.

        Returns:
            The output `(B, N, b, H, D)`, and with `maps` the map between slots `(B, H, N, b, N, b)`.
        """
        _, query, key, value = projected.rotated(layout.tables)
        sorted_blocks = None
        if self.sorts:
            sorted_blocks = self._sort(sort_matrix, projected.key if self.mixes_keys else key, value, layout)
        local = self.always_read(key, value, layout)
        return self.attend_to_parts(query, sorted_blocks, local, (key, value), layout, maps)

    def always_read(self, key: Tensor, value: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
        """`(B, N, b, G, D)`, keys rotated, to those of sinks and local blocks, `(B, N, G, K_local, D)`."""
        offsets = local_offsets(self.config.num_local_blocks, self.is_causal)
        arguments = offsets, self.config.num_sink_blocks, layout.sink_index
        return tuple(always_read(x, *arguments).transpose(2, 3) for x in (key, value))

    def _sort(self, sort_matrix: Tensor, key: Tensor, value: Tensor, layout: BlockLayout) -> SortedBlocks:
        """Sorts keys, rotated unless they are mixed, and values `(B, N, b, G, D)`."""
        rows, candidates, filled = slice(None), layout.candidates, layout.grid.filled
        if self.layer_type == "sortcut_attention":
            rows = slice(min(self.config.sortcut_blocks, sort_matrix.shape[-1]))
            candidates = layout.allowed  # it has no local blocks, so every block is a candidate
            if candidates is None:
                candidates = torch.ones(1, 1, *sort_matrix.shape[-2:], dtype=torch.bool, device=key.device)
        sort_matrix = sort_matrix[:, :, rows]
        key, value = (x.permute(0, 3, 1, 2, 4) for x in (key, value))
        if not self.mixes_keys:
            num_sorted = self.config.num_sorted_blocks
            return gather_sorted_blocks(sort_matrix, candidates[:, :, rows], key, value, filled, num_sorted)
        mixed = mix_blocks(sort_matrix, key, value, layout, self.is_causal, bool(self.config.attention_bias))
        mask = None if layout.sorted_mask is None else layout.sorted_mask[:, rows]
        tables = layout.sorted_tables.rows(rows)
        return place_mixed_blocks(sort_matrix, mixed, None if self.is_causal else filled, mask, tables)

    def _uses_block_attention(self, query: Tensor) -> bool:
        config = self.config
        reads_itself_alone = config.num_local_blocks == 1 and config.num_sink_blocks == 0
        return (
            is_block_attention_supported(query)
            and self.layer_type in ("sinkhorn_attention", "local_attention")
            and (reads_itself_alone or (query.device.type == "cpu" and not self.mixes_keys))
            and config._attn_implementation == "sdpa"
            and (query.device.type == "cpu" or self.dropout == 0)
        )

    def _attend_in_chunks(
        self, projected: ProjectedBlocks, sort_matrix: Tensor | None, layout: BlockLayout, maps: bool
    ) -> tuple[Tensor, None]:
        """As `_attend_in_whole`, in less time and memory, and without maps."""
        config = self.config
        key, value = (x.permute(0, 3, 1, 2, 4) for x in (projected.key, projected.value))
        if key.device.type == "cpu":
            key, value = key.contiguous(), value.contiguous()  # read more than once
        if self.mixes_keys:
            mixed = mix_blocks(sort_matrix, key, value, layout, self.is_causal, bool(config.attention_bias))
            sorted_blocks = MixedBlocks(*mixed, layout.sorted_tables)
            sorted_mask = None if layout.sorted_mask is None else layout.sorted_mask.unsqueeze(2)
            mask = self._block_mask(sorted_mask, layout, 1)
        else:
            choice = hard_assignment(sort_matrix, layout.candidates, config.num_sorted_blocks) if self.sorts else None
            sorted_blocks, mask = blocks_to_gather(choice, layout, config, key.shape[0])
        arguments = projected.query, key, value, layout.tables, sorted_blocks, mask, self.scaling, self.dropout
        return block_attention(*arguments), None

    # Keys that are rotated and in place, of whole rows or of a cache ----------------------------------------------

    def attend_to_parts(
        self,
        query: Tensor,
        sorted_blocks: SortedBlocks | None,
        local: tuple[Tensor, Tensor],
        everything: tuple[Tensor, Tensor] | None,
        layout: BlockLayout,
        maps: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """
        What the layer type says.

        Args:
            query: `(B, M, Q, H, D)`.
            local: keys and values of sinks and local blocks, `(B, M, G, K_local, D)`.
            everything: keys and values of all blocks, `(B, N, b, G, D)`; only a mixture reads them.

        Returns:
            The output `(B, M, Q, H, D)`, and with `maps` the map between slots `(B, H, M, Q, N, b)`.
        """
        if self.layer_type == "sortcut_attention":
            return self._attend_to_kept_blocks(query, sorted_blocks, maps)
        output, attention_map = self._attend_to_blocks(query, sorted_blocks, local, layout, maps)
        if self.layer_type == "mixture_attention":
            # A mixture adds two outputs, each a mean of values; its map is the mean of the two maps.
            full_output, full_map = self.attend_to_everything(query, *everything, layout, maps)
            output = output + full_output
            attention_map = (attention_map + full_map) / 2 if maps else None
        return output, attention_map

    def _attend_to_blocks(
        self,
        query: Tensor,
        sorted_blocks: SortedBlocks | None,
        local: tuple[Tensor, Tensor],
        layout: BlockLayout,
        maps: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """One softmax over [sorted blocks ; sinks ; local blocks] (design 2.6). Every block is a batch entry of its own."""
        keys, values = local
        num_local = keys.shape[3]
        mask = self._block_mask(None, layout, 0)
        if sorted_blocks is not None:
            mask = self._block_mask(sorted_blocks.mask, layout, self.config.num_sorted_blocks)
            keys = torch.cat((sorted_blocks.key, keys), dim=3)
            values = torch.cat((sorted_blocks.value, values), dim=3)
        if mask is not None:
            mask = self._per_query_head(mask, dim=2).expand(query.shape[0], *[-1] * 4).flatten(0, 1)
        # Where no new token is padding, each sees at least itself.
        all_see = layout.cached is not None and layout.grid.filled is None
        flat = (x.flatten(0, 1) for x in (query, keys, values))
        output, weights = self.attend(*flat, mask, maps, all_see=all_see)
        output = output.unflatten(0, query.shape[:2])
        if weights is None:
            return output, None
        weights = weights.unflatten(0, query.shape[:2]).transpose(1, 2)  # (B, H, M, Q, K)
        attention_map = self.local_map(weights[..., -num_local:], layout)
        if sorted_blocks is not None:
            attention_map = attention_map + sorted_map(weights[..., :-num_local], self._source_shares(sorted_blocks))
        return output, attention_map

    def local_map(self, weights: Tensor, layout: BlockLayout) -> Tensor:
        """Weights on sinks and local blocks `(B, H, M, Q, K_local)` to weights on slots `(B, H, M, Q, N, b)`."""
        offsets = local_offsets(self.config.num_local_blocks, self.is_causal)
        return local_map(weights, offsets, self.config.num_sink_blocks, layout)

    def _block_mask(self, sorted_mask: Tensor | None, layout: BlockLayout, num_sorted: int) -> Tensor | None:
        """
        Who may see whom in a block: `sorted_mask` `(B or 1, M, 1 or G, S * b)` of `S` sorted blocks and the local
        mask, `(B or 1, M, 1 or G, 1 or Q, K)`. `None` where nothing is masked.
        """
        local_mask = None if layout.local_mask is None else layout.local_mask.unsqueeze(2)
        if num_sorted == 0:
            return local_mask
        b = self.config.block_size
        num_local = self.config.num_sink_blocks + len(local_offsets(self.config.num_local_blocks, self.is_causal))
        sorted_mask = None if sorted_mask is None else sorted_mask.unsqueeze(3)
        return join_masks(sorted_mask, num_sorted * b, local_mask, num_local * b)

    def _attend_to_kept_blocks(
        self, query: Tensor, sorted_blocks: SortedBlocks, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """SortCut: every query attends to the sorted blocks that are kept, and to nothing else."""
        mask = sorted_blocks.mask
        if mask is not None:
            mask = self._per_query_head(mask.transpose(1, 2).flatten(2)[:, :, None, :], dim=1)
        keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (sorted_blocks.key, sorted_blocks.value))
        output, weights = self.attend(query.flatten(1, 2), keys, values, mask, maps)
        output = output.unflatten(1, query.shape[1:3])
        if weights is None:
            return output, None
        return output, sortcut_map(weights.unflatten(2, query.shape[1:3]), self._source_shares(sorted_blocks))

    def attend_to_everything(
        self, query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The full attention of a mixture, on the grid. `key` and `value` `(B, N, b, G, D)`."""
        mask = layout.earlier_slots
        if mask is not None:
            mask = mask.flatten(1, 2).unsqueeze(1)
        keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (key, value))
        output, weights = self.attend(query.flatten(1, 2), keys, values, mask, maps)
        output = output.unflatten(1, query.shape[1:3])
        if weights is None:
            return output, None
        return output, weights.unflatten(2, query.shape[1:3]).unflatten(-1, key.shape[1:3])

    def _per_query_head(self, mask: Tensor, dim: int) -> Tensor:
        """Repeats a mask of `G` key/value heads for the `H` query heads; one for all heads stays one."""
        return mask if mask.shape[dim] == 1 else mask.repeat_interleave(self.num_key_value_groups, dim)

    def _source_shares(self, sorted_blocks: SortedBlocks) -> Tensor:
        return source_shares(sorted_blocks, self.config.block_size, self.num_key_value_groups)
