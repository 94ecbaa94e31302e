# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Conversion of pretrained decoders (design section 10): the weights of a Llama, Mistral, Qwen2 or Qwen3 model in a
`SinkhornForCausalLM`, name by name, with sparse attention in the place of theirs.

    source = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="auto")
    model = convert(source, calibration=tokenizer(text, return_tensors="pt")["input_ids"])

A converted model that was trained on can be converted again: its weights stay, and its index is fitted to them anew.

Beside the model: no folder with weights needs this module.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


try:  # any package
    from .configuration_sinkhorn import SinkhornConfig
    from .index_calibration_sinkhorn import index_projections
    from .modeling_sinkhorn import SinkhornForCausalLM
    from .validation_sinkhorn import KEY_SORT_NETS
except ImportError:  # flat modules, as installed
    from configuration_sinkhorn import SinkhornConfig
    from index_calibration_sinkhorn import index_projections
    from modeling_sinkhorn import SinkhornForCausalLM
    from validation_sinkhorn import KEY_SORT_NETS


# What differs between the families; everything else has the same names and meanings.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"attention_bias": False},
    "qwen2": {"attention_bias": "qkv"},
    "qwen3": {"qk_norm": True},
}
CARRIED_OVER = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps rope_parameters attention_dropout tie_word_embeddings "
    "pad_token_id bos_token_id eos_token_id use_cache"
).split()
# What they have where their families allow it.
OPTIONAL = ("head_dim", "attention_bias", "mlp_bias")
# How a converted model reads, where nothing else is asked for.
DEFAULTS = {
    "sort_granularity": "token",
    "sort_net": "index",
    "index_head_dim": 32,
    "sort_assignment": "hard",
    "block_size": 64,
    "num_sorted_blocks": 8,
    "num_local_blocks": 2,
    "num_sink_blocks": 1,
    "sinkhorn_iterations": 0,
    "gumbel_noise": False,
    "is_decoder": True,
}
# What may be chosen: how attention reads, and what no weight depends on.
CHOICES = (
    "layer_types sort_granularity sort_net sort_assignment block_size num_sorted_blocks num_local_blocks "
    "num_sink_blocks sinkhorn_iterations sinkhorn_temperature sort_capacity causal_balancing gumbel_noise "
    "key_piece_size index_head_dim num_index_heads max_position_embeddings rope_parameters attention_dropout hidden_dropout "
    "initializer_range use_cache"
).split()
LAYER_TYPES = ("sinkhorn_attention", "local_attention", "full_attention")
# Fields of other architectures: where one of them says something, the weights mean more than they do here.
WITHOUT_COUNTERPART = {
    "attn_logit_softcapping": "attention logits are not capped here",
    "final_logit_softcapping": "logits are not capped here",
    "num_local_experts": "there are no experts here",
    "num_experts": "there are no experts here",
    "attention_sinks": "there are no learned sinks here",
    "no_rope_layers": "every layer rotates its queries and keys here",
    "kv_lora_rank": "keys and values are not compressed here",
}


class ConversionError(ValueError):
    """A model that cannot be carried over exactly; names the field and the cure."""


# The configuration ----------------------------------------------------------------------------------------------------


def converted_config(source: PreTrainedConfig, **choices: Any) -> SinkhornConfig:
    """
    The configuration of a converted model: that of `source`, `DEFAULTS` unless it is a converted one itself, and then
    `choices`.

    Raises:
        ConversionError: something cannot be carried over. `StrictDataclassError`: the choices do not work together.
    """
    if is_sinkhorn(source):
        check_converted(source)
        check_choices({"sort_net": source.sort_net} | choices)
        return SinkhornConfig.from_dict(source.to_dict() | choices)
    check_source(source)
    check_choices(choices)
    fields = {name: getattr(source, name) for name in CARRIED_OVER}
    fields |= {name: getattr(source, name) for name in OPTIONAL if getattr(source, name, None) is not None}
    fields |= FAMILIES[source.model_type] | DEFAULTS
    fields["rope_parameters"] = dict(source.rope_parameters)
    width = getattr(source, "head_dim", None) or source.hidden_size // source.num_attention_heads
    fields["index_head_dim"] = min(DEFAULTS["index_head_dim"], width)
    fields["num_index_heads"] = source.num_key_value_heads  # one comparison for the heads that read the same blocks
    return SinkhornConfig(**(fields | choices))


def is_sinkhorn(source: PreTrainedConfig) -> bool:
    return source.model_type == SinkhornConfig.model_type


def check_converted(source: PreTrainedConfig) -> None:
    """
    Raises:
        ConversionError: a Sinkhorn model that this module cannot have made.
    """
    unknown = sorted(set(source.layer_types) - set(LAYER_TYPES))
    if not source.is_decoder or unknown or source.sort_net not in KEY_SORT_NETS:
        raise ConversionError(
            f"This Sinkhorn model (`is_decoder={source.is_decoder}`, `sort_net='{source.sort_net}'`, `layer_types` with "
            f"{unknown or sorted(set(source.layer_types))}) is not a converted one. Only those can be converted again: "
            "decoders that compare queries and keys, by 'index' or 'keys'."
        )


