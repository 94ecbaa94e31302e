# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Which model and tokenizer a script works with: a named one, or a small one from scratch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bpe import train_tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from user_errors import UserError

import modeling_sinkhorn  # noqa: F401  registers the Sinkhorn classes with the Auto classes


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Fine-tune this folder or Hub model."})
    model_type: str = field(default="sinkhorn", metadata={"help": "Kind of model to start from scratch."})
    config_name: str | None = field(default=None, metadata={"help": "Config to start from, if not the model's."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields to change, such as block_size=32,sort_assignment=hard."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's."})
    train_tokenizer_vocab_size: int = field(
        default=8000,
        metadata={"help": "Entries of the byte-level BPE trained on the training texts if none is named."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Hub token; the stored one by default."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Type to hold the weights in: float32, bfloat16, float16, or auto for that of the file. Training "
            "needs float32; --bf16 computes in half precision all the same."
        },
    )
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Renew a head of another size."})

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16", "auto"):
            raise UserError(f"--dtype must be float32, bfloat16, float16 or auto, got {self.dtype}.")


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def load_tokenizer(model_args: ModelArguments, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that the flags name, or a BPE trained on the training texts alone."""
    name = model_args.tokenizer_name or model_args.model_name_or_path
    if name is not None:
        return AutoTokenizer.from_pretrained(name, **hub_options(model_args))
    print(f"Training a byte-level BPE tokenizer of {model_args.train_tokenizer_vocab_size} entries ...")
    return train_tokenizer(texts, model_args.train_tokenizer_vocab_size)


def load_config(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, small_model: dict[str, Any], **settings: Any
) -> PreTrainedConfig:
    """
    The configuration that the flags name, or `small_model` (for a Sinkhorn model) with the tokenizer's vocabulary; with
    `settings`, and then the user's overrides.

    Raises:
        UserError: the configuration is refused; in the configuration's own words.
    """
    try:
        overrides = parse_overrides(model_args.config_overrides, small_model)
        name = model_args.config_name or model_args.model_name_or_path
        if name is not None:
            return AutoConfig.from_pretrained(name, **hub_options(model_args), **(settings | overrides))
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        small = small_model if model_args.model_type == "sinkhorn" else {}
        settings = small | settings | {"vocab_size": len(tokenizer)} | ids | overrides
        return AutoConfig.for_model(model_args.model_type, **settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the model's configuration is refused: {' '.join(str(error).split())}") from None


def load_weights(model_args: ModelArguments, auto_class: type, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of that Auto class with the weights that the flags name, or new ones."""
    if model_args.model_name_or_path is None:
        return auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code)
    return auto_class.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        dtype=model_args.dtype,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **hub_options(model_args),
    )


def parse_overrides(text: str | None, small_model: dict[str, Any]) -> dict[str, Any]:
    """`a=1,b=hard` to a dict. One layer type stands for all layers; several are joined by `+`."""
    overrides = {}
    for item in filter(None, (text or "").split(",")):
        name, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"--config_overrides: '{item}' is not name=value.")
        try:
            overrides[name.strip()] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except json.JSONDecodeError:
            overrides[name.strip()] = value
    if isinstance(overrides.get("layer_types"), str):
        types = overrides["layer_types"].split("+")
        layers = overrides.get("num_hidden_layers", small_model["num_hidden_layers"])
        overrides["layer_types"] = types * layers if len(types) == 1 else types
    return overrides
