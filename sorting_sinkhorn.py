# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The mathematics of Sparse Sinkhorn Attention (Tay et al., ICML 2020, arXiv:2002.11296) as pure functions on tensors:
the block grid, block descriptors, and the soft and hard assignment of blocks. Balancing is in `balancing_sinkhorn.py`.

Shape letters: `B` rows of the batch, `L` tokens, `b` tokens per block, `N` blocks, `G` key/value heads, `D` head
dimension, `S` sorted blocks per block. `i` is a destination block, `j` a source block, `t` a slot inside a block.
Imports torch alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


TIE_TOLERANCE = 1e-4  # weights of a sort matrix whose relative difference is smaller count as equal


class BlockGrid(NamedTuple):
    """
    Which token is in which slot of which block. A token's slot is its rank among the real tokens of its row, and
    padding has no slot, so left padding, right padding and holes all give the same blocks.

    Without padding every field but the sizes is `None`: blocks are then plain views of the sequence. In a grid of
    new tokens that continue earlier ones, block 0 is the block that each row has open.
    """

    num_tokens: int  # L
    block_size: int  # b
    num_blocks: int  # N = ceil(L / b); of new tokens: the most blocks that they can touch
    token_of_slot: Tensor | None = None  # (B, N * b) the token in each slot; past the last real one, anything valid
    slot_of_token: Tensor | None = None  # (B, L) the slot of each real token; of padding, anything valid
    is_real: Tensor | None = None  # (B, L) bool, False at padding
    filled: Tensor | None = None  # (B or 1, N, b) bool, False in slots without a token; None: every slot is filled
    document: Tensor | None = None  # (B, N) of packed rows, which document of its row a block belongs to
    block_of_document: Tensor | None = None  # (B, N) of packed rows, which block of its document it is


def block_grid(num_tokens: int, block_size: int, attention_mask: Tensor | None = None, device=None) -> BlockGrid:
    """
    Lays the real tokens of each row into blocks (design section 2.1).

    Args:
        num_tokens: `L`, tokens per row, padding included.
        block_size: `b`, tokens per block.
        attention_mask: `(B, L)`, nonzero at real tokens; `None` where there is no padding.
        device: of the tensors made where there is no mask.
    """
    num_blocks = (num_tokens + block_size - 1) // block_size
    if attention_mask is not None:
        return _padded_grid(num_tokens, block_size, num_blocks, attention_mask != 0)
    filled = None
    # A graph for any length cannot depend on whether the last block is full.
    if torch.compiler.is_compiling() or num_blocks * block_size != num_tokens:
        slots = torch.arange(num_blocks * block_size, device=device)
        filled = (slots < num_tokens).view(1, num_blocks, block_size)
    return BlockGrid(num_tokens, block_size, num_blocks, filled=filled)


def continued_grid(is_real: Tensor, offset: Tensor, block_size: int) -> BlockGrid:
    """
    The same for new tokens that continue in the middle of a block.

    Args:
        is_real: `(B, L)` bool, the new tokens that are no padding.
        offset: `(B,)` tokens that the row's open block holds already, in `[0, b)`.
    """
    num_tokens = is_real.shape[1]
    # Whatever the offset: the last token may be the first of its block, and the first one the last.
    num_blocks = (num_tokens + 2 * block_size - 2) // block_size
    return _padded_grid(num_tokens, block_size, num_blocks, is_real, offset.unsqueeze(-1))


def _padded_grid(num_tokens: int, block_size: int, num_blocks: int, is_real: Tensor, offset: Tensor | int = 0):
    num_slots = num_blocks * block_size
    rank = is_real.cumsum(-1)
    slots = torch.arange(num_slots, device=is_real.device) - offset
    filled = ((slots >= 0) & (slots < rank[:, -1:])).view(-1, num_blocks, block_size)
    slot_of_token = (rank - 1 + offset).clamp(min=0)
    # The inverse. Padding goes to one slot past the last, which is cut off. Not by a sort: it is unsupported by ONNX.
    tokens = torch.arange(num_tokens, device=is_real.device).expand_as(rank)
    token_of_slot = rank.new_zeros(rank.shape[0], num_slots + 1)
    token_of_slot = token_of_slot.scatter(1, slot_of_token.masked_fill(~is_real, num_slots), tokens)[:, :-1]
    return BlockGrid(num_tokens, block_size, num_blocks, token_of_slot, slot_of_token, is_real, filled)