def check_source(source: PreTrainedConfig) -> None:
    """
    Raises:
        ConversionError: the model cannot be carried over exactly.
    """
    kind = source.model_type
    if kind not in FAMILIES:
        raise ConversionError(
            f"`model_type` is '{kind}'; conversion knows {', '.join(FAMILIES)}, and what it made of them. Other models can "
            "use this attention only if their layers are those of one of these: then save them as such a model first."
        )
    quantization = getattr(source, "quantization_config", None)
    if quantization is not None and _method(quantization) != "gguf":  # which the library turns into plain weights
        raise ConversionError(
            "`quantization_config`: the weights are quantized. Convert the model that they were made from, or "
            "`model.dequantize()` and save it first."
        )
    window, length = getattr(source, "sliding_window", None), source.max_position_embeddings
    windowed = window is not None and (kind == "mistral" or "sliding_attention" in (source.layer_types or ()))
    if windowed and window < length:
        raise ConversionError(
            f"`sliding_window` is {window}, below `max_position_embeddings` ({length}): layers that see a window "
            "cannot be carried over exactly. Convert a version without one (of Mistral: 0.2 or later), or lower "
            "`max_position_embeddings` in its config.json to the window, within which nothing is hidden."
        )
    if getattr(source, "layer_types", None) and not {"full_attention", "sliding_attention"}.issuperset(
        source.layer_types
    ):
        raise ConversionError(
            f"`layer_types` holds {sorted(set(source.layer_types))}; only layers of full attention can be converted."
        )
    partial = (source.rope_parameters or {}).get("partial_rotary_factor") or getattr(
        source, "partial_rotary_factor", None
    )
    if partial not in (None, 1):
        raise ConversionError(
            f"`partial_rotary_factor` is {partial}: part of a head is not rotated, and here all of it is. There is no "
            "cure but a checkpoint that was trained with 1."
        )
    for name, why in WITHOUT_COUNTERPART.items():
        if getattr(source, name, None):
            raise ConversionError(
                f"`{name}` is {getattr(source, name)!r}: {why}. If the weights do not use it, delete the field from "
                "config.json."
            )


def check_choices(choices: dict[str, Any]) -> None:
    """
    Raises:
        ConversionError: a field that the weights decide, or a setting for which they hold nothing.
    """
    fixed = sorted(set(choices) - set(CHOICES))
    if fixed:
        raise ConversionError(
            f"`{fixed[0]}` cannot be chosen: the weights or the architecture decide it. Leave it out; what can be "
            f"chosen is {', '.join(CHOICES)}."
        )
    sort_net = choices.get("sort_net", DEFAULTS["sort_net"])
    if sort_net not in KEY_SORT_NETS:
        raise ConversionError(
            f"`sort_net='{sort_net}'` learns weights that a pretrained model does not have: use 'index' or 'keys', "
            "which compare its own queries and keys."
        )
    unknown = sorted(set(choices.get("layer_types") or ()) - set(LAYER_TYPES))
    if unknown:
        raise ConversionError(
            f"`layer_types` holds {unknown}; layers of a converted model can be {', '.join(LAYER_TYPES)}."
        )


def _method(quantization: Any) -> str:
    name = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    return str(getattr(name, "value", name))


# The model ------------------------------------------------------------------------------------------------------------


def convert(source: PreTrainedModel, calibration: Tensor | None = None, **choices: Any) -> SinkhornForCausalLM:
    """
    A converted model, in evaluation mode. It shares its weights with `source`, which may be a converted model, too.

    Args:
        calibration: `(B, L)` tokens of a text, from which `sort_net="index"` learns what it compares.
        choices: fields of `SinkhornConfig`, as `num_sorted_blocks=4`.

    Raises:
        ConversionError: something cannot be carried over, or there is no text to calibrate an index on.
    """
    config = converted_config(source.config, **choices)
    indexed = config.sort_net == "index" and "sinkhorn_attention" in config.layer_types
    if indexed and calibration is None:
        raise ConversionError(
            "`sort_net='index'` is calibrated on a text: give the tokens of one as `calibration`, or use "
            "`sort_net='keys'`, which needs none."
        )
    with torch.device("meta"), no_init_weights():
        model = SinkhornForCausalLM(config)
    # Frequencies are computed, not stored, so they are missing in what is loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    # An index is no weight of the model that was pretrained.
    weights = {name: weight for name, weight in source.state_dict().items() if ".sort_net." not in name}
    if indexed:
        weights |= index_projections(with_full_attention(source), calibration, config)
    loaded = model.load_state_dict(weights, strict=False, assign=True)
    model.config.dtype = source.dtype
    model.tie_weights()
    missing = set(loaded.missing_keys) - (set(model.all_tied_weights_keys) if config.tie_word_embeddings else set())
    if missing or loaded.unexpected_keys:
        names = sorted(missing) or loaded.unexpected_keys
        raise ConversionError(
            f"The weights do not fit the configuration: {'missing' if missing else 'left over'} are {names[:3]} "
            f"({len(names)} in all). The architecture of this checkpoint is not that of `model_type="
            f"'{source.config.model_type}'`."
        )
    if source.generation_config is not None:
        model.generation_config = source.generation_config
    return model.eval()


def with_full_attention(source: PreTrainedModel) -> PreTrainedModel:
    """`source`, or where it is a converted model, its weights with the attention that they were pretrained with."""
    if not is_sinkhorn(source.config):
        return source
    return convert(source, layer_types=["full_attention"] * source.config.num_hidden_layers)
