# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
How much of a query's attention would fall to each block, estimated from few numbers (design section 9.3): the scores
of the SortNets `"keys"` and `"index"`, as pure functions. A block's keys stand in `p` pieces, each with its mean key;
the pieces of `"index"` are single tokens, in few dimensions.

Scores and logarithms of numbers of tokens are to the base 2: processors take powers of 2 in half the time of those of e.

Shape letters as in `sorting_sinkhorn.py`; `r = H / G` query heads per key/value head, `n` queries, `p` pieces per
block, `C` dimensions in which queries and keys are compared.
"""

import math
from typing import Any

import torch
from torch import Tensor


SMALLEST_SHARE = 1e-30  # so that a logarithm exists


def piece_means(key: Tensor, filled: Tensor | None, piece_size: int) -> Tensor:
    """
    `(B, G, N, b, C)` keys to the mean of each piece's tokens, `(B, G, N, p, C)`; 0 of a piece without tokens.

    Args:
        filled: `(B or 1, N, b)` bool, slots that hold a token; `None` for all.
    """
    if piece_size == 1:
        return key
    pieces = key.unflatten(3, (-1, piece_size))
    if filled is None:
        return pieces.mean(4)
    filled = filled[:, None].unflatten(3, (-1, piece_size)).unsqueeze(-1)
    return pieces.masked_fill(~filled, 0).sum(4) / filled.sum(4).clamp(min=1)


def log_piece_lengths(filled: Tensor, piece_size: int, dtype: torch.dtype) -> Tensor:
    """
    `(B or 1, N, b)` bool, slots that hold a token, to the logarithm of the tokens of each piece, `(B or 1, N, p)`:
    the lowest number, and finite, for none.
    """
    lengths = filled.unflatten(2, (-1, piece_size)).sum(-1).to(dtype)
    return lengths.log2().clamp(min=torch.finfo(dtype).min)


def prefix_means(key: Tensor, piece_size: int) -> Tensor:
    """`(B, G, N, b, C)` keys to, at each token, the mean key of its piece up to itself."""
    if piece_size == 1:
        return key
    pieces = key.unflatten(3, (-1, piece_size))
    count = torch.arange(1, piece_size + 1, device=key.device).view(-1, 1)
    return (pieces.cumsum(4) / count).flatten(3, 4)


def own_scores(query: Tensor, own_key: Tensor, slot: Tensor, piece_size: int) -> Tensor:
    """
    Of a causal query with the piece that it stands in, up to itself.

    Args:
        query: `(B, G, r, n, C)`, scaled to the base 2.
        own_key: `(B, G, n, C)`, `prefix_means` at the queries.
        slot: `(B or 1, n)`, where the queries stand.

    Returns:
        `(B, G, r, n, 1)`, with the logarithm of the number of tokens.
    """
    scores = (query * own_key.unsqueeze(2)).sum(-1, keepdim=True)
    return scores + (slot % piece_size + 1).to(scores.dtype).log2()[:, None, None, :, None]


def block_shares(
    query: Tensor,
    pieces: Tensor,
    log_lengths: Tensor | float,
    hidden: Tensor | None,
    own: Tensor | None,
) -> Tensor:
    """
    The share of each block in the softmax of a query, mean over the query heads of a key/value head.

    Args:
        query: `(B, G, r, n, C)`, scaled to the base 2.
        pieces: `(B, G, N, p, C)`, mean keys.
        log_lengths: logarithms of the tokens of each piece, broadcastable to `(B, 1, 1, n, N * p)`; 0.0 for single
            tokens.
        hidden: bool, broadcastable to the same with fewer pieces, the last ones; `None` where all are visible.
        own: `own_scores`, of what the query sees beside these pieces; `None` for nothing.

    Returns:
        `(B, G, n, N)`. They sum to 1, less the share of `own`.
    """
    _, by_block, total = _powers(query, pieces, log_lengths, hidden, own)
    return (by_block / total).mean(2)


def gradients_of_shares(grad: Tensor, log: bool, query: Tensor, pieces: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """
    The backward pass of `block_shares`, or with `log` of `log_shares` after it, from its gradient `(B, G, n, N)` to
    those of `query` and `pieces`. That of `own` is left out.
    """
    powers, by_block, total = _powers(query, pieces, *rest)
    shares = by_block / total
    if log:
        mean = shares.mean(2)
        grad = (grad / mean).masked_fill_(mean < SMALLEST_SHARE, 0)
    # A block's share changes with a score by ln 2 times the score's part of the softmax times (1 where it is the block's
    # own, else 0, minus the share).
    grad = grad.unsqueeze(2) * (math.log(2) / query.shape[2])
    of_blocks = (grad - (grad * shares).sum(-1, keepdim=True)) / total
    scores = powers.unflatten(-1, pieces.shape[2:4]).mul_(of_blocks.unsqueeze(-1)).flatten(4).flatten(2, 3)
    of_query = (scores @ pieces.flatten(2, 3)).view_as(query)
    return of_query, (scores.mT @ query.flatten(2, 3)).view_as(pieces)


def _powers(
    query: Tensor, pieces: Tensor, log_lengths: Tensor | float, hidden: Tensor | None, own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The powers of 2 of scores, `(B, G, r, n, N * p)`, their sums over blocks, and over all that a query sees."""
    # Most of the time that routing takes on long texts is spent here: few passes, and in place.
    scores = (query.flatten(2, 3) @ pieces.flatten(2, 3).mT).unflatten(2, query.shape[2:4])
    if isinstance(log_lengths, Tensor) or own is not None:  # one number for all there is changes no share
        scores = scores + log_lengths
    if hidden is not None:
        # Finite, so that a query without a token gets no NaN.
        lowest = torch.finfo(scores.dtype).min
        scores[..., scores.shape[-1] - hidden.shape[-1] :].masked_fill_(hidden, lowest)
    top = scores.detach().amax(-1, keepdim=True)
    if own is not None:
        top = torch.maximum(top, own.detach())
    powers = scores.sub_(top).exp2_()
    by_block = powers.unflatten(-1, pieces.shape[2:4]).sum(-1)
    total = by_block.sum(-1, keepdim=True)
    if own is not None:
        total = total + (own - top).exp2()
    return powers, by_block, total


def log_shares(shares: Tensor) -> Tensor:
    return shares.clamp_min(SMALLEST_SHARE).log()
