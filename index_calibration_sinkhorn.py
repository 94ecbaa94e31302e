# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Calibration of the index of a converted model (design section 10): the few dimensions in which its tokens compare their
queries with keys, to choose blocks.

They begin where products of queries and keys are nearest to what they are in all dimensions, and are then fitted to what
they are for: the shares of attention that fall to far blocks. Text alone asks for little that is far away, so that the
last third of each row is made of passages of what stands before it.

Beside the model: no folder with weights needs this module. Shape letters as in `layout_sinkhorn.py`; `r` query heads of a
key/value head, `n` sampled tokens, `w` dimensions of the index.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


try:  # any package
    from .configuration_sinkhorn import SinkhornConfig
except ImportError:  # flat modules, as installed
    from configuration_sinkhorn import SinkhornConfig


RECORDING = "sinkhorn_calibration"
STEPS = 300  # of descent to products, from a start that is near
FIT_STEPS, FIT_TOKENS, FIT_RATE = 200, 48, 0.005  # of the fit to shares; tokens that each looks at, and learning rate
SAMPLED_TOKENS = 512  # of each row
REPEATED, PASSAGES = 1 / 3, (8, 64)  # of a row, the part that repeats; fewest and most tokens of a passage


class Recorded(NamedTuple):
    """What one layer makes of one row."""

    query: Tensor  # (G, r, n, D) rotated, of sampled tokens
    key: Tensor  # (G, L, D) rotated
    place: Tensor  # (n,) where the sampled tokens stand


def index_projections(source: PreTrainedModel, tokens: Tensor, config: SinkhornConfig) -> dict[str, Tensor]:
    """
    The `index_proj` `(G, D, w)` of each layer that sorts, and the `index_query_proj` `(G, r * D, w)` of merged query heads,
    by their names in the state dict.

    Args:
        tokens: `(B, L)` of a text.
    """
    generator = torch.Generator().manual_seed(0)
    recorded = record(source, repeat_passages(tokens, generator), config, generator)
    layers = [layer for layer, kind in enumerate(config.layer_types) if kind == "sinkhorn_attention"]
    # All layers at once: one small problem after the other would take many times as long.
    moments = zip(*(second_moments(recorded[layer]) for layer in layers))
    directions = index_directions(*map(torch.cat, moments), config.index_head_dim).split(config.num_key_value_heads)
    projections = {}
    for layer, start in zip(tqdm(layers, desc="Calibrating the index"), directions):
        fitted = fit_to_shares(start_of_index(start, config), recorded[layer], config, generator)
        for name, projection in zip(("index_proj", "index_query_proj"), fitted):
            # Tensors of their own, as files need them.
            projections[f"model.layers.{layer}.self_attn.sort_net.{name}"] = projection.to(source.dtype).clone(
                memory_format=torch.contiguous_format
            )
    return projections


