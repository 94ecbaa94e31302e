# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Attention of each token to blocks of its own choice and to those that it always reads, in one softmax (design sections
9.5 and 9.6).

The fast way groups pairs of a token and a block by block, as Mixture of Block Attention does: each block meets the
queries that chose it in dense products of a few queries (tiles), and partial softmaxes are merged by their largest
scores and sums. Nothing of the size of all scores, or of all gathered keys, is made; backward computes tiles again.
The plain way gathers the blocks of each token, a few tokens at a time. It gives maps.

Shape letters as in `routing_sinkhorn.py`; `r = H / G`, `K` keys that are always read, `t` queries of a tile.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


try:  # a folder on the Hub, or any package
    from .dropout_sinkhorn import DroppedWeights, draw_seed
    from .sorting_sinkhorn import HardSort, gather_blocks
except ImportError:  # flat modules, as installed
    from dropout_sinkhorn import DroppedWeights, draw_seed
    from sorting_sinkhorn import HardSort, gather_blocks


# Rows of a tile, query heads of a group included, and tiles in a processor's cache at a time.
ROWS_OF_TILE = 64
TILES_AT_ONCE = {"cpu": 64, "cuda": 2**15}
# Numbers of partial outputs in memory at a time. The more queries at a time, the fuller the tiles.
MAX_PARTIAL_OUTPUTS = {"cpu": 2**22, "cuda": 2**28}
# Numbers of gathered keys of the plain way.
MAX_GATHERED = {"cpu": 2**22, "cuda": 2**27}


class Sources(NamedTuple):
    """What may be read."""

    key: Tensor  # (B, G, N, b, D) rotated
    value: Tensor  # (B, G, N, b, D)
    filled: Tensor | None  # (B or 1, N, b) bool, slots that hold a token; None for all
    always_key: Tensor  # (B, M, G, K, D) rotated
    always_value: Tensor  # (B, M, G, K, D)
    always_mask: Tensor | None  # (B or 1, M, 1 or Q, K) bool; None for all


# The plain way ----------------------------------------------------------------------------------------------------


