# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Records what the SortNets of a model do with one text: sort matrices, attention maps, and pairs of blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
from sorting_sinkhorn import hard_assignment


class LayerSorting(NamedTuple):
    """What one layer's SortNet did with one text. `G` sorting heads, `N` blocks; row `i` is a destination."""

    layer_type: str
    logits: Tensor  # (G, N, N) R, before the temperature
    before: Tensor  # (G, N, N) the row softmax of R / temperature, without balancing
    after: Tensor  # (G, N, N) the balanced sort matrix
    baseline: Tensor  # (N, N) the result for equal logits: causal balancing alone prefers the block before
    allowed: Tensor | None  # (1, N, N) bool, allowed pairs of blocks; `None` for all
    candidates: Tensor | None  # (1, N, N) bool, those that a hard assignment chooses from; `None` where it is soft


class Pair(NamedTuple):
    """Block `source` was sorted next to block `destination`."""

    destination: int
    source: int
    weight: float  # of the sort matrix
    baseline: float  # what equal logits would give


@contextmanager
def recorded_sort_net(net: nn.Module) -> Iterator[dict[str, Any]]:
    """
    Fills a dict with the inputs and outputs of a SortNet in its next pass: `layout` and `matrix` through a forward
    hook, and `logits`, which no module returns, through `perturb`, its last step before balancing.
    """
    seen: dict[str, Any] = {}

    def perturb(logits: Tensor) -> Tensor:
        seen["logits"], seen["scaled"] = logits, type(net).perturb(net, logits)
        return seen["scaled"]

    def keep(_net: nn.Module, arguments: tuple, matrix: Tensor) -> None:
        seen.update(layout=arguments[1], matrix=matrix)

    net.perturb = perturb  # on this object only: overrides the method of the class
    hook = net.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
        del net.perturb


@torch.no_grad()
def record_sorting(
    model: PreTrainedModel, input_ids: Tensor, maps: bool = False
) -> tuple[dict[int, LayerSorting], list[Tensor] | None]:
    """
    Reads a text of `L` tokens, `(1, L)`, without noise.

    Returns:
        What each sorting layer did, by number; and with `maps` (needs eager attention) the source-token attention map
        `(H, L, L)` of every layer.
    """
    model.eval()
    with ExitStack() as stack:
        seen = {
            number: (layer.self_attn.layer_type, stack.enter_context(recorded_sort_net(layer.self_attn.sort_net)))
            for number, layer in enumerate(model.layers)
            if layer.self_attn.sorts
        }
        outputs = model(input_ids, use_cache=False, output_attentions=maps)
    layers = {}
    for number, (layer_type, found) in seen.items():
        layout = found["layout"]
        # Zero iterations of balancing give the row softmax, causal or not.
        before = sinkhorn_balance(found["scaled"], layout.balanced, 0)
        baseline = balance_equal_logits(before[:1, :1], layout.balanced, model.config)
        allowed = None if layout.balanced is None else layout.balanced[0]
        candidates = None
        if model.config.sort_assignment == "hard":
            candidates = layout.candidates[0]
            if layer_type == "sortcut_attention":  # it has no local blocks, so every block is a candidate
                candidates = torch.ones_like(candidates) if allowed is None else allowed
        layers[number] = LayerSorting(
            layer_type, found["logits"][0], before[0], found["matrix"][0], baseline[0, 0], allowed, candidates
        )
    return layers, [attention[0] for attention in outputs.attentions] if maps else None


def balance_equal_logits(like: Tensor, allowed: Tensor | None, config: Any) -> Tensor:
    """The sort matrix of a SortNet without preferences, in the shape of `like` `(1, 1, N, N)`."""
    if config.is_decoder:
        capacity = config.causal_balancing == "capacity"
        return causal_sinkhorn_balance(torch.zeros_like(like), allowed, config.sinkhorn_iterations, None, capacity)[0]
    return sinkhorn_balance(torch.zeros_like(like), allowed, config.sinkhorn_iterations)


def strongest_pairs(sorting: LayerSorting, head: int, config: Any) -> list[Pair]:
    """
    For each destination block with a source, the source block with the largest weight (soft) or the gathered blocks
    (hard). Pairs furthest above the weight for equal logits come first: the choice of the SortNet, not of the mask. In
    a SortCut layer, the destinations are the blocks kept for every query.
    """
    matrix = sorting.after[head]
    rows = config.sortcut_blocks if sorting.layer_type == "sortcut_attention" else len(matrix)
    matrix = matrix[:rows]
    if config.sort_assignment == "hard":
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