def repeat_passages(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """`(B, L)` tokens whose last third is replaced by passages of what stands before it."""
    length = tokens.shape[1]
    first, rows = length - int(REPEATED * length), []
    for row in tokens:
        parts, missing = [row[:first]], length - first
        while missing > 0:
            size = min(int(torch.randint(PASSAGES[0], PASSAGES[1] + 1, (), generator=generator)), missing, first)
            start = int(torch.randint(first - size + 1, (), generator=generator))
            parts.append(row[start : start + size])
            missing -= size
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@torch.no_grad()
def record(
    source: PreTrainedModel, tokens: Tensor, config: SinkhornConfig, generator: torch.Generator
) -> dict[int, list[Recorded]]:
    """What each layer makes of each row of `tokens` `(B, L)`, one row at a time."""
    recorded: dict[int, list[Recorded]] = {}
    length = tokens.shape[1]
    # Those that have a block to choose, if there are any.
    first = (config.num_sink_blocks + config.num_local_blocks) * config.block_size
    places = torch.arange(first if first < length else 0, length)
    places = places[torch.randperm(len(places), generator=generator)[:SAMPLED_TOKENS]].to(source.device)

    def read(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any):
        sampled = query[0, :, places].unflatten(0, (key.shape[1], -1))
        recorded.setdefault(module.layer_idx, []).append(Recorded(sampled, key[0].clone(), places))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(RECORDING, read)
    AttentionMaskInterface.register(RECORDING, sdpa_mask)
    before, training = source.config._attn_implementation, source.training
    source.set_attn_implementation(RECORDING)
    source.eval()
    try:
        for row in tqdm(tokens.to(source.device), desc="Reading the text of the index"):
            source.base_model(row.unsqueeze(0), use_cache=False)
    finally:
        source.set_attn_implementation(before)
        source.train(training)
    return recorded


# The start: products ----------------------------------------------------------------------------------------------


def second_moments(rows: list[Recorded]) -> tuple[Tensor, Tensor]:
    """`(G, D, D)` of queries and of keys, in float64."""
    query = torch.cat([row.query.flatten(1, 2) for row in rows], dim=1).double()
    key = torch.cat([row.key for row in rows], dim=1).double()
    return query.mT @ query / query.shape[1], key.mT @ key / key.shape[1]


def index_directions(query: Tensor, key: Tensor, width: int) -> Tensor:
    """
    `U` `(m, D, w)` of `m` heads for which `<U^T q, U^T k>` is nearest to `<q, k>` in the mean square, of queries and keys
    that are drawn apart with these second moments `(m, D, D)`. Keys are not centred: a difference from their mean, and the
    mean, which many tokens share, would need directions of their own.
    """
    query, key = (x / x.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] for x in (query, key))
    query_root, query_inverse = _roots(query)
    key_root, _ = _roots(key)
    # The first ones of the geometric mean of both moments: exact where they have the same axes.
    between, _ = _roots(query_inverse @ key @ query_inverse)
    start = torch.linalg.eigh(query_root @ between @ query_root)[1][..., -width:]
    directions = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([directions], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    whole = (query_root @ key_root).square().sum((1, 2))
    identity = torch.eye(key.shape[-1], dtype=key.dtype, device=key.device)
    with torch.enable_grad():
        for _ in range(STEPS):
            left = query_root @ (identity - directions @ directions.mT) @ key_root
            optimizer.zero_grad()
            (left.square().sum((1, 2)) / whole).sum().backward()
            optimizer.step()
            schedule.step()
    return directions.detach().float()


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of symmetric matrices `(m, D, D)`, and its inverse."""
    values, axes = torch.linalg.eigh(moments)
    values = values.clamp(min=1e-9).sqrt()
    return (axes * values.unsqueeze(1)) @ axes.mT, (axes / values.unsqueeze(1)) @ axes.mT


# The aim: shares of far blocks ---------------------------------------------------------------------------------------


Directions = tuple[Tensor] | tuple[Tensor, Tensor]  # of keys (G, D, w); then of merged query heads (G, r * D, w)


def start_of_index(directions: Tensor, config: SinkhornConfig) -> Directions:
    """`(G, D, w)` for queries and keys; merged query heads begin as their mean."""
    if not config.merges_index_heads:
        return (directions,)
    merged = config.num_attention_heads // config.num_key_value_heads
    return directions, (directions / merged).repeat(1, merged, 1)


def compared(query: Tensor, key: Tensor, directions: Directions) -> tuple[Tensor, Tensor]:
    """
    Args:
        query: `(G, r, n, D)`.
        key: `(G, L, D)`.

    Returns:
        `(G, r, n, w)`, of merged heads `(G, 1, n, w)`, and `(G, L, w)`.
    """
    if len(directions) == 1:
        return query @ directions[0].unsqueeze(1), key @ directions[0]
    return (query.transpose(1, 2).flatten(2) @ directions[1]).unsqueeze(1), key @ directions[0]


def fit_to_shares(
    start: Directions, rows: list[Recorded], config: SinkhornConfig, generator: torch.Generator | None = None
) -> Directions:
    """
    Directions for which the shares that the index finds are nearest to those of attention. Nothing but the blocks that
    tokens choose among counts, each token as much as it reads there.
    """
    longest = max(int(row.place.max()) for row in rows)
    if longest // config.block_size < config.num_sink_blocks + config.num_local_blocks:
        return start  # there is no block to choose
    directions = tuple(x.clone().requires_grad_() for x in start)
    optimizer = torch.optim.Adam(directions, lr=FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
    with torch.enable_grad():
        for step in range(FIT_STEPS):
            row = rows[step % len(rows)]
            sample = torch.randperm(len(row.place), generator=generator)[:FIT_TOKENS].to(row.place.device)
            query, key, place = row.query[:, :, sample].float(), row.key.float(), row.place[sample]
            with torch.no_grad():
                aim = far_shares(query, key, place, config)
            found = far_shares(*compared(query, key, directions), place, config)
            optimizer.zero_grad()
            divergence(aim, found).sum(0).mean().backward()
            optimizer.step()
            schedule.step()
    return tuple(x.detach() for x in directions)


def far_shares(query: Tensor, key: Tensor, place: Tensor, config: SinkhornConfig) -> Tensor:
    """
    The shares of attention, of all that tokens see, that fall to the blocks they may choose; 0 for other blocks.

    Args:
        query: `(G, r, n, w)` of tokens at `place` `(n,)`.
        key: `(G, L, w)`.

    Returns:
        `(G, n, N)`, the mean over the query heads.
    """
    b, length = config.block_size, key.shape[1]
    scores = query @ key.unsqueeze(1).mT * config.head_dim**-0.5
    scores = scores.masked_fill(torch.arange(length, device=key.device) > place.unsqueeze(-1), -torch.inf)
    weights = torch.nn.functional.pad(scores.softmax(-1), (0, -length % b))
    shares = weights.unflatten(-1, (-1, b)).sum(-1).mean(1)
    block = torch.arange(shares.shape[-1], device=key.device)
    own = (place // b).unsqueeze(-1)
    return shares * ((block >= config.num_sink_blocks) & (block <= own - config.num_local_blocks))


def divergence(aim: Tensor, found: Tensor) -> Tensor:
    """
    `(G, n)`: how far shares `found` `(G, n, N)` are from those aimed at, as distributions over blocks (Kullback and
    Leibler), times the sum of the latter.
    """
    logarithms = [(x.clamp(min=1e-20) / x.sum(-1, keepdim=True).clamp(min=1e-20)).log() for x in (aim, found)]
    return (aim * (logarithms[0] - logarithms[1])).sum(-1)
