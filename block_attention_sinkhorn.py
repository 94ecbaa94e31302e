# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Block attention in less memory and time than rotating, sorting, joining and attending one after the other: for a CPU
here, for a GPU in `triton_attention_sinkhorn.py`.

As operations on whole tensors, block attention moves several copies of its input through main memory, and backward
keeps them. Here a few blocks at a time are rotated, joined and attended to while they are in the processor's cache,
forward and backward. So nothing of the size of the scores, the joined keys or the gathered blocks is kept. In half
precision, which most CPUs compute slowly, a chunk is in float32, unless the processor has instructions for bfloat16.
Gradients are summed in float32 anyway.

Shape letters as in `sorting_sinkhorn.py`; `H` query heads, `r = H / G` of them per key/value head, `n` blocks of a
chunk, `K = (S + 1) * b` keys.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .dropout_sinkhorn import DroppedWeights, draw_seed
    from .rotary_sinkhorn import RotaryTables
except ImportError:  # flat modules, as installed
    from dropout_sinkhorn import DroppedWeights, draw_seed
    from rotary_sinkhorn import RotaryTables

try:
    from .triton_attention_sinkhorn import block_attention as attend_on_gpu
    from .triton_attention_sinkhorn import is_query_supported as is_query_supported_on_gpu
except ImportError:
    try:
        from triton_attention_sinkhorn import block_attention as attend_on_gpu
        from triton_attention_sinkhorn import is_query_supported as is_query_supported_on_gpu
    except ImportError:  # Triton comes with torch where torch is built for a GPU
        attend_on_gpu = is_query_supported_on_gpu = None


# Tokens of a chunk. What a chunk needs should fit in a core's second-level cache; 512 to 2,048 are about equally fast.
CHUNK_TOKENS = 1024


class MixedBlocks(NamedTuple):
    """Softly sorted blocks, one next to each block, `(B, G, N, b, D)` each, and tables of their assumed positions."""

    key: Tensor
    value: Tensor
    tables: RotaryTables


class GatheredBlocks(NamedTuple):
    """Hard sorting: the numbers of the blocks next to each block, and their weights (1), `None` without a gradient."""

    index: Tensor  # (B, G, N, S)
    weight: Tensor | None  # (B, G, N, S); not None on a GPU


def is_block_attention_supported(query: Tensor) -> bool:
    """
    Whether `block_attention` can be used for such a query `(B, N, b, H, D)`, and is the faster choice: on a CPU, but
    not while tracing; on a GPU where its kernels support these sizes, but not in a graph that is exported.
    """
    if query.is_cuda:
        return is_query_supported_on_gpu is not None and is_query_supported_on_gpu(query)
    return query.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    found = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _type_of_work(dtype: torch.dtype) -> torch.dtype:
    """What chunks of queries of that type are computed in."""
    return dtype if dtype == torch.bfloat16 and computes_in_bfloat16() else _precise(dtype)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: RotaryTables,
    sorted_blocks: MixedBlocks | GatheredBlocks | None,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """
    Attention of every block to [what is sorted next to it ; itself] in one softmax (design section 2.6).

    Args:
        query: `(B, N, b, H, D)`, not rotated yet.
        key, value: `(B, G, N, b, D)`, not rotated yet; contiguous where blocks are gathered from them.
        tables: `(B or 1, N, b, D)`, or `NO_ROTATION`.
        sorted_blocks: what is sorted next to the blocks; `None` for nothing.
        mask: bool `(B or 1, N, 1 or G, 1 or b, K)`, sorted keys first; `None` where every key may be seen. The output
            for a query that may see nothing is finite, and has no meaning.
        dropout: the probability of each weight to be dropped, in steps of 2**-16; only on a CPU.

    Returns:
        `(B, N, b, H, D)`.
    """
    if query.is_cuda:
        return block_attention_on_gpu(query, key, value, tables, sorted_blocks, mask, scaling)
    if isinstance(sorted_blocks, MixedBlocks):
        mixed_key, mixed_value, mixed_tables = sorted_blocks
        return _BlockAttention.apply(
            query, key, value, mixed_key, mixed_value, None, None, mask, scaling, dropout, *tables, *mixed_tables
        )
    index, weight = sorted_blocks or (None, None)
    return _BlockAttention.apply(
        query, key, value, None, None, weight, index, mask, scaling, dropout, *tables, None, None
    )