def document_lengths(document: Tensor) -> Tensor:
    """`(B, L)` numbers of documents to the tokens of each, `(B, most documents of a row)`."""
    lengths = document.new_zeros(len(document), int(document.max()) + 1)
    return lengths.scatter_add_(1, document, torch.ones_like(document))


def packed_grid(document: Tensor, block_size: int) -> BlockGrid:
    """
    The grid of rows that hold several documents end to end: each begins with a new block, so that it has the same
    blocks as alone.

    Args:
        document: `(B, L)`, the number of the document of each token, from 0 on in each row, in order.
    """
    batch, num_tokens = document.shape
    device = document.device
    lengths = document_lengths(document)
    blocks = -(-lengths // block_size)
    first_token, first_block = lengths.cumsum(1) - lengths, blocks.cumsum(1) - blocks
    num_blocks = int(blocks.sum(1).max())
    token = torch.arange(num_tokens, device=device).expand(batch, -1)
    slot_of_token = token + (first_block * block_size - first_token).gather(1, document)
    filled = torch.zeros(batch, num_blocks * block_size, dtype=torch.bool, device=device)
    filled.scatter_(1, slot_of_token, True)
    token_of_slot = torch.zeros(filled.shape, dtype=torch.long, device=device).scatter_(1, slot_of_token, token)
    filled = filled.view(batch, num_blocks, block_size)
    # A row with fewer blocks than another ends in empty ones, which are counted to its last document.
    block = torch.arange(num_blocks, device=device).expand(batch, -1)
    document_of_block = document.gather(1, token_of_slot[:, ::block_size])
    document_of_block = torch.where(filled[..., 0], document_of_block, document[:, -1:])
    return BlockGrid(
        num_tokens,
        block_size,
        num_blocks,
        token_of_slot,
        slot_of_token,
        torch.ones_like(document, dtype=torch.bool),
        filled,
        document_of_block,
        block - first_block.gather(1, document_of_block),
    )


def to_blocks(tokens: Tensor, grid: BlockGrid) -> Tensor:
    """`(B, L, ...)` tokens to `(B, N, b, ...)` blocks, zero in the slots that hold no token."""
    trailing = tokens.shape[2:]
    if grid.token_of_slot is not None:
        index = grid.token_of_slot.view(*grid.token_of_slot.shape, *[1] * len(trailing)).expand(-1, -1, *trailing)
        tokens = tokens.expand(index.shape[0], *tokens.shape[1:]).gather(1, index)
        empty = ~grid.filled.flatten(1)
        tokens = tokens.masked_fill(empty.view(*empty.shape, *[1] * len(trailing)), 0)
    elif grid.filled is not None:
        num_slots = grid.num_blocks * grid.block_size
        if torch.compiler.is_compiling():  # `pad` depends on whether there is anything to pad
            slots = torch.arange(num_slots, device=tokens.device).clamp(max=grid.num_tokens - 1)
            empty = ~grid.filled.flatten(1)
            tokens = tokens.index_select(1, slots).masked_fill(empty.view(*empty.shape, *[1] * len(trailing)), 0)
        else:
            tokens = nn.functional.pad(tokens, [0, 0] * len(trailing) + [0, num_slots - grid.num_tokens])
    return tokens.unflatten(1, (grid.num_blocks, grid.block_size))


def from_blocks(blocks: Tensor, grid: BlockGrid) -> Tensor:
    """`(B, N, b, E)` blocks back to `(B, L, E)` tokens, zero at padding. The inverse of `to_blocks`."""
    tokens = blocks.flatten(1, 2)
    if grid.slot_of_token is not None:
        tokens = tokens.gather(1, grid.slot_of_token.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return tokens.masked_fill(~grid.is_real.unsqueeze(-1), 0)
    if torch.compiler.is_compiling():  # whether a slice is contiguous depends on the length
        return tokens.index_select(1, torch.arange(grid.num_tokens, device=tokens.device))
    return tokens[:, : grid.num_tokens]


def block_means(blocks: Tensor, grid: BlockGrid) -> Tensor:
    """`(B, N, b, E)` blocks to `(B, N, E)` float32 means over each block's real tokens; empty blocks give 0."""
    return block_sums(blocks) / _at_least_one(block_lengths(grid))


def block_sums(blocks: Tensor) -> Tensor:
    """`(B, N, b, E)` blocks to their `(B, N, E)` float32 sums (the paper's encoder descriptor)."""
    return blocks.sum(2, dtype=torch.promote_types(blocks.dtype, torch.float32))


def block_lengths(grid: BlockGrid) -> Tensor | int:
    """Real tokens per block, `(B or 1, N, 1)`; the plain block size where every slot is filled."""
    return grid.block_size if grid.filled is None else grid.filled.sum(-1, keepdim=True)


def causal_block_descriptors(
    first_tokens: Tensor,
    sums: Tensor,
    block_size: int,
    pooling: str,
    first_block: Tensor | None,
    before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """
    What a causal SortNet reads of each destination block (design section 2.2): the sum or mean over all tokens of the
    row up to and including the block's first, which all queries of the block may see; or that one alone.

    Args:
        first_tokens: `(B, N, E)`, the first token of each block.
        sums: `(B, N, E)`, the `block_sums`, of all blocks of the row or of those from `first_block` on.
        block_size: `b`, tokens per block.
        pooling: `"sum"`, `"mean"` or `"first"`.
        first_block: `(B,)`, the number of the first block given; `None` for 0.
        before: `(B, E)`, the sum over the tokens of the blocks before it; `None` for 0.

    Returns:
        The descriptors `(B, N, E)` in float32 (meaningless for blocks without a token), and `(B, N, E)`: the sum over
        all tokens to the end of each block.
    """
    start = (torch.zeros_like(sums[:, 0]) if before is None else before).unsqueeze(1)
    after = sums.cumsum(1) + start
    # Not `after - sums`: adding and subtracting a number leaves its rounding error, a trace of later tokens. And not
    # `sums[:, :1]` and `after[:, :-1]`, whose sizes would be guards in a graph for any length.
    if pooling == "first":
        return first_tokens.to(sums.dtype), after
    descriptors = torch.cat((start, after), dim=1)[:, :-1] + first_tokens
    if pooling == "mean":
        block = torch.arange(sums.shape[1], device=sums.device)
        block = block if first_block is None else block + first_block.unsqueeze(-1)
        descriptors = descriptors / (block * block_size + 1).unsqueeze(-1)
    return descriptors, after


def packed_causal_descriptors(first_tokens: Tensor, sums: Tensor, grid: BlockGrid, pooling: str) -> Tensor:
    """`causal_block_descriptors` `(B, N, E)` of packed rows, which start again with each document."""
    if pooling == "first":
        return first_tokens.to(sums.dtype)
    block = torch.arange(grid.num_blocks, device=sums.device)
    earlier = same_document(grid.document, grid.document) & (block < block.unsqueeze(-1))
    descriptors = earlier.to(sums.dtype) @ sums + first_tokens
    if pooling == "mean":
        descriptors = descriptors / (grid.block_of_document * grid.block_size + 1).unsqueeze(-1)
    return descriptors


def nonempty_blocks(grid: BlockGrid) -> Tensor | None:
    """`(B, N)` bool, False for blocks that hold no real token; `None` where there is no padding, so none is empty."""
    return None if grid.is_real is None else grid.filled[..., 0]


def allowed_pairs(grid: BlockGrid, causal: bool, device: torch.device) -> Tensor | None:
    """`(B or 1, 1, N, N)` bool, True where block `j` may be sorted next to block `i`; `None` where all may."""
    has_tokens = nonempty_blocks(grid)
    allowed = None
    if has_tokens is not None:
        allowed = (has_tokens.unsqueeze(-1) & has_tokens.unsqueeze(-2)).unsqueeze(1)
    if grid.document is not None:
        allowed = allowed & same_document(grid.document, grid.document).unsqueeze(1)
    if causal:
        block = torch.arange(grid.num_blocks, device=device)
        earlier = block.unsqueeze(0) < block.unsqueeze(-1)
        allowed = earlier.view(1, 1, *earlier.shape) if allowed is None else allowed & earlier
    return allowed


def same_document(left: Tensor, right: Tensor) -> Tensor:
    """`(B, M)` and `(B, N)` numbers of documents to `(B, M, N)` bool."""
    return left.unsqueeze(-1) == right.unsqueeze(-2)


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel samples, `-log(-log u)`, of the shape and device of `like`, from torch's generator."""
    # Not `exponential_`, which draws one number at a time on a CPU.
    return torch.rand_like(like).clamp_min_(torch.finfo(like.dtype).tiny).log_().neg_().log_().neg_()


def soft_sort(sort_matrix: Tensor, blocks: Tensor, filled: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """
    Sorted block `i` = sum over `j` of `P[i, j]` block `j`, slot by slot, renormalised over the blocks that have a
    token in that slot (design section 2.5). In slots that no block fills the result is 0; mask them.

    Args:
        sort_matrix: `(B, G, n, N)`, any `n` destinations.
        blocks: `(B, G, N, b, E)`, zero in empty slots.
        filled: `(B or 1, N, b)` bool, slots that hold a token; `None` where every source block is full, as in a
            decoder, whose sources have a block after them.
        allowed: bool, broadcastable to the sort matrix, where blocks that are filled may not be sources.

    Returns:
        `(B, G, n, b, E)` in the dtype of `blocks`.
    """
    sources = blocks.flatten(3)
    if filled is None:
        return (sort_matrix.to(blocks.dtype) @ sources).unflatten(-1, blocks.shape[3:])
    # The blocks that fill a slot may have weights that underflow to 0, or whose inverse overflows in half precision.
    with torch.autocast(blocks.device.type, enabled=False):
        sort_matrix = sort_matrix.clamp_min(1e-30)
        if allowed is not None:
            sort_matrix = sort_matrix.masked_fill(~allowed, 0)
        mixed = (sort_matrix @ sources.to(sort_matrix.dtype)).unflatten(-1, blocks.shape[3:])
        coverage = sort_matrix @ filled.unsqueeze(1).to(sort_matrix.dtype)
        mixed = mixed / torch.where(coverage > 0, coverage, 1).unsqueeze(-1)
    return mixed.to(blocks.dtype)


class HardSort(NamedTuple):
    """The choice of `hard_assignment`: which blocks are sorted next to each block."""

    index: Tensor  # (B, G, n, S) the chosen source blocks
    chosen: Tensor  # (B, G, n, S) bool, False where there were fewer candidates than S
    weight: Tensor  # (B, G, n, S) 1 exactly, with the gradient of P[i, index] (straight-through)


def hard_assignment(sort_matrix: Tensor, candidates: Tensor, num_sorted_blocks: int) -> HardSort:
    """
    The `num_sorted_blocks` best candidates of each row of the sort matrix (design section 2.5). Of those that are
    equal except for rounding, as blocks of the same text are, the first: otherwise a row could depend on its padding.

    Args:
        sort_matrix: `(B, G, n, N)`.
        candidates: bool, broadcastable to it: allowed pairs that are not local already.
    """
    candidates = candidates.expand_as(sort_matrix)
    scores = sort_matrix.detach().masked_fill(~candidates, -1.0)
    # Padded to at least that many places, even without as many candidates. A graph for any length cannot compare
    # sizes.
    missing = num_sorted_blocks - (1 if torch.compiler.is_compiling() else sort_matrix.shape[-1])
    if missing > 0:
        scores, sort_matrix = (
            nn.functional.pad(scores, (0, missing), value=-1.0),
            nn.functional.pad(sort_matrix, (0, missing)),
        )
    index, best = best_candidates(scores, num_sorted_blocks)
    chosen = best >= 0
    index = index.masked_fill(~chosen, 0)
    probability = sort_matrix.gather(-1, index)
    return HardSort(index, chosen, 1 + (probability - probability.detach()))


def best_candidates(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """
    The places `(..., number)` and values of the largest scores `(..., N)`, of those that are about equal the first
    ones. Scores are not negative, except -1 where there is no candidate.
    """
    num_blocks = scores.shape[-1]
    few = scores.numel() < 2**14 and number < num_blocks
    if few and scores.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        # In one step, unless the last of them has equals; that is found out without waiting for a device.
        values, places = scores.topk(number + 1)
        rows = values.flatten(0, -2).tolist()  # so few are compared sooner in Python
        if not any(row[-1] >= row[-2] * (1 - TIE_TOLERANCE) and row[-1] >= 0 for row in rows):
            return places[..., :-1], values[..., :-1]
    order = torch.arange(num_blocks, device=scores.device, dtype=torch.float32)  # half as wide as integers
    places, values = [], []
    for _ in range(number):
        best = scores.amax(-1, keepdim=True)
        place = torch.where(scores >= best * (1 - TIE_TOLERANCE), order, order[-1]).amin(-1, keepdim=True).long()
        scores = scores.scatter(-1, place, -1.0)
        places.append(place)
        values.append(best)
    return torch.cat(places, dim=-1), torch.cat(values, dim=-1)


def hard_sort(choice: HardSort, blocks: Tensor) -> Tensor:
    """
    Gathers the chosen blocks whole. Linear in the number of blocks.

    Args:
        blocks: `(B, G, N, b, E)`.

    Returns:
        `(B, G, n, S, b, E)`.
    """
    (gathered,) = gather_blocks(choice.index, blocks)
    if choice.weight.requires_grad:
        gathered = gathered * choice.weight.to(gathered.dtype)[..., None, None]
    return gathered


def gather_blocks(index: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """`(B, G, n, S)` numbers of blocks, and blocks `(B, G, N, b, E)` of each kind, to `(B, G, n, S, b, E)` of each."""
    batch, heads, num_blocks = of[0].shape[:3]
    first_row = torch.arange(0, batch * heads * num_blocks, num_blocks, device=index.device).view(batch, heads, 1, 1)
    rows = (index + first_row).flatten()
    flat = (blocks.reshape(batch * heads * num_blocks, -1).index_select(0, rows) for blocks in of)
    return tuple(gathered.view(*index.shape, *blocks.shape[3:]) for gathered, blocks in zip(flat, of))


def local_offsets(num_local_blocks: int, causal: bool) -> range:
    """Distances in blocks from a block to its local ones, itself (0) included, in the order of the text."""
    return range(1 - num_local_blocks, 1 if causal else num_local_blocks)


def local_window(blocks: Tensor, offsets: range) -> Tensor:
    """`(B, N, b, ...)` blocks to `(B, N, len(offsets) * b, ...)`: each block and its neighbours, 0 past the ends."""
    if len(offsets) == 1:
        return blocks
    return torch.cat([_shift_blocks(blocks, offset) for offset in offsets], dim=2)


def sinks_of_documents(grid: BlockGrid, num_sink_blocks: int) -> Tensor | None:
    """
    `(B, N, sinks)`: of packed rows, the first blocks of each block's document, which may be past the end of that or of
    the row. `None` where a row is one document, and where there are no sinks.
    """
    if grid.document is None or num_sink_blocks == 0:
        return None
    first = torch.arange(grid.num_blocks, device=grid.document.device) - grid.block_of_document
    return first.unsqueeze(-1) + torch.arange(num_sink_blocks, device=first.device)


def always_read(blocks: Tensor, offsets: range, num_sink_blocks: int, sink_index: Tensor | None) -> Tensor:
    """`local_window` of `(B, N, b, ...)` blocks, with the sinks before it: `(B, N, (sinks + len(offsets)) * b, ...)`."""
    local = local_window(blocks, offsets)
    if num_sink_blocks == 0:
        return local
    batch, num_blocks = blocks.shape[:2]
    if sink_index is None:
        index = torch.arange(num_sink_blocks, device=blocks.device).clamp(max=num_blocks - 1)
        sinks = (
            blocks.index_select(1, index).flatten(1, 2).unsqueeze(1).expand(-1, num_blocks, *[-1] * (blocks.dim() - 2))
        )
    else:
        rows = sink_index.clamp(max=num_blocks - 1).flatten(1)
        rows = rows.view(batch, -1, *[1] * (blocks.dim() - 2)).expand(-1, -1, *blocks.shape[2:])
        sinks = blocks.gather(1, rows).unflatten(1, (num_blocks, num_sink_blocks)).flatten(2, 3)
    return torch.cat((sinks, local), dim=2)


def _shift_blocks(blocks: Tensor, offset: int) -> Tensor:
    """Puts block `i + offset` in place `i`, zeros where there is none."""
    if offset == 0:
        return blocks
    pad = [0, 0] * (blocks.dim() - 2)
    if offset < 0:
        return nn.functional.pad(blocks, [*pad, -offset, 0])[:, :offset]
    return nn.functional.pad(blocks, [*pad, 0, offset])[:, offset:]


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
