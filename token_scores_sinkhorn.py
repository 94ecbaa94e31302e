# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What tokens are compared with when they choose blocks (design section 9.3). Scores are made of a few rows of the batch
and a few queries at a time, and again for the backward pass; nothing of the size of all of them is kept.

Shape letters as in `shares_sinkhorn.py`; `M` blocks of queries.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.generic import maybe_autocast


try:  # a folder on the Hub, or any package
    from .shares_sinkhorn import block_shares, gradients_of_shares, log_shares, own_scores
except ImportError:  # flat modules, as installed
    from shares_sinkhorn import block_shares, gradients_of_shares, log_shares, own_scores


# Scores, which stay in a processor's cache, and numbers of a plan, in memory at a time, of all heads.
MAX_SCORES = {"cpu": 2**20, "cuda": 2**26}
MAX_OF_PLAN = {"cpu": 2**22, "cuda": 2**26}
# Scores of fewer queries than these are made of one row of the batch at a time: each time all keys of the rows are read,
# and in training something is added to the gradients of all.
FEWEST_QUERIES = 64


class BlockScores(NamedTuple):
    """Tokens are compared with the mean of each block, as learned (`"bilinear"`)."""

    rows: Tensor  # (B, G, n, C)
    columns: Tensor  # (B, G, N, C)
    scaling: float

    @property
    def of_plan(self) -> int:
        """Numbers of the plan of one query, of all rows of the batch."""
        return self.columns.shape[:3].numel()

    def logits(self, queries: slice, num_blocks: int, queries_per_block: int | None = None) -> Tensor:
        """`(B, G, n, N)`, of some queries and the first `num_blocks` blocks, whichever of them they see."""
        return self.rows[:, :, queries] @ self.columns[:, :, :num_blocks].mT * self.scaling


