# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The models that are compared, and how many keys each reads."""

import re
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from common.errors import UserError
from common.model_settings import recorded_settings
from training.model_choice import check_overrides, parse_overrides, recorded_name


class Candidate(NamedTuple):
    """`LABEL=MODEL?FIELD=VALUE,...`: a folder or Hub model, and fields of its configuration that are changed."""

    label: str
    name: str
    overrides: str


def parse_candidate(text: str) -> Candidate:
    """
    Without a label it is the last part of the name, and the changes.

    Raises:
        UserError: there is no name.
    """
    head, _, overrides = text.partition("?")
    label, separator, name = head.partition("=")
    if not separator:
        label, name = "", head
    if not name:
        raise UserError(f"--models: '{text}' names no model; write LABEL=MODEL, or LABEL='MODEL?FIELD=VALUE,...'.")
    short = name.rstrip("/").rsplit("/", 1)[-1]
    return Candidate(label or (f"{short}, {overrides}" if overrides else short), name, overrides)


def load(candidate: Candidate, dtype: str, device: str, hub: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """
    The model, in evaluation mode, and its tokenizer.

    Raises:
        UserError: no model of this name could be opened, or it has no such field.
    """
    try:
        config = AutoConfig.from_pretrained(candidate.name, **hub)
        overrides = parse_overrides(candidate.overrides, getattr(config, "num_hidden_layers", 1))
        check_overrides(overrides, config, {})
        config = AutoConfig.from_pretrained(candidate.name, **hub, **overrides)
        tokenizer = AutoTokenizer.from_pretrained(candidate.name, **hub)
        model = AutoModelForCausalLM.from_pretrained(candidate.name, config=config, dtype=dtype, **hub)
    except (OSError, ValueError) as error:
        raise UserError(f"--models {candidate.label}: {str(error).strip().splitlines()[0]}") from None
    return model.to(device).eval(), tokenizer


def description(candidate: Candidate, model: PreTrainedModel) -> dict[str, Any]:
    """What the results say of a model, and what must be the same where a run is resumed."""
    settings = recorded_settings(model.config, "_name_or_path", "quantization_config")
    settings = {name: value for name, value in settings.items() if not str(value).startswith("/")}
    return {
        "model": recorded_name(candidate.name),
        "overrides": candidate.overrides,
        "dtype": str(model.dtype).removeprefix("torch."),
        "settings": settings,
    }


def keys_read(config: PreTrainedConfig, length: int) -> float:
    """Keys that the last of `length` tokens reads, in the mean over layers. Scores of blocks are not counted."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return sum(_keys_of_layer(kind, config, length) for kind in kinds) / len(kinds)


def _keys_of_layer(kind: str, config: PreTrainedConfig, length: int) -> int:
    if kind == "sliding_attention":
        return min(length, config.sliding_window)
    if config.model_type != "sinkhorn" or kind in ("full_attention", "mixture_attention"):
        return length
    chosen = config.num_sorted_blocks if kind == "sinkhorn_attention" else 0
    blocks = config.num_local_blocks + config.num_sink_blocks + chosen
    in_last_block = (length - 1) % config.block_size + 1
    return min(length, (blocks - 1) * config.block_size + in_last_block)


def is_number(token: str) -> bool:
    return re.fullmatch(r"\s*\d+", token) is not None


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
