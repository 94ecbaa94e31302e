# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The compared models, all with as many parameters as the soft Sinkhorn model: fewer parameters in attention are made up
for in the feed-forward network. Learned positions, which only Longformer and BigBird have, do not count: they would be
most of a small model.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import modeling_sinkhorn  # noqa: F401  registers the Sinkhorn classes with the Auto classes
from common.model_settings import round_up
from experiments.synthesizer import KINDS, as_synthesizer


SINKHORN_VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"layer_types": "full_attention"},
    "local": {"layer_types": "local_attention"},
    "local2": {"layer_types": "local_attention", "num_local_blocks": 2},
    "local3": {"layer_types": "local_attention", "num_local_blocks": 3},
    "local4": {"layer_types": "local_attention", "num_local_blocks": 4},
    "soft": {},
    "quiet": {"gumbel_noise": False},
    "far": {"num_local_blocks": 2, "causal_balancing": "capacity", "sort_pooling": "first"},
    "soft0": {"sinkhorn_iterations": 0},
    "hard": {"sort_assignment": "hard"},
    "hard0": {"sort_assignment": "hard", "sinkhorn_iterations": 0},
    "hard2": {"sort_assignment": "hard", "num_sorted_blocks": 2},
    "sortcut": {"layer_types": "sortcut_attention"},
    "mixture": {"layer_types": "mixture_attention"},
}
for _sort_net in ("bilinear", "keys", "index"):  # each token reads the two blocks that it chooses
    _routes = {"sort_granularity": "token", "sort_assignment": "hard", "num_sorted_blocks": 2, "sort_net": _sort_net}
    SINKHORN_VARIANTS[f"token_{_sort_net}"] = _routes | {"sinkhorn_iterations": 0}
    SINKHORN_VARIANTS[f"token_{_sort_net}_balanced"] = _routes
SINKHORN_VARIANTS["token_index_one"] = SINKHORN_VARIANTS["token_index"] | {"num_sorted_blocks": 1}
for _sort_net in ("keys", "index"):
    SINKHORN_VARIANTS[f"token_{_sort_net}_four"] = SINKHORN_VARIANTS[f"token_{_sort_net}"] | {"num_sorted_blocks": 4}
SYNTHESIZERS = {f"synthesizer_{kind}": kind for kind in KINDS}
PEERS = ("longformer", "bigbird", *SYNTHESIZERS)
REFERENCE = "soft"


def config_of(name: str, settings: dict[str, Any], longest: int) -> PreTrainedConfig:
    """
    Of the model `name`, for rows of up to `longest` tokens.

    Args:
        settings: fields of `SinkhornConfig`; peers take those that they share.
    """
    if name in SINKHORN_VARIANTS or name in SYNTHESIZERS:
        settings = settings | SINKHORN_VARIANTS["full" if name in SYNTHESIZERS else name]
        if isinstance(settings.get("layer_types"), str):
            settings["layer_types"] = [settings["layer_types"]] * settings["num_hidden_layers"]
        # The SortNets of the paper have an output for each block, and a last block may be partly filled.
        rows = round_up(longest, settings["block_size"])
        return AutoConfig.for_model("sinkhorn", **settings, max_position_embeddings=rows, use_cache=False)
    if name not in PEERS:
        raise ValueError(f"there is no model '{name}'; there are {', '.join((*SINKHORN_VARIANTS, *PEERS))}.")
    block, dropout = settings["block_size"], settings.get("hidden_dropout", 0.0)
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_labels")
    peer = {field: settings[field] for field in shared if field in settings} | {
        "pad_token_id": settings["pad_token_id"],
        "intermediate_size": 4 * settings["hidden_size"],
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": settings.get("attention_dropout", 0.0),
        "initializer_range": settings.get("initializer_range", 0.02),
    }
    if name == "longformer":  # as many keys for a query as Sinkhorn attention has; it counts positions from 1
        rows = round_up(longest, 2 * block) + 2
        return AutoConfig.for_model("longformer", **peer, attention_window=2 * block, max_position_embeddings=rows)
    rows = round_up(longest, block)
    return AutoConfig.for_model("big_bird", **peer, block_size=block, max_position_embeddings=rows)


def parameters(model: PreTrainedModel) -> int:
    """All but tables of learned positions."""
    return sum(p.numel() for name, p in model.named_parameters() if "position_embeddings" not in name)


def with_matched_parameters(config: PreTrainedConfig, build: Callable, target: int) -> PreTrainedConfig:
    """`config` with the width of feed-forward network that gives what `build` makes of it `target` parameters."""

    def count() -> int:
        with torch.device("meta"):
            return parameters(build(config))

    width, narrow = config.intermediate_size, count()
    config.intermediate_size = width + 1
    config.intermediate_size = width + round((target - narrow) / (count() - narrow))
    return config


def make_model(name: str, settings: dict[str, Any], longest: int, auto_class: type, seed: int) -> PreTrainedModel:
    """With as many parameters as the reference model of the same settings, except the choice of sorter."""
    plain = {field: value for field, value in settings.items() if field not in ("sort_net", "layer_types")}

    def build(config: PreTrainedConfig) -> PreTrainedModel:
        model = auto_class.from_config(config)
        return as_synthesizer(model, SYNTHESIZERS[name], longest) if name in SYNTHESIZERS else model

    with torch.device("meta"):
        target = parameters(auto_class.from_config(config_of(REFERENCE, plain, longest)))
    config = with_matched_parameters(config_of(name, settings, longest), build, target)
    torch.manual_seed(seed)
    return build(config)
