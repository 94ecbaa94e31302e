# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What the fields of a configuration may be, alone and together. Each error names the field and says what to change. Where
a function takes `config`, it is a `SinkhornConfig` with every default filled in.
"""

import math
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# The docstring of the class explains each layer type.
LAYER_TYPES = (
    "sinkhorn_attention",
    "sortcut_attention",
    "mixture_attention",
    "local_attention",
    "full_attention",
)
SORT_NETS = ("linear", "mlp", "bilinear", "keys", "index")
# These compare queries with keys, and learn nothing or little of their own.
KEY_SORT_NETS = ("keys", "index")
SORT_GRANULARITIES = ("block", "token")
SORT_POOLINGS = ("mean", "sum", "first")
SORT_ASSIGNMENTS = ("soft", "hard")
ATTENTION_BIASES = (False, True, "qkv")
CAUSAL_BALANCINGS = ("equality", "capacity")
CLASSIFIER_POOLINGS = ("mean", "last", "cls")

# Far above any real model. A larger value comes from a damaged or manipulated file, and is refused before it takes all
# memory (sizes of weights and of blocks) or hours (layers, iterations).
LARGEST = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 2**30),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "block_size"), 2**14),
    **dict.fromkeys(("key_piece_size", "index_head_dim", "num_index_heads"), 2**14),
    **dict.fromkeys(
        ("num_hidden_layers", "num_sorted_blocks", "num_local_blocks", "num_sink_blocks", "sortcut_blocks"), 2**10
    ),
    "sinkhorn_iterations": 1000,
    "num_labels": 10**6,
}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def check_before_use(num_hidden_layers: Any, num_labels: Any, dtype: Any) -> None:
    """Of what is read before a configuration is whole: lists of that length are made."""
    for name, value in (("num_hidden_layers", num_hidden_layers), ("num_labels", num_labels)):
        if value is not None and not (isinstance(value, int) and value <= LARGEST[name]):
            raise ValueError(f"`{name}` must be a number, and at most {LARGEST[name]}, got {value!r}.")
    if not (dtype is None or isinstance(dtype, torch.dtype) or dtype in DTYPES):
        raise ValueError(f"`dtype` must be one of {list(DTYPES)}, got {dtype!r}.")


def check_layer_types(config: Any) -> None:
    """`layer_types` has one known name per layer."""
    unknown = sorted(set(config.layer_types) - set(LAYER_TYPES))
    if unknown:
        raise ValueError(f"`layer_types` holds {unknown}; each entry must be one of {list(LAYER_TYPES)}.")
    if len(config.layer_types) != config.num_hidden_layers:
        raise ValueError(
            f"`layer_types` has {len(config.layer_types)} entries for `num_hidden_layers={config.num_hidden_layers}`; "
            "give one entry per layer, or leave it out."
        )
    if config.is_decoder and "sortcut_attention" in config.layer_types:
        raise ValueError(
            "`layer_types` holds 'sortcut_attention' in a decoder (`is_decoder=True`): its queries would see "
            "later tokens. Use 'sinkhorn_attention', or `is_decoder=False`."
        )


def check_architecture(config: Any) -> None:
    """Everything else."""
    _check_sizes(config)
    _check_choices(config)
    _check_sorting(config)
    _check_rope(config)


def _check_sizes(config: Any) -> None:
    positive = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings block_size num_sorted_blocks num_local_blocks sortcut_blocks "
        "key_piece_size index_head_dim num_index_heads"
    )
    for name in positive.split():
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if value is not None and value > LARGEST[name]:
            raise ValueError(f"`{name}` must be at most {LARGEST[name]}, got {value}.")
    if not 0 <= config.num_sink_blocks <= LARGEST["num_sink_blocks"]:
        raise ValueError(
            f"`num_sink_blocks` must be from 0 to {LARGEST['num_sink_blocks']}, got {config.num_sink_blocks}."
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"`num_attention_heads` ({config.num_attention_heads}) is not a multiple of `num_key_value_heads` "
            f"({config.num_key_value_heads}); query heads share key/value heads in equal groups."
        )
    if config.head_dim is None:
        raise ValueError(
            f"`hidden_size` ({config.hidden_size}) is not a multiple of `num_attention_heads` "
            f"({config.num_attention_heads}); change one of them, or set `head_dim`."
        )
    if config.head_dim % 2:
        raise ValueError(f"`head_dim` must be even for rotary positions, got {config.head_dim}.")
    for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
        rate = getattr(config, name)
        if rate is not None and not 0 <= rate < 1:
            raise ValueError(f"`{name}` must be in [0, 1), got {rate}.")
    if not 0 < config.rms_norm_eps < math.inf:
        raise ValueError(f"`rms_norm_eps` must be above 0 and finite, got {config.rms_norm_eps}.")
    if not 0 <= config.initializer_range < math.inf:
        raise ValueError(f"`initializer_range` must be 0 or more and finite, got {config.initializer_range}.")
    if config.pad_token_id is not None and not -config.vocab_size <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"`pad_token_id` ({config.pad_token_id}) is none of the `vocab_size={config.vocab_size}` tokens."
        )


def _check_choices(config: Any) -> None:
    choices = {
        "attention_bias": ATTENTION_BIASES,
        "sort_granularity": SORT_GRANULARITIES,
        "sort_net": SORT_NETS,
        "sort_pooling": SORT_POOLINGS,
        "sort_assignment": SORT_ASSIGNMENTS,
        "causal_balancing": CAUSAL_BALANCINGS,
        "classifier_pooling": (None, *CLASSIFIER_POOLINGS),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(config, name)!r}.")
    classes = config.architectures
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"`architectures` must be a list of class names, got {classes!r}.")
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {config.hidden_act!r}.")


def _check_sorting(config: Any) -> None:
    if config.sinkhorn_iterations < 0:
        raise ValueError(
            f"`sinkhorn_iterations` must be 0 or more, got {config.sinkhorn_iterations}; 0 is a plain row softmax."
        )
    if config.sinkhorn_iterations > LARGEST["sinkhorn_iterations"]:
        raise ValueError(
            f"`sinkhorn_iterations` must be at most {LARGEST['sinkhorn_iterations']}, got "
            f"{config.sinkhorn_iterations}."
        )
    if not 1e-6 <= config.sinkhorn_temperature <= 1e6:  # beyond, the logits overflow
        raise ValueError(f"`sinkhorn_temperature` must be above 0 (1e-6 to 1e6), got {config.sinkhorn_temperature}.")
    if config.sort_assignment == "soft" and config.num_sorted_blocks > 1:
        raise ValueError(
            f"`num_sorted_blocks={config.num_sorted_blocks}` needs `sort_assignment='hard'`: a soft sort gives one "
            "mixed block per block."
        )
    if not 0 < config.sort_capacity <= 1e6:
        raise ValueError(f"`sort_capacity` must be above 0 (at most 1e6), got {config.sort_capacity}.")
    _check_granularity(config)
    if config.sort_net == "keys" and config.block_size % config.key_piece_size:
        raise ValueError(
            f"`block_size` ({config.block_size}) is not a multiple of `key_piece_size` ({config.key_piece_size}), the "
            "tokens whose keys are averaged: change one of them, or use `sort_net='index'`."
        )
    if config.num_index_heads not in (None, config.num_attention_heads, config.num_key_value_heads):
        raise ValueError(
            f"`num_index_heads` ({config.num_index_heads}) is neither `num_attention_heads` "
            f"({config.num_attention_heads}), which compares each query head, nor `num_key_value_heads` "
            f"({config.num_key_value_heads}), which merges those of a key/value head: set one of them, or leave it out."
        )
    if config.sort_net in ("linear", "mlp") and config.max_num_blocks < 1:
        raise ValueError(
            f"`max_position_embeddings` ({config.max_position_embeddings}) is below `block_size` "
            f"({config.block_size}), which leaves a '{config.sort_net}' SortNet no block; raise the first, lower the "
            "second, or use `sort_net='bilinear'`."
        )


def _check_granularity(config: Any) -> None:
    by = f"`sort_granularity='{config.sort_granularity}'` with `sort_net='{config.sort_net}'`"
    if config.sort_granularity == "block" and config.sort_net not in KEY_SORT_NETS:
        return
    if config.sort_assignment != "hard":
        raise ValueError(
            f"{by} needs `sort_assignment='hard'`, which reads whole blocks: set it, or use "
            "`sort_granularity='block'` and `sort_net='bilinear'` for a soft sort."
        )
    if "sortcut_attention" in config.layer_types:
        raise ValueError(
            f"`layer_types` holds 'sortcut_attention', where all queries read the same blocks, but {by} lets "
            "queries choose: use 'sinkhorn_attention', or `sort_granularity='block'` and `sort_net='bilinear'`."
        )
    if config.sort_granularity == "token" and config.sort_net in ("linear", "mlp"):
        raise ValueError(
            f"{by} cannot be: this SortNet reads whole blocks. Use `sort_net='bilinear'`, 'keys' or 'index'."
        )


def _check_rope(config: Any) -> None:
    """The library only warns of wrong RoPE parameters, and fails later: here the frequencies are computed once."""
    if config.rope_parameters.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"`rope_parameters` hold a `partial_rotary_factor` of "
            f"{config.rope_parameters['partial_rotary_factor']}, but all of a head is rotated here: leave it out."
        )
    try:
        rope_type, theta = config.rope_parameters["rope_type"], float(config.rope_parameters["rope_theta"])
        is_valid = 0 < theta <= 1e18
        if is_valid and rope_type != "default":
            with torch.device("cpu"):  # models are built on "meta", where tensors have no values
                frequencies, scale = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
            is_valid = len(frequencies) == config.head_dim // 2 and bool(frequencies.isfinite().all())
            is_valid = is_valid and math.isfinite(scale)
    except Exception as error:
        raise ValueError(
            f"`rope_parameters` ({config.rope_parameters}) give no RoPE: {describe_error(error)}"
        ) from error
    if not is_valid:
        raise ValueError(f"`rope_parameters` ({config.rope_parameters}) give no frequencies that are finite.")


def describe_error(error: Exception) -> str:
    return str(error) if isinstance(error, (ValueError, StrictDataclassError)) else f"{type(error).__name__}: {error}"