def block_attention_on_gpu(query, key, value, tables, sorted_blocks, mask, scaling) -> Tensor:
    mixed, gathered = (
        sorted_blocks if isinstance(sorted_blocks, kind) else None for kind in (MixedBlocks, GatheredBlocks)
    )
    if tables.cos is None:
        zeros = query.new_zeros(1, *query.shape[1:3], query.shape[-1])
        tables = RotaryTables(zeros + 1, zeros)
    return attend_on_gpu(query, key, value, tables, mixed, gathered, mask, scaling)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mixed_key, mixed_value, weight, index, mask, scaling, dropout, *tables):
        ctx.save_for_backward(query, key, value, mixed_key, mixed_value, weight, index, mask, *tables)
        ctx.scaling, ctx.dropout = scaling, dropout
        ctx.seed = draw_seed() if dropout > 0 else None
        chunk = _Chunk(query, key, value, mixed_key, mixed_value, index, mask, scaling, *tables)
        dropped = DroppedWeights(dropout, ctx.seed, query.device) if dropout > 0 else None
        output = torch.empty_like(query)
        for row, blocks in chunk.pieces():
            queries, _, values, weights = chunk.load(row, blocks)
            if dropped is not None:
                weights.mul_(dropped.factors(weights))
            attended = torch.bmm(weights, values, out=queries)
            output[row, blocks].transpose(1, 2).copy_(chunk.by_head(attended))
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        query, key, value, mixed_key, mixed_value, weight, index, mask, *tables = ctx.saved_tensors
        chunk = _Chunk(query, key, value, mixed_key, mixed_value, index, mask, ctx.scaling, *tables)
        dropped = DroppedWeights(ctx.dropout, ctx.seed, query.device) if ctx.dropout > 0 else None
        grads = _Gradients(chunk, weight if ctx.needs_input_grad[5] else None)
        buffers = [torch.empty_like(x) for x in (chunk.queries, chunk.values, chunk.weights)]
        for row, blocks in chunk.pieces():
            queries, keys, values, weights = chunk.load(row, blocks)
            upstream, grad_values, grad_weights = (
                buffer.view(-1, *x.shape[1:])[: len(x)] for buffer, x in zip(buffers, (queries, values, weights))
            )
            chunk.by_head(upstream).copy_(grad_output[row, blocks].transpose(1, 2))
            kept = weights
            if dropped is not None:
                factors = dropped.factors(weights)
                kept = torch.mul(weights, factors, out=grad_weights)
            torch.bmm(kept.mT, upstream, out=grad_values)
            torch.bmm(upstream, values.mT, out=grad_weights)
            if dropped is not None:
                grad_weights.mul_(factors)
            # Buffers are reused, so that all of this stays in the processor's cache. So is the gradient of the
            # softmax, which torch writes in place only by this operator, not by a public function.
            grad_scores = torch.ops.aten._softmax_backward_data.out(
                grad_weights, weights, -1, weights.dtype, grad_input=grad_weights
            )
            grad_queries = torch.baddbmm(upstream, grad_scores, keys, beta=0, alpha=ctx.scaling, out=upstream)
            if grads.weight is not None:
                grads.store_weight(row, blocks, grad_values, values, add=False)
            grad_keys = torch.baddbmm(values, grad_scores.mT, queries, beta=0, alpha=ctx.scaling, out=values)
            if grads.weight is not None:
                grads.store_weight(row, blocks, grad_keys, keys, add=True)
            grads.store(row, blocks, grad_queries, grad_keys, grad_values)
        inputs = query, key, value, mixed_key, mixed_value, weight
        found = grads.query, grads.key, grads.value, grads.mixed_key, grads.mixed_value, grads.weight
        return *(None if grad is None else grad.to(x.dtype) for grad, x in zip(found, inputs)), *[None] * 8


