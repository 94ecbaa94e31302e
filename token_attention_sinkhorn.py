# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The attention of one layer where each token chooses what it reads (`sort_granularity="token"`, design section 9): of
whole rows, and of new tokens that continue a cache.

Shape letters as in `routed_attention_sinkhorn.py`, and `E` hidden size.
"""

from functools import partial

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .attention_sinkhorn import SinkhornAttention
    from .base_attention_sinkhorn import ProjectedBlocks
    from .cached_attention_sinkhorn import CacheLayer, all_keys_and_values, keep_pieces, local_keys_and_values
    from .layout_sinkhorn import BlockLayout
    from .maps_sinkhorn import tokens_of_slots
    from .routed_attention_sinkhorn import Sources, attend_by_block, attend_to_gathered
    from .routing_sinkhorn import Routing, even_shares_before, even_shares_of_cache, route
    from .sorting_sinkhorn import HardSort, block_sums
    from .token_scores_sinkhorn import BlockScores, KeyScores
    from .token_step_sinkhorn import attend_one_token, attend_one_token_of_equal_rows, is_one_token
except ImportError:  # flat modules, as installed
    from attention_sinkhorn import SinkhornAttention
    from base_attention_sinkhorn import ProjectedBlocks
    from cached_attention_sinkhorn import CacheLayer, all_keys_and_values, keep_pieces, local_keys_and_values
    from layout_sinkhorn import BlockLayout
    from maps_sinkhorn import tokens_of_slots
    from routed_attention_sinkhorn import Sources, attend_by_block, attend_to_gathered
    from routing_sinkhorn import Routing, even_shares_before, even_shares_of_cache, route
    from sorting_sinkhorn import HardSort, block_sums
    from token_scores_sinkhorn import BlockScores, KeyScores
    from token_step_sinkhorn import attend_one_token, attend_one_token_of_equal_rows, is_one_token


# Queries of a pass, up to which the blocks of each are gathered: sorting pairs by block costs more than it saves.
FEW_QUERIES = 16


class SinkhornTokenAttention(SinkhornAttention):
    """`"sinkhorn_attention"` and `"mixture_attention"` with `sort_granularity="token"`."""

    def attend_to_rows(
        self, projected: ProjectedBlocks, layout: BlockLayout, maps: bool, keeps_matrix: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        grid, config = layout.grid, self.config
        inputs, query, key, value = projected.rotated(layout.tables)
        key_blocks, value_blocks = (x.permute(0, 3, 1, 2, 4) for x in (key, value))
        scores = self.sort_net.scores_of_tokens(inputs, query, key_blocks, layout)
        before = None
        if config.is_decoder and config.sinkhorn_iterations > 0:
            before = even_shares_before(layout.candidates, grid.filled, config.block_size)
        slot = torch.arange(grid.num_blocks * config.block_size, device=key.device).unsqueeze(0)
        routing = Routing(
            candidates=layout.candidates,
            filled=grid.filled,
            slot=slot,
            block_size=config.block_size,
            causal=config.is_decoder,
            shares_before=before,
            from_start=grid.document is None,
        )
        choice, plan = self._route(scores, routing, keeps_matrix)
        sources = Sources(
            key_blocks, value_blocks, grid.filled, *self.always_read(key, value, layout), layout.local_mask
        )
        plan = None if plan is None else tokens_of_slots(plan, grid, dim=2)
        return *self._attend(query, choice, sources, (key, value), layout, maps), plan

    def attend_from_cache(
        self, cache: CacheLayer, projected: ProjectedBlocks, layout: BlockLayout, maps: bool, keeps_matrix: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        cached, config = layout.cached, self.config
        inputs, query, key, value = projected.rotated(layout.tables)
        cache.make_room(cached, config.block_size, like=key)
        balances = config.sinkhorn_iterations > 0
        cache.crops_anywhere = self.sort_net.compares_keys and not balances
        cache.apply_crop(cached)
        one_token = is_one_token(self, query, cache, maps, keeps_matrix)
        if one_token and cached.equal_past is not None:
            cache.append_one(key.flatten(0, 2), value.flatten(0, 2), cached)
            return attend_one_token_of_equal_rows(self, query, layout, cache), None, None
        cache.append(key, value, cached, rotated=True)
        if one_token:
            return attend_one_token(self, query, layout, cache), None, None
        scores = self._scores_in_cache(inputs, query, layout, cache)
        before, columns, keep_sums = None, None, None
        if balances:
            before = even_shares_of_cache(config, cached)
            columns = cache.column_sums_before(cached)
            keep_sums = partial(cache.keep_column_sums, layout=cached)
        routing = Routing(
            candidates=layout.candidates,
            filled=cached.filled,
            slot=cached.slots,
            block_size=config.block_size,
            causal=True,
            shares_before=before,
            from_start=cached.from_start,
        )
        choice, plan = self._route(scores, routing, keeps_matrix, columns, keep_sums)
        keys_and_values = cache.key_value_blocks()
        sources = Sources(*keys_and_values, None, *local_keys_and_values(layout, cache), layout.local_mask)
        everything = all_keys_and_values(layout, cache) if self.layer_type == "mixture_attention" else None
        if plan is not None:  # no token ever stands in the last block
            plan = tokens_of_slots(plan[..., : cached.num_blocks - 1], layout.grid, dim=2)
        return *self._attend(query, choice, sources, everything, layout, maps), plan

    def _scores_in_cache(
        self, inputs: Tensor, query: Tensor, layout: BlockLayout, cache: CacheLayer
    ) -> BlockScores | KeyScores:
        cached, sort_net = layout.cached, self.sort_net
        if sort_net.compares_keys:
            own_key = keep_pieces(sort_net, layout, cache)
            pieces = cache.pieces(cached, sort_net.piece_size)
            return sort_net.key_scores(sort_net.compared_queries(query), pieces, own_key, cached.slots)
        whole = cache.append_inputs(inputs, cached)
        if whole is not None:
            means = (block_sums(whole) / self.config.block_size).to(inputs.dtype)
            columns = cache.put_blocks("column_features", sort_net.column_proj(means), cached)
        else:
            columns = cache.column_features[:, : cached.num_blocks]
        return sort_net.block_scores(sort_net.row_proj(inputs), columns)

    def _route(self, scores, routing: Routing, keeps_plan: bool, columns=None, keep_sums=None):
        config = self.config
        choice, plan = route(
            scores,
            routing,
            self.sort_net.perturb,
            config.sinkhorn_iterations,
            config.sort_capacity,
            config.num_sorted_blocks,
            keeps_plan,
            columns,
            keep_sums,
        )
        if self.sort_net.config.sort_net == "keys":
            choice = HardSort(choice.index, choice.chosen, torch.ones_like(choice.weight))
        return choice, plan

    def _attend(
        self,
        query: Tensor,
        choice: HardSort,
        sources: Sources,
        everything: tuple[Tensor, Tensor] | None,
        layout: BlockLayout,
        maps: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`query` `(B, M, Q, H, D)`; `everything` keys and values of all blocks, which a mixture reads."""
        dropout = self.dropout
        attention_map = None
        if self._gathers(query, maps):
            output, on_always, on_chosen = attend_to_gathered(query, choice, sources, self.scaling, dropout, maps)
            if maps:
                on_always = self.local_map(on_always, layout)
                attention_map = on_always + on_chosen[..., : on_always.shape[-2], :]
        else:
            output = attend_by_block(query, choice, sources, self.scaling, dropout)
        if self.layer_type == "mixture_attention":
            full_output, full_map = self.attend_to_everything(query, *everything, layout, maps)
            output = output + full_output
            attention_map = (attention_map + full_map) / 2 if maps else None
        return output, attention_map

    def _gathers(self, query: Tensor, maps: bool) -> bool:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        few = query.shape[1] * query.shape[2] <= FEW_QUERIES
        return maps or few or self.config._attn_implementation == "eager"
