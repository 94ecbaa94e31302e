# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
How much of a query's attention would fall to each block, estimated from few numbers (design section 9.3): the scores
of the SortNets `"keys"` and `"index"`, as pure functions. A block's keys stand in `p` pieces, each with its mean key;
the pieces of `"index"` are single tokens, in few dimensions.

Shape letters as in `sorting_sinkhorn.py`; `r = H / G` query heads per key/value head, `n` queries, `p` pieces per
block, `C` dimensions in which queries and keys are compared.
"""

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


def piece_lengths(filled: Tensor, piece_size: int) -> Tensor:
    """`(B or 1, N, b)` bool, slots that hold a token, to the tokens of each piece, `(B or 1, N, p)`."""
    return filled.unflatten(2, (-1, piece_size)).sum(-1)


def prefix_means(key: Tensor, piece_size: int) -> Tensor:
    """`(B, G, N, b, C)` keys to, at each token, the mean key of its piece up to itself."""
    if piece_size == 1:
        return key
    pieces = key.unflatten(3, (-1, piece_size))
    count = torch.arange(1, piece_size + 1, device=key.device).view(-1, 1)
    return (pieces.cumsum(4) / count).flatten(3, 4)


def own_scores(query: Tensor, own_key: Tensor, slot: Tensor, piece_size: int, scaling: float) -> Tensor:
    """
    Of a causal query with the piece that it stands in, up to itself.

    Args:
        query: `(B, G, r, n, C)`.
        own_key: `(B, G, n, C)`, `prefix_means` at the queries.
        slot: `(B or 1, n)`, where the queries stand.

    Returns:
        `(B, G, r, n, 1)`, with the logarithm of the number of tokens.
    """
    scores = (query * own_key.unsqueeze(2)).sum(-1, keepdim=True) * scaling
    if piece_size == 1:
        return scores
    return scores + (slot % piece_size + 1).to(scores.dtype).log()[:, None, None, :, None]


def block_shares(
    query: Tensor,
    pieces: Tensor,
    log_lengths: Tensor | float,
    visible: Tensor | None,
    own: Tensor | None,
    scaling: float,
) -> Tensor:
    """
    The share of each block in the softmax of a query, mean over the query heads of a key/value head.

    Args:
        query: `(B, G, r, n, C)`.
        pieces: `(B, G, N, p, C)`, mean keys.
        log_lengths: logarithms of the tokens of each piece, broadcastable to `(B, 1, 1, n, N * p)`.
        visible: bool, broadcastable to the same; `None` for all.
        own: `own_scores`, of what the query sees beside these pieces; `None` for nothing.

    Returns:
        `(B, G, n, N)`. They sum to 1, less the share of `own`.
    """
    num_blocks, per_block = pieces.shape[2:4]
    batch, heads, repeats, num_queries = query.shape[:4]
    scores = query.flatten(2, 3) @ pieces.flatten(2, 3).mT
    scores = scores.view(batch, heads, repeats, num_queries, num_blocks * per_block)
    if visible is None and own is None and not scores.requires_grad:
        return _shares_of_everything(scores.to(query.dtype), log_lengths, num_blocks, scaling)
    scores = scores * scaling + log_lengths
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    top = scores.detach().amax(-1, keepdim=True)
    if own is not None:
        top = torch.maximum(top, own.detach())
    top = top.clamp(min=torch.finfo(scores.dtype).min)  # a query without a token sees nothing
    weights = (scores - top).exp()
    by_block = weights.unflatten(-1, (num_blocks, per_block)).sum(-1)
    total = weights.sum(-1, keepdim=True)
    if own is not None:
        total = total + (own - top).exp()
    return (by_block / total.clamp_min(SMALLEST_SHARE)).mean(2)


def _shares_of_everything(scores: Tensor, log_lengths: Tensor | float, num_blocks: int, scaling: float) -> Tensor:
    """`block_shares` of queries that see all, of products `(B, G, r, n, N * p)`, in fewer passes over memory."""
    scores = scores.mul_(scaling)
    if isinstance(log_lengths, Tensor):  # one number for all pieces changes no share
        # Not -inf of pieces without a token: there may be no others.
        scores = scores.add_(log_lengths.clamp(min=torch.finfo(scores.dtype).min / 2))
    weights = torch.softmax(scores, -1, out=None if torch.compiler.is_compiling() else scores)
    return weights.unflatten(-1, (num_blocks, -1)).sum(-1).mean(2)


def log_shares(shares: Tensor) -> Tensor:
    return shares.clamp_min(SMALLEST_SHARE).log()