class _Chunk:
    """A few blocks of one row at a time, in buffers."""

    def __init__(self, query, key, value, mixed_key, mixed_value, index, mask, scaling, *tables):
        self.query, self.key, self.value = query, key, value
        self.mixed_key, self.mixed_value, self.index = mixed_key, mixed_value, index
        self.mask, self.scaling = mask, scaling
        self.dtype = _type_of_work(query.dtype)
        tables = [None if x is None else x.to(self.dtype) for x in tables]
        self.own_tables, self.mixed_tables = tables[:2], tables[2:]
        _, self.num_blocks, self.block_size, heads, width = query.shape
        self.num_groups = key.shape[1]
        num_sorted = 0 if mixed_key is None else 1
        if index is not None:
            num_sorted = index.shape[-1]
        self.num_sorted = num_sorted * self.block_size
        num_keys = self.num_sorted + self.block_size
        # As many keys as those of one sorted block, and of the block itself, would be.
        tokens = min(CHUNK_TOKENS, 2 * CHUNK_TOKENS * self.block_size // num_keys)
        self.size = max(1, min(self.num_blocks, tokens // self.block_size))
        self.queries = query.new_empty(self.size, heads, self.block_size, width, dtype=self.dtype)
        self.keys = query.new_empty(self.size, self.num_groups, num_keys, width, dtype=self.dtype)
        self.values = torch.empty_like(self.keys)
        # The query heads of one key/value head are rows of one matrix.
        num_rows = heads // self.num_groups * self.block_size
        self.weights = query.new_empty(self.size * self.num_groups, num_rows, num_keys, dtype=self.dtype)

    def pieces(self) -> Iterator[tuple[int, slice]]:
        """Rows of the batch, and the blocks of each chunk."""
        for row in range(len(self.query)):
            for start in range(0, self.num_blocks, self.size):
                yield row, slice(start, min(start + self.size, self.num_blocks))

    def load(self, row: int, blocks: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries `(n * G, r * b, D)`, keys and values `(n * G, K, D)`, rotated, and weights `(n * G, r * b, K)`."""
        n = blocks.stop - blocks.start
        queries, keys, values = self.queries[:n], self.keys[:n], self.values[:n]
        tables = self.tables(row, blocks)
        rotate_into(queries, self.query[row, blocks].transpose(1, 2), *tables)
        rotate_into(keys[:, :, self.num_sorted :], self.key[row, :, blocks].transpose(0, 1), *tables)
        values[:, :, self.num_sorted :].copy_(self.value[row, :, blocks].transpose(0, 1))
        if self.num_sorted:
            if self.index is None:
                sorted_key, sorted_value = (
                    x[row, :, blocks].transpose(0, 1) for x in (self.mixed_key, self.mixed_value)
                )
            else:
                source = self.sources(row, blocks)
                gathered = (_as_rows(x[row]).index_select(0, source) for x in (self.key, self.value))
                sorted_key, sorted_value = (x.view(n, self.num_groups, self.num_sorted, -1) for x in gathered)
            rotate_into(keys[:, :, : self.num_sorted], sorted_key, *self.sorted_tables(row, blocks))
            values[:, :, : self.num_sorted].copy_(sorted_value)
        queries = queries.view(n * self.num_groups, -1, queries.shape[-1])
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        scores = self.weights[: len(queries)]
        torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=self.scaling, out=scores)
        mask = None if self.mask is None else self.mask[row if len(self.mask) > 1 else 0, blocks]
        if mask is not None and not mask.all():
            mask = mask.unsqueeze(2)  # (n, 1 or G, 1, 1 or b, K)
            by_query = scores.view(n, self.num_groups, -1, self.block_size, scores.shape[-1])
            by_query.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        return queries, keys, values, torch.softmax(scores, -1, out=scores)

    def sources(self, row: int, blocks: slice) -> Tensor:
        """`(n * G * S,)` of the `G * N` blocks of a row, those that are sorted next to the blocks."""
        first = torch.arange(self.num_groups, device=self.index.device).view(-1, 1, 1) * self.num_blocks
        return (self.index[row, :, blocks] + first).transpose(0, 1).flatten()

    def tables(self, row: int, blocks: slice) -> tuple[Tensor, ...]:
        """`(n, 1, b, D)` each, or `NO_ROTATION`."""
        if self.own_tables[0] is None:
            return self.own_tables
        return tuple(x[row if len(x) > 1 else 0, blocks].unsqueeze(1) for x in self.own_tables)

    def sorted_tables(self, row: int, blocks: slice) -> tuple[Tensor, ...]:
        """`(n, 1 or G, S * b, D)` each: of gathered blocks, those of their true positions."""
        if self.index is None:
            return tuple(x[row if len(x) > 1 else 0, blocks].unsqueeze(1) for x in self.mixed_tables)
        if self.own_tables[0] is None:
            return self.own_tables
        index = self.index[row, :, blocks].transpose(0, 1)
        tables = (x[row if len(x) > 1 else 0] for x in self.own_tables)
        return tuple(x.index_select(0, index.flatten()).view(*index.shape[:2], self.num_sorted, -1) for x in tables)

    def by_head(self, x: Tensor) -> Tensor:
        """`(n * G, r * b, D)` to `(n, H, b, D)`."""
        return x.view(-1, *self.queries.shape[1:])

    def by_group(self, x: Tensor) -> Tensor:
        """`(n * G, K, D)` to `(n, G, K, D)`."""
        return x.view(-1, *self.keys.shape[1:])


class _Gradients:
    """Of the inputs, filled chunk by chunk."""

    def __init__(self, chunk: _Chunk, weight: Tensor | None):
        self.chunk = chunk

        def like(x: Tensor | None, make=torch.empty_like) -> Tensor | None:
            return None if x is None else make(x, dtype=_precise(x.dtype))

        # A block may be read by many.
        make = torch.empty_like if chunk.index is None else torch.zeros_like
        self.query, self.key, self.value = like(chunk.query), like(chunk.key, make), like(chunk.value, make)
        self.mixed_key, self.mixed_value, self.weight = like(chunk.mixed_key), like(chunk.mixed_value), like(weight)

    def store(self, row: int, blocks: slice, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """The gradients of what `_Chunk.load` gave."""
        chunk, cut = self.chunk, self.chunk.num_sorted
        cos, sin = chunk.tables(row, blocks)
        keys, values = chunk.by_group(keys), chunk.by_group(values)
        rotate_into(self.query[row, blocks].transpose(1, 2), chunk.by_head(queries), cos, sin, back=True)
        key, value = (x[row, :, blocks].transpose(0, 1) for x in (self.key, self.value))
        if chunk.index is None:
            rotate_into(key, keys[:, :, cut:], cos, sin, back=True)
            value.copy_(values[:, :, cut:])
        else:
            key.add_(rotate_into(torch.empty_like(key), keys[:, :, cut:], cos, sin, back=True))
            value.add_(values[:, :, cut:])
        if not cut:
            return
        cos, sin = chunk.sorted_tables(row, blocks)
        if chunk.index is None:
            key, value = (x[row, :, blocks].transpose(0, 1) for x in (self.mixed_key, self.mixed_value))
            rotate_into(key, keys[:, :, :cut], cos, sin, back=True)
            value.copy_(values[:, :, :cut])
            return
        source = chunk.sources(row, blocks)
        turned = rotate_into(torch.empty_like(keys[:, :, :cut]), keys[:, :, :cut], cos, sin, back=True)
        for total, grad in ((self.key, turned), (self.value, values[:, :, :cut])):
            _as_rows(total[row]).index_add_(0, source, grad.reshape(len(source), -1).to(total.dtype))

    def store_weight(self, row: int, blocks: slice, grad: Tensor, gathered: Tensor, add: bool) -> None:
        """The part of the gradient of the weights that came through the keys, or the values, that they multiplied."""
        grad, gathered = (self.chunk.by_group(x)[:, :, : self.chunk.num_sorted] for x in (grad, gathered))
        part = (gathered * grad).unflatten(2, (-1, self.chunk.block_size)).sum((-1, -2)).transpose(0, 1)  # (G, n, S)
        target = self.weight[row, :, blocks]
        target.copy_(target + part if add else part)


def _as_rows(blocks: Tensor) -> Tensor:
    """`(G, N, b, D)` to one row per block, a view."""
    return blocks.view(blocks.shape[0] * blocks.shape[1], -1)


def rotate_into(out: Tensor, x: Tensor, cos: Tensor | None, sin: Tensor | None, back: bool = False) -> Tensor:
    """`apply_rotary` of `x`, or its transpose (`back`), written into `out`, which may be a view."""
    if cos is None:
        return out.copy_(x)
    half, sign = x.shape[-1] // 2, -1 if back else 1
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out
