# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Records what the SortNets of a model do with one text: sort matrices, attention maps, and pairs of blocks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
from plan_sinkhorn import balance_plan, even_shares
from sorting_sinkhorn import hard_assignment


# Heads that move less of a row's weight than this away from what equal logits give have learned no sorting.
LEARNED = 0.1


class LayerSorting(NamedTuple):
    """
    What one layer's SortNet did with one text. `G` sorting heads, `N` blocks. Row `i` is a destination: a block, or,
    with `by_token`, a token, and then there are `L` rows.
    """

    layer_type: str
    logits: Tensor  # (G, N or L, N) R, before the temperature
    before: Tensor  # (G, N or L, N) the row softmax of R / temperature, without balancing
    after: Tensor  # (G, N or L, N) the balanced sort matrix
    baseline: Tensor  # (N or L, N) the result for equal logits: causal balancing alone prefers the block before
    allowed: Tensor | None  # (1, N or L, N) bool, pairs that sorting may join; `None` for all
    candidates: (
        Tensor | None
    )  # (1, N or L, N) bool, those that a hard assignment chooses from; `None` where it is soft
    by_token: bool = False


class Pair(NamedTuple):
    """Block `source` was sorted next to block `destination`."""

    destination: int
    source: int
    weight: float  # of the sort matrix
    baseline: float  # what equal logits would give