class KeyScores(NamedTuple):
    """Queries are compared with keys (`"keys"`, `"index"`)."""

    query: Tensor  # (B, G, r, n, C), scaled to the base 2
    pieces: Tensor  # (B, G, N, p, C)
    log_lengths: Tensor | float  # to the base 2, of the pieces, (B or 1, N, p); one number where all are full
    own_key: Tensor | None  # (B, G, n, C), of causal queries: `prefix_means`
    slot: Tensor  # (B or 1, n) where the queries stand
    piece_size: int
    same_document: Tensor | None  # (B, M, N) of packed rows: blocks of one document

    @property
    def of_plan(self) -> int:
        """Numbers of the plan of one query, of all rows of the batch."""
        return self.pieces.shape[:3].numel()

    @property
    def size(self) -> int:
        """Scores of one query, of all rows of the batch."""
        return self.query.shape[:3].numel() * self.pieces.shape[2:4].numel()

    def logits(self, queries: slice, num_blocks: int, queries_per_block: int | None = None) -> Tensor:
        """The logarithm of `shares`."""
        return self._shares(queries, num_blocks, queries_per_block, True)

    def shares(self, queries: slice, num_blocks: int, queries_per_block: int | None = None) -> Tensor:
        """
        `block_shares` of some queries and the first `num_blocks` blocks, `(B, G, n, N)`.

        Args:
            queries_per_block: given where query 0 begins block 0, and queries see no block after their own: the shares
                of those are not computed, and 0.
        """
        return self._shares(queries, num_blocks, queries_per_block, False)

    def _shares(self, *request: Any) -> Tensor:
        learns = torch.is_grad_enabled() and (self.query.requires_grad or self.pieces.requires_grad)
        # A query's own share of its piece has no backward pass here: what learns has pieces of one token.
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if learns and self.piece_size == 1 and not in_graph:
            return _Shares.apply(request, *self)
        return self.compute(*request)

    def compute(self, queries: slice, num_blocks: int, queries_per_block: int | None, log: bool) -> Tensor:
        """`shares`, or their logarithm."""
        batch, groups = self.query.shape[:2]
        device, num_queries = self.query.device, queries.stop - queries.start

        def compare(compared: tuple[Any, ...]) -> Tensor:
            # In half precision, shares that differ by little would be equal.
            with maybe_autocast(device_type=device.type, enabled=False):
                shares = block_shares(*compared)
                return log_shares(shares) if log else shares

        if torch.compiler.is_compiling() or self.size * num_queries <= most(MAX_SCORES, device):
            num_seen = 0 if queries_per_block is None else queries.start // queries_per_block
            return compare(self._compared(queries, num_blocks, num_seen))
        whole = self.query.new_zeros(batch, groups, num_queries, num_blocks)
        for rows, few, limit, compared in self.parts(queries, num_blocks, queries_per_block):
            whole[rows, :, few.start - queries.start : few.stop - queries.start, :limit] = compare(compared)
        return whole

    def parts(
        self, queries: slice, num_blocks: int, queries_per_block: int | None
    ) -> Iterator[tuple[slice, slice, int, tuple[Any, ...]]]:
        """Rows of the batch, queries, the number of blocks that they see, and the arguments of `block_shares`."""
        batch, device = self.query.shape[0], self.query.device
        for rows in slices(slice(0, batch), self.size // batch * FEWEST_QUERIES, MAX_SCORES, device):
            some = self
            if rows != slice(0, batch):  # what has one row is for all
                some = KeyScores(*(x[rows] if isinstance(x, Tensor) and x.shape[0] > 1 else x for x in self))
            for few in slices(queries, some.size, MAX_SCORES, device):
                limit, num_seen = num_blocks, 0
                if queries_per_block is not None:
                    limit, num_seen = -(-few.stop // queries_per_block), few.start // queries_per_block
                yield rows, few, limit, some._compared(few, limit, num_seen)

    def _compared(self, queries: slice, num_blocks: int, num_seen: int) -> tuple[Any, ...]:
        """The arguments of `block_shares`; each of these queries sees the first `num_seen` blocks whole."""
        query, slot, hidden, own = self.query[:, :, :, queries], self.slot[:, queries], None, None
        per_block = self.pieces.shape[3]
        if self.own_key is not None:
            piece = torch.arange(num_seen * per_block, num_blocks * per_block, device=slot.device)
            own_piece = (slot // self.piece_size).unsqueeze(-1)
            if self.piece_size == 1:  # the query's own is among the pieces
                hidden = (piece > own_piece)[:, None, None]
            else:
                hidden = (piece >= own_piece)[:, None, None]
                own = own_scores(query, self.own_key[:, :, queries], slot, self.piece_size)
        if self.same_document is not None:
            per_query = self.query.shape[3] // self.same_document.shape[1]
            block = torch.arange(queries.start, queries.stop, device=slot.device) // per_query
            other = ~self.same_document[:, block, num_seen:num_blocks].repeat_interleave(per_block, dim=2)
            other = other[:, None, None]
            hidden = other if hidden is None else hidden | other
        log_lengths = self.log_lengths
        if isinstance(log_lengths, Tensor):
            log_lengths = log_lengths[:, :num_blocks].flatten(1)[:, None, None, None]
        return query, self.pieces[:, :, :num_blocks], log_lengths, hidden, own


Scores = BlockScores | KeyScores


class _Shares(torch.autograd.Function):
    """`KeyScores.compute`, of whose scores the backward pass makes each part again."""

    @staticmethod
    def forward(ctx, request, *scores):
        ctx.request = request
        ctx.others = [None if isinstance(x, Tensor) else x for x in scores]
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in scores))
        return KeyScores(*scores).compute(*request)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        saved = zip(ctx.saved_tensors, ctx.others)
        scores = KeyScores(*(other if tensor is None else tensor for tensor, other in saved))
        queries, num_blocks, queries_per_block, log = ctx.request
        grad_query, grad_pieces = torch.zeros_like(scores.query), torch.zeros_like(scores.pieces)
        with maybe_autocast(device_type=grad.device.type, enabled=False):
            for rows, few, limit, compared in scores.parts(queries, num_blocks, queries_per_block):
                of_part = grad[rows, :, few.start - queries.start : few.stop - queries.start, :limit]
                grad_query[rows, :, :, few], of_pieces = gradients_of_shares(of_part, log, *compared)
                grad_pieces[rows, :, :limit] += of_pieces
        return None, grad_query, grad_pieces, *[None] * (len(KeyScores._fields) - 2)


def most(limits: dict[str, int], device: torch.device) -> int:
    """What `limits` say of the kind of device."""
    return limits.get(device.type, limits["cuda"])


def slices(whole: slice, size: int, limits: dict[str, int], device: torch.device) -> Iterator[slice]:
    """Parts of `whole`, where one has `size` numbers, within `limits`; one part in a graph, which is for any length."""
    step = whole.stop - whole.start
    if size > 0 and not torch.compiler.is_compiling():
        step = max(1, most(limits, device) // size)
    for start in range(whole.start, whole.stop, step):
        yield slice(start, min(start + step, whole.stop))