def attend_to_gathered(
    query: Tensor, choice: HardSort, sources: Sources, scaling: float, dropout: float, maps: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """
    Args:
        query: `(B, M, Q, H, D)` rotated.
        choice: `(B, G, M * Q, S)`.

    Returns:
        The output `(B, M, Q, H, D)`, and with `maps` the weights on always read keys `(B, H, M, Q, K)` and on all
        tokens through the choice, `(B, H, M, Q, N, b)`.
    """
    num_destinations = size = query.shape[1]
    if not torch.compiler.is_compiling():  # a graph is for any length
        numbers = query[:, 0, :, 0].numel() * sources.key[0, :, 0].numel() * choice.index.shape[-1]
        size = max(1, MAX_GATHERED.get(query.device.type, MAX_GATHERED["cuda"]) // numbers)

    def part(start: int, stop: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _attend_to_gathered(query, choice, sources, slice(start, stop), scaling, dropout, maps)

    if torch.compiler.is_compiling() or size >= num_destinations:
        return part(0, num_destinations)
    parts = []
    for start in range(0, num_destinations, size):
        stop = min(start + size, num_destinations)
        parts.append(
            checkpoint(part, start, stop, use_reentrant=False) if torch.is_grad_enabled() else part(start, stop)
        )
    outputs, always, chosen = zip(*parts)
    joined = torch.cat(outputs, dim=1)
    return joined, *(torch.cat(x, dim=2) if maps else None for x in (always, chosen))


def _attend_to_gathered(query, choice, sources, blocks: slice, scaling, dropout, maps):
    key, value, filled, always_key, always_value, always_mask = sources
    query = query[:, blocks]
    batch, _, per_block, heads, width = query.shape
    groups, num_blocks, b = key.shape[1:4]
    queries = slice(blocks.start * per_block, blocks.stop * per_block)
    index, chosen, weight = (x[:, :, queries] for x in choice)
    grouped = query.unflatten(3, (groups, -1)).permute(0, 3, 1, 2, 4, 5)  # (B, G, M, Q, r, D)
    own = grouped.flatten(2, 3)  # (B, G, n, r, D)
    gathered_key, gathered_value = (x.to(query.dtype) for x in gather_blocks(index, key, value))
    chosen_scores = torch.einsum("bgnrd,bgnstd->bgnrst", own, gathered_key) * scaling
    chosen_scores = chosen_scores * weight[:, :, :, None, :, None].to(query.dtype)  # 1, with a gradient
    visible = chosen.unsqueeze(-1).expand(*chosen.shape, b)
    if filled is not None:
        rows = filled.expand(batch, -1, -1).gather(1, index.reshape(batch, -1, 1).expand(-1, -1, b))
        visible = visible & rows.view(*index.shape, b)
    chosen_scores = chosen_scores.masked_fill(~visible.unsqueeze(3), torch.finfo(chosen_scores.dtype).min).flatten(4)
    always_key, always_value = (x[:, blocks].transpose(1, 2).to(query.dtype) for x in (always_key, always_value))
    always_scores = torch.einsum("bgmqrd,bgmkd->bgmqrk", grouped, always_key) * scaling
    if always_mask is not None:
        lowest = torch.finfo(always_scores.dtype).min  # under autocast not the type of the others
        always_scores = always_scores.masked_fill(~always_mask[:, blocks][:, None, :, :, None], lowest)
    scores = torch.cat((chosen_scores, always_scores.flatten(2, 3)), dim=-1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    if dropout > 0:
        weights = nn.functional.dropout(weights, p=dropout)
    num_chosen = index.shape[-1] * b
    on_chosen = weights[..., :num_chosen].unflatten(-1, (-1, b)) * weight[:, :, :, None, :, None].to(query.dtype)
    on_always = weights[..., num_chosen:].unflatten(2, (-1, per_block))  # (B, G, M, Q, r, K)
    output = torch.einsum("bgnrst,bgnstd->bgnrd", on_chosen, gathered_value).unflatten(2, (-1, per_block))
    output = output + torch.einsum("bgmqrk,bgmkd->bgmqrd", on_always, always_value)
    output = output.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
    if not maps:
        return output, None, None
    shares = nn.functional.one_hot(index, num_blocks).to(query.dtype) * chosen.unsqueeze(-1)
    on_tokens = torch.einsum("bgnrst,bgnsj->bgrnjt", on_chosen, shares).flatten(1, 2).unflatten(2, (-1, per_block))
    return output, on_always.permute(0, 1, 4, 2, 3, 5).flatten(1, 2), on_tokens


# The fast way -----------------------------------------------------------------------------------------------------


def attend_by_block(query: Tensor, choice: HardSort, sources: Sources, scaling: float, dropout: float = 0.0) -> Tensor:
    """As `attend_to_gathered`; the output for a query that may see nothing is finite, and has no meaning."""
    key, value = (x.to(query.dtype) for x in sources[:2])
    always_key, always_value = (x.to(query.dtype) for x in sources[3:5])
    return _AttentionByBlock.apply(
        query, key, value, always_key, always_value, choice.weight, choice.index, choice.chosen, sources.filled,
        sources.always_mask, scaling, dropout,
    )  # fmt: skip


class _AttentionByBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, query, key, value, always_key, always_value, weight, index, chosen, filled, always_mask, scaling, dropout
    ):
        ctx.scaling, ctx.dropout, ctx.seed = scaling, dropout, draw_seed() if dropout > 0 else None
        work = _Work(
            query, key, value, always_key, always_value, index, chosen, filled, always_mask, scaling, dropout, ctx.seed
        )
        output, log_sum = torch.empty_like(work.query), work.query.new_empty(work.query.shape[:-1], dtype=work.precise)
        ctx.pairs = []
        for rows in work.parts():
            pairs = work.group(rows)
            ctx.pairs.append(pairs)
            scores = work.always_scores(rows)
            top = scores.amax(-1, keepdim=True)
            scores = scores.sub_(top).exp2_()
            total = scores.sum(-1, keepdim=True)
            attended = torch.bmm(work.kept(scores).to(query.dtype), work.always_value[rows].flatten(0, 1))
            # (c, G, Q, r, ...) of the always read keys, and (slots, r, ...) of the chosen ones
            top, total, attended = (work.by_query(x) for x in (top, total, attended))
            if pairs is not None:
                part_top, part_total, part_output = work.attend_to_tiles(rows, pairs)
                missing = ~pairs.chosen[..., None, None]
                tops = part_top[pairs.slot].masked_fill_(missing, -math.inf)  # (c, G, Q, S, r, 1)
                best = torch.maximum(tops.amax(3), top)
                scale = (tops - best.unsqueeze(3)).exp2_()
                own_scale = (top - best).exp2_()
                total = total * own_scale + (part_total[pairs.slot] * scale).sum(3)
                attended = attended * own_scale.to(query.dtype)
                one = torch.empty_like(attended)
                for s in range(pairs.slot.shape[-1]):
                    torch.index_select(part_output, 0, pairs.slot[..., s].flatten(), out=one.view(-1, *one.shape[3:]))
                    attended.addcmul_(one, scale[:, :, :, s].to(query.dtype))
                top = best
            output[rows] = attended.div_(total.to(query.dtype))
            log_sum[rows] = (top + total.log2()).squeeze(-1)
        ctx.save_for_backward(
            query, key, value, always_key, always_value, weight, index, chosen, filled, always_mask, output, log_sum
        )
        return work.to_query(output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        *inputs, output, log_sum = ctx.saved_tensors
        query, key, value, always_key, always_value, weight, index, chosen, filled, always_mask = inputs
        work = _Work(
            query, key, value, always_key, always_value, index, chosen, filled, always_mask, ctx.scaling, ctx.dropout,
            ctx.seed,
        )  # fmt: skip
        upstream = work.from_query(grad_output)
        delta = (upstream.to(work.precise) * output).sum(-1)  # (B * M, G, Q, r)
        grad_query = torch.empty_like(work.query)
        grad_key, grad_value = (torch.zeros_like(x, dtype=work.precise) for x in (work.key, work.value))
        grad_always = [torch.empty_like(x) for x in (work.always_key, work.always_value)]
        grad_weight = None
        if ctx.needs_input_grad[5]:
            grad_weight = torch.zeros(work.index.shape, dtype=work.precise, device=query.device)
        for rows, pairs in zip(work.parts(), ctx.pairs):
            scores = work.always_scores(rows)
            flat = work.flat(log_sum[rows]), work.flat(delta[rows])
            own_query, own_upstream = work.flat(work.query[rows]), work.flat(upstream[rows])
            weights, grad_scores = work.backward_of_softmax(
                scores, own_upstream, work.always_value[rows].flatten(0, 1), *flat
            )
            grad_always[1][rows] = torch.bmm(weights.mT, own_upstream).view_as(grad_always[1][rows])
            grad_always[0][rows] = torch.bmm(grad_scores.mT, own_query).mul_(ctx.scaling).view_as(grad_always[0][rows])
            part = torch.bmm(grad_scores, work.always_key[rows].flatten(0, 1)).mul_(ctx.scaling)
            part = work.by_query(part)
            if pairs is not None:
                by_slot, weight_by_slot = work.backward_of_tiles(
                    rows, pairs, upstream[rows], log_sum[rows], delta[rows], grad_key, grad_value,
                    needs_weight=grad_weight is not None,
                )  # fmt: skip
                found = pairs.chosen[..., None, None].to(by_slot.dtype)
                for s in range(pairs.slot.shape[-1]):
                    part.addcmul_(by_slot[pairs.slot[..., s]], found[:, :, :, s])
                if grad_weight is not None:
                    grad_weight[rows] = weight_by_slot[pairs.slot].masked_fill_(~pairs.chosen, 0)
            grad_query[rows] = part
        if grad_weight is not None:
            grad_weight = work.to_choice(grad_weight).to(weight.dtype)
        return (
            work.to_query(grad_query),
            grad_key.view_as(key).to(key.dtype),
            grad_value.view_as(value).to(value.dtype),
            grad_always[0].view_as(always_key),
            grad_always[1].view_as(always_value),
            grad_weight,
            *[None] * 6,
        )


class _Pairs(NamedTuple):
    """Pairs of a query and a block, grouped by block, in tiles of one block each."""

    slot: Tensor  # (c, G, Q, S) where the pair stands, of tiles * t places; 0 for no pair
    chosen: Tensor  # (c, G, Q, S) bool, whether there is a pair
    query_of_slot: Tensor  # (tiles, t) which of the part's c * G * Q queries
    is_pair: Tensor  # (tiles, t) bool, False of places that are left over
    block_of_tile: Tensor  # (tiles,) of B * G * N


class _Work:
    """
    The inputs in the order of the work: `(B * M, G, Q, r, D)` queries, `(B * G * N, b, D)` keys and values,
    `(B * M, G, K, D)` always read ones. A part is a slice of `c` of the `B * M` blocks of queries.
    """

    def __init__(
        self, query, key, value, always_key, always_value, index, chosen, filled, always_mask, scaling, dropout, seed
    ):
        self.batch, self.num_destinations, self.per_block, heads, self.width = query.shape
        self.groups, self.num_blocks = key.shape[1:3]
        self.repeats = heads // self.groups
        self.scaling = scaling
        # Scores are to the base 2: processors take powers of 2 in half the time of those of e.
        self.scaling_of_powers = scaling / math.log(2)
        self.precise = torch.promote_types(query.dtype, torch.float32)
        self.query = self.from_query(query)
        self.key, self.value = (x.reshape(-1, *x.shape[3:]) for x in (key, value))
        self.always_key, self.always_value = (x.reshape(-1, *x.shape[2:]) for x in (always_key, always_value))
        self.index, self.chosen = (self.from_choice(x) for x in (index, chosen))
        self.filled = None if filled is None else filled.expand(self.batch, -1, -1)
        self.always_mask = None
        if always_mask is not None:
            mask = always_mask.expand(self.batch, -1, -1, -1).flatten(0, 1)  # (B * M, 1 or Q, K)
            self.always_mask = mask[:, None, :, None]
        self.tile = max(8, ROWS_OF_TILE // self.repeats)
        self.device = query.device.type
        self.dropped = DroppedWeights(dropout, seed, query.device) if dropout > 0 else None

    def from_query(self, x: Tensor) -> Tensor:
        """`(B, M, Q, H, D)` to `(B * M, G, Q, r, D)`."""
        return x.flatten(0, 1).unflatten(2, (self.groups, self.repeats)).transpose(1, 2).contiguous()

    def to_query(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2, 3).unflatten(0, (self.batch, self.num_destinations))

    def from_choice(self, x: Tensor) -> Tensor:
        """`(B, G, M * Q, S)` to `(B * M, G, Q, S)`."""
        return x.unflatten(2, (self.num_destinations, self.per_block)).transpose(1, 2).flatten(0, 1)

    def to_choice(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.batch, self.num_destinations)).transpose(1, 2).flatten(2, 3)

    def flat(self, x: Tensor) -> Tensor:
        """`(c, G, Q, r, ...)` to `(c * G, Q * r, ...)`."""
        return x.flatten(2, 3).flatten(0, 1)

    def by_query(self, x: Tensor) -> Tensor:
        """`(c * G, Q * r, ...)` to `(c, G, Q, r, ...)`."""
        return x.unflatten(1, (self.per_block, self.repeats)).unflatten(0, (-1, self.groups))

    def parts(self) -> Iterator[slice]:
        total = len(self.query)
        numbers = self.query[:1].numel() * max(1, self.index.shape[-1])
        size = max(1, MAX_PARTIAL_OUTPUTS.get(self.device, MAX_PARTIAL_OUTPUTS["cuda"]) // numbers)
        for start in range(0, total, size):
            yield slice(start, min(start + size, total))

    def always_scores(self, rows: slice) -> Tensor:
        """`(c * G, Q * r, K)`."""
        scores = torch.bmm(self.flat(self.query[rows]), self.always_key[rows].flatten(0, 1).mT)
        scores = scores.to(self.precise).mul_(self.scaling_of_powers)
        if self.always_mask is not None:
            self.by_query(scores).masked_fill_(~self.always_mask[rows], torch.finfo(scores.dtype).min)
        return scores

    def kept(self, weights: Tensor) -> Tensor:
        """The weights after dropout. Forward and backward ask for them in the same order."""
        return weights if self.dropped is None else weights * self.dropped.factors(weights)

    def backward_of_softmax(
        self, scores: Tensor, upstream: Tensor, values: Tensor, log_sum: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Scores `(*, rows, keys)`, which are overwritten, to the weights that values are multiplied by, and the gradient of
        `e`'s scores. `log_sum` and `delta` `(*, rows)`.
        """
        weights = scores.sub_(log_sum.unsqueeze(-1)).exp2_()
        grad = torch.bmm(upstream, values.mT).to(weights.dtype)
        kept = weights
        if self.dropped is not None:
            factors = self.dropped.factors(weights)
            kept, grad = weights * factors, grad.mul_(factors)
        grad = grad.sub_(delta.unsqueeze(-1)).mul_(weights)
        return kept.to(upstream.dtype), grad.to(upstream.dtype)

    def group(self, rows: slice) -> _Pairs | None:
        """`None` where no query chose a block."""
        index, chosen = self.index[rows], self.chosen[rows]
        device = index.device
        blocks_of_row = self.groups * self.num_blocks
        row = torch.arange(rows.start, rows.stop, device=device) // self.num_destinations
        first = row[:, None] * blocks_of_row + torch.arange(self.groups, device=device) * self.num_blocks
        none = self.batch * blocks_of_row
        block = torch.where(chosen, index + first[..., None, None], none).flatten()
        ordered, order = torch.sort(block, stable=True)
        counts = torch.bincount(block, minlength=none + 1)
        tiles = -(-counts[:none] // self.tile)
        first_tile = nn.functional.pad(tiles.cumsum(0), (1, 0))  # (none + 1,)
        num_tiles = int(first_tile[-1])
        if num_tiles == 0:
            return None
        # Where each pair stands: in the tiles of its block, by its rank among the pairs of that.
        rank = torch.arange(len(block), device=device) - (counts.cumsum(0) - counts)[ordered]
        places = first_tile[ordered] * self.tile + rank
        is_pair = ordered < none
        places = places.masked_fill_(~is_pair, 0)
        slot = torch.empty_like(places).scatter_(0, order, places).view(index.shape)
        query_of_slot = torch.full((num_tiles * self.tile + 1,), -1, dtype=torch.long, device=device)
        target = places.masked_fill(~is_pair, num_tiles * self.tile)
        query_of_slot.scatter_(0, target, order // index.shape[-1])
        query_of_slot = query_of_slot[:-1].view(num_tiles, self.tile)
        block_of_tile = torch.repeat_interleave(torch.arange(none, device=device), tiles, output_size=num_tiles)
        return _Pairs(slot, chosen, query_of_slot.clamp(min=0), query_of_slot >= 0, block_of_tile)

    def tiles(self, rows: slice, pairs: _Pairs) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """A few tiles at a time: places, the queries' numbers, queries, keys, values, and scores."""
        queries = self.query[rows].flatten(0, 2)  # (c * G * Q, r, D)
        size = TILES_AT_ONCE.get(self.device, TILES_AT_ONCE["cuda"])
        for start in range(0, len(pairs.block_of_tile), size):
            tiles = slice(start, min(start + size, len(pairs.block_of_tile)))
            numbers, blocks = pairs.query_of_slot[tiles].flatten(), pairs.block_of_tile[tiles]
            query = queries.index_select(0, numbers).view(len(blocks), -1, self.width)
            key, value = (x.index_select(0, blocks) for x in (self.key, self.value))
            scores = torch.bmm(query, key.mT).to(self.precise).mul_(self.scaling_of_powers)
            if self.filled is not None:
                block = blocks % self.num_blocks
                filled = self.filled[blocks // (self.groups * self.num_blocks), block]  # (tiles, b)
                scores.masked_fill_(~filled.unsqueeze(1), torch.finfo(scores.dtype).min)
            places = slice(tiles.start * self.tile, tiles.stop * self.tile)
            yield places, numbers, query, key, value, scores

    def attend_to_tiles(self, rows: slice, pairs: _Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Of each place: the largest score and the sum `(places, r, 1)`, and the output `(places, r, D)`, unscaled."""
        num_places = pairs.query_of_slot.numel()
        tops, totals = self.query.new_empty(2, num_places, self.repeats, 1, dtype=self.precise)
        outputs = self.query.new_empty(num_places, self.repeats, self.width)
        for places, _, query, _, value, scores in self.tiles(rows, pairs):
            top = scores.amax(-1, keepdim=True)
            scores = scores.sub_(top).exp2_()
            tops[places] = top.view(-1, self.repeats, 1)
            totals[places] = scores.sum(-1, keepdim=True).view(-1, self.repeats, 1)
            torch.bmm(self.kept(scores).to(value.dtype), value, out=outputs[places].view(query.shape))
        return tops, totals, outputs

    def backward_of_tiles(
        self, rows, pairs, upstream, log_sum, delta, grad_key, grad_value, needs_weight
    ) -> tuple[Tensor, Tensor | None]:
        """
        Adds to the gradients of keys and values; returns those of the queries `(places, r, D)` and of the weights of
        pairs `(places,)`.
        """
        num_places = pairs.query_of_slot.numel()
        upstream, log_sum, delta = (x.flatten(0, 2) for x in (upstream, log_sum, delta))
        grads = self.query.new_empty(num_places, self.repeats, self.width)
        grad_weights = self.query.new_empty(num_places, dtype=self.precise) if needs_weight else None
        is_pair = pairs.is_pair.flatten()
        for places, numbers, query, key, value, scores in self.tiles(rows, pairs):
            tiles = slice(places.start // self.tile, places.stop // self.tile)
            blocks = pairs.block_of_tile[tiles]
            shape = len(blocks), self.tile * self.repeats
            own = upstream.index_select(0, numbers).view(*shape, self.width)
            sums = log_sum.index_select(0, numbers).masked_fill_(~is_pair[places].unsqueeze(-1), math.inf).view(shape)
            kept = scores * math.log(2) if needs_weight else None
            weights, grad = self.backward_of_softmax(
                scores, own, value, sums, delta.index_select(0, numbers).view(shape)
            )
            grad_value.index_add_(0, blocks, torch.bmm(weights.mT, own).to(grad_value.dtype))
            grad_key.index_add_(0, blocks, torch.bmm(grad.mT, query).mul_(self.scaling).to(grad_key.dtype))
            grads[places] = torch.bmm(grad, key).mul_(self.scaling).view(-1, self.repeats, self.width)
            if needs_weight:
                # The weight multiplies the keys, and so the scores, and the values.
                by_score = (grad * kept).sum(-1)
                by_value = (torch.bmm(own, value.mT) * weights).sum(-1)
                grad_weights[places] = (by_score + by_value).view(-1, self.repeats).sum(-1)
        return grads, grad_weights