@contextmanager
def recorded_attention(attention: nn.Module, config: Any, take: Callable[[LayerSorting], None]) -> Iterator[None]:
    """
    Calls `take` in the next pass of an attention that sorts. Its logits, which no module returns, are seen through
    `perturb` of its SortNet, their last step before balancing.
    """
    by_token = config.sort_granularity == "token"
    net, scaled = attention.sort_net, []
    seen: dict[str, Tensor] = {}

    def perturb(logits: Tensor) -> Tensor:
        scaled.append(type(net).perturb(net, logits))
        return scaled[-1]

    def keep_matrix(_net: nn.Module, _arguments: tuple, matrix: Tensor) -> None:
        seen["matrix"] = matrix

    def ask_for_plan(_module: nn.Module, arguments: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return arguments, kwargs | {"output_sort_matrices": True}

    def finish(_module: nn.Module, arguments: tuple, kwargs: dict, outputs: tuple) -> tuple:
        layout = (arguments[1] if len(arguments) > 1 else kwargs["layout"]).blocks
        if by_token:
            take(_sorting_of_tokens(attention.layer_type, config, layout, scaled, outputs[2]))
            outputs = (*outputs[:2], None)  # the plan of all tokens is large; nobody else asked for it
        else:
            take(_sorting_of_blocks(attention.layer_type, config, layout, scaled[0], seen.pop("matrix")))
        scaled.clear()
        return outputs

    net.perturb = perturb  # on this object only: overrides the method of the class
    hooks = [attention.register_forward_hook(finish, with_kwargs=True)]
    if by_token:
        hooks.append(attention.register_forward_pre_hook(ask_for_plan, with_kwargs=True))
    else:
        hooks.append(net.register_forward_hook(keep_matrix))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del net.perturb


def _sorting_of_blocks(layer_type: str, config: Any, layout: Any, scaled: Tensor, matrix: Tensor) -> LayerSorting:
    # Zero iterations of balancing give the row softmax, causal or not.
    before = sinkhorn_balance(scaled, layout.balanced, 0)
    baseline = balance_equal_logits(before[:1, :1], layout.balanced, config)
    allowed = None if layout.balanced is None else layout.balanced[0]
    candidates = None
    if config.sort_assignment == "hard":
        candidates = layout.candidates[0]
        if layer_type == "sortcut_attention":  # it has no local blocks, so every block is a candidate
            candidates = torch.ones_like(candidates) if allowed is None else allowed
    logits = scaled[0] * config.sinkhorn_temperature
    return LayerSorting(layer_type, logits, before[0], matrix[0], baseline[0, 0], allowed, candidates)


def _sorting_of_tokens(layer_type: str, config: Any, layout: Any, scaled: list[Tensor], plan: Tensor) -> LayerSorting:
    """`scaled`: parts of the tokens, each with as many blocks as they may see."""
    num_tokens, num_blocks = plan.shape[2:]
    rows = torch.cat([nn.functional.pad(part, (0, num_blocks - part.shape[-1])) for part in scaled], dim=2)
    rows = rows[:, :, :num_tokens]
    candidates = layout.candidates[:, :, :, :num_blocks].repeat_interleave(config.block_size, dim=2)
    candidates = candidates[:, :, :num_tokens]
    before, _ = balance_plan(rows, candidates, None, 0, config.is_decoder)
    # Equal logits give even shares, which no capacity changes: it would scale all columns alike.
    baseline = even_shares(candidates, before.dtype)[0, 0]
    logits = rows[0] * config.sinkhorn_temperature
    return LayerSorting(layer_type, logits, before[0], plan[0], baseline, candidates[0], candidates[0], by_token=True)


@torch.no_grad()
def record_sorting(
    model: PreTrainedModel,
    input_ids: Tensor,
    maps: bool = False,
    keep: Callable[[int, LayerSorting], Any] = lambda number, sorting: sorting,
) -> tuple[dict[int, Any], list[Tensor] | None]:
    """
    Reads a text of `L` tokens, `(1, L)`, without noise. `model`: a body.

    Args:
        keep: what to keep of each sorting layer's number and sorting.

    Returns:
        What `keep` gave of each sorting layer, by number; and with `maps` (needs eager attention) the source-token
        attention map `(H, L, L)` of every layer.
    """
    layers, outputs = record_outputs(model, input_ids, keep, output_attentions=maps)
    return layers, [attention[0] for attention in outputs.attentions] if maps else None


@torch.no_grad()
def record_outputs(
    model: PreTrainedModel, input_ids: Tensor, keep: Callable[[int, LayerSorting], Any], **kwargs: Any
) -> tuple[dict[int, Any], Any]:
    """`record_sorting` of a model with or without a head; returns the model's outputs too."""
    model.eval()
    layers: dict[int, Any] = {}

    def taker(number: int) -> Callable[[LayerSorting], None]:
        return lambda sorting: layers.__setitem__(number, keep(number, sorting))

    with ExitStack() as stack:
        for number, layer in enumerate(model.base_model.layers):
            if layer.self_attn.sorts:
                stack.enter_context(recorded_attention(layer.self_attn, model.config, taker(number)))
        outputs = model(input_ids, use_cache=False, **kwargs)
    return layers, outputs


def moved_weight(sorting: LayerSorting) -> Tensor:
    """
    `(G,)`: the share of a row's weight that is elsewhere than with equal logits, the mean over the rows that have a
    choice. 0 where no sorting was learned.
    """
    moved = (sorting.after - sorting.baseline).abs().sum(-1) / 2
    if sorting.allowed is None:
        return moved.mean(-1)
    chooses = sorting.allowed[0].sum(-1) > 1
    return (moved * chooses).sum(-1) / chooses.sum().clamp(min=1)


def mean_over_blocks(sorting: LayerSorting, block_size: int) -> LayerSorting:
    """With a row for each block, the mean over its tokens, where each token chose."""
    if not sorting.by_token:
        return sorting

    def mean(rows: Tensor) -> Tensor:
        return torch.stack([part.mean(-2) for part in rows.split(block_size, dim=-2)], dim=-2)

    allowed = torch.stack([part.any(-2) for part in sorting.allowed.split(block_size, dim=-2)], dim=-2)
    return sorting._replace(
        logits=mean(sorting.logits),
        before=mean(sorting.before),
        after=mean(sorting.after),
        baseline=mean(sorting.baseline),
        allowed=allowed,
        candidates=allowed,
    )


def balance_equal_logits(like: Tensor, allowed: Tensor | None, config: Any) -> Tensor:
    """The sort matrix of a SortNet without preferences, in the shape of `like` `(1, 1, N, N)`."""
    if config.is_decoder:
        capacity = config.causal_balancing == "capacity"
        return causal_sinkhorn_balance(torch.zeros_like(like), allowed, config.sinkhorn_iterations, None, capacity)[0]
    return sinkhorn_balance(torch.zeros_like(like), allowed, config.sinkhorn_iterations)


def strongest_pairs(sorting: LayerSorting, head: int, config: Any) -> list[Pair]:
    """
    For each destination block with a source, the source block with the largest weight (soft, and the mean over tokens
    that chose) or the gathered blocks (hard). Pairs furthest above the weight for equal logits come first: the choice of
    the SortNet, not of the mask. In a SortCut layer, the destinations are the blocks kept for every query.
    """
    matrix = sorting.after[head]
    rows = config.sortcut_blocks if sorting.layer_type == "sortcut_attention" else len(matrix)
    matrix = matrix[:rows]
    if config.sort_assignment == "hard" and not sorting.by_token:
        candidates = sorting.candidates[None, :, :rows]
        choice = hard_assignment(matrix[None, None], candidates, config.num_sorted_blocks)
        found = [
            (row, int(source))
            for row in range(len(matrix))
            for source in choice.index[0, 0, row][choice.chosen[0, 0, row]]
        ]
    else:
        found = [(row, int(weights.argmax())) for row, weights in enumerate(matrix) if weights.sum() > 0]
    named = [Pair(*pair, float(matrix[pair]), float(sorting.baseline[pair])) for pair in found]
    return sorted(named, key=lambda pair: pair.baseline - pair.weight)
