# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The model and tokenizer of a script: named ones, or small ones from scratch."""

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import interface_sinkhorn
import modeling_sinkhorn  # noqa: F401  registers the Sinkhorn classes with the Auto classes
from common.errors import UserError
from training.tokenizer import train_tokenizer


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Fine-tune this folder or Hub model."})
    model_type: str = field(default="sinkhorn", metadata={"help": "Kind of model to start from scratch."})
    config_name: str | None = field(default=None, metadata={"help": "Config to start from, if not the model's."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields to change, such as block_size=32,sort_assignment=hard."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sinkhorn: sparse attention in a model of another type; or sdpa, eager ...; default: its own."
        },
    )
    sinkhorn_attention: str | None = field(
        default=None, metadata={"help": "Settings of that, such as block_size=32,num_sorted_blocks=8."}
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
            "help": "Type of the weights: float32, bfloat16, float16, or auto for that of the file. Training needs "
            "float32; --bf16 still computes in half precision."
        },
    )
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Make a new head if the sizes differ."})

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16", "auto"):
            raise UserError(f"--dtype must be float32, bfloat16, float16 or auto, got {self.dtype}.")
        if self.sinkhorn_attention is not None and self.attn_implementation != interface_sinkhorn.NAME:
            raise UserError("--sinkhorn_attention are settings of --attn_implementation sinkhorn: give that too.")


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def dataset_options(model_args: ModelArguments) -> dict[str, Any]:
    """The `hub_options` that `load_dataset` accepts."""
    return {"cache_dir": model_args.cache_dir, "token": model_args.token}


def load_tokenizer(
    model_args: ModelArguments, texts: Iterable[str], checkpoint: str | None = None
) -> PreTrainedTokenizerBase:
    """
    The tokenizer that the flags name, or a BPE trained on the training texts only. A resumed run uses the tokenizer of
    its `checkpoint`.

    Raises:
        UserError: a folder named by the flags is missing.
    """
    check_folders(model_args)
    name = model_args.tokenizer_name or model_args.model_name_or_path
    if name is not None:
        return AutoTokenizer.from_pretrained(name, **hub_options(model_args))
    if checkpoint is not None and (Path(checkpoint) / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(checkpoint)
    print(f"Training a byte-level BPE tokenizer of {model_args.train_tokenizer_vocab_size} entries ...")
    return train_tokenizer(texts, model_args.train_tokenizer_vocab_size, show_progress=False)


def load_config(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, small_model: dict[str, Any], **settings: Any
) -> PreTrainedConfig:
    """
    The configuration that the flags name, or `small_model` (for a Sinkhorn model) with the tokenizer's vocabulary.
    `settings` and then the user's overrides are applied to it.

    Raises:
        UserError: the configuration lacks an overridden field, the data decides it, or the configuration is invalid
            (with its own message).
    """
    try:
        name = model_args.config_name or model_args.model_name_or_path
        if name is not None:
            named = AutoConfig.from_pretrained(name, **hub_options(model_args))
            overrides = parse_overrides(model_args.config_overrides, getattr(named, "num_hidden_layers", 1))
            check_overrides(overrides, named, settings)
            config = AutoConfig.from_pretrained(name, **hub_options(model_args), **(settings | overrides))
            choose_attention(model_args, config)
            return config
        overrides = parse_overrides(model_args.config_overrides, small_model["num_hidden_layers"])
        check_overrides(overrides, AutoConfig.for_model(model_args.model_type), settings)
        if overrides.get("vocab_size", len(tokenizer)) < len(tokenizer):
            raise UserError(
                f"--config_overrides: vocab_size must be {len(tokenizer)} or more, the size of the tokenizer."
            )
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        small = small_model if model_args.model_type == "sinkhorn" else {}
        settings = small | settings | {"vocab_size": len(tokenizer)} | ids | overrides
        config = AutoConfig.for_model(model_args.model_type, **settings)
        choose_attention(model_args, config)
        return config
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the model's configuration is invalid: {' '.join(str(error).split())}") from None


def choose_attention(model_args: ModelArguments, config: PreTrainedConfig) -> None:
    """
    Writes the settings of sparse attention into the configuration of a model of another type, all of them, so that the
    saved model says how it was trained. A model that says so is read so.

    Raises:
        UserError: the flags name no attention, or settings, that the model can have.
    """
    field, name = interface_sinkhorn.FIELD, interface_sinkhorn.NAME
    if model_args.attn_implementation is None and getattr(config, field, None):
        model_args.attn_implementation = name
    if model_args.attn_implementation != name:
        return
    if config.model_type == "sinkhorn":
        raise UserError(
            f"--attn_implementation {name} is for models of other types; a Sinkhorn model has it of its own. Name a "
            "pretrained model with --model_name_or_path, or leave the flag out."
        )
    try:
        given = parse_overrides(model_args.sinkhorn_attention, 1, "sinkhorn_attention")
        setattr(config, field, (getattr(config, field, None) or {}) | given)
        setattr(config, field, interface_sinkhorn.attention_settings(config)._asdict())
    except interface_sinkhorn.InterfaceError as error:
        raise UserError(f"--sinkhorn_attention: {error}") from None


def recorded_name(name: str | None) -> str | None:
    """The name of a model for the record of a run: of a folder, the last part, since the rest is of this machine."""
    if not name or not Path(name).expanduser().exists():
        return name
    return Path(name).expanduser().resolve().name


def recorded_config(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration for the record of a run."""
    return config.to_dict() | {"_name_or_path": recorded_name(config.name_or_path)}


@contextmanager
def opened_by_name(name: str) -> Iterator[None]:
    """
    Raises:
        UserError: what is done inside found neither a folder nor a model on the Hub of this name.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model_name_or_path {name}: no folder here, and no model on the Hub, could be opened by this name. "
            f"{str(error).strip().splitlines()[0]}"
        ) from None


def check_folders(model_args: Any) -> None:
    """Refuses a missing local folder before asking the Hub for it. `a/b` may be either."""
    for flag in ("model_name_or_path", "config_name", "tokenizer_name"):
        name = getattr(model_args, flag, None)
        if name is None or Path(name).expanduser().exists():
            continue
        if (
            name.startswith((".", "/", "~", "runs/", "checkpoints/"))
            or name.count("/") > 1
            or ("/" in name and Path(name).parent.is_dir())
        ):
            raise UserError(f"--{flag}: there is no folder {name}.")


def check_overrides(overrides: dict[str, Any], config: PreTrainedConfig, settings: dict[str, Any]) -> None:
    """Refuses fields that `config` does not have, which it would silently keep, and fields of the task."""
    for name in overrides:
        if name in settings or (name in ("num_labels", "id2label", "label2id") and settings):
            raise UserError(f"--config_overrides: {name} follows from the data; leave it out.")
        if not hasattr(config, name):
            close = difflib.get_close_matches(name, config.to_dict(), 1)
            suggestion = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"--config_overrides: {config.model_type} models have no field '{name}'.{suggestion}")


def load_weights(model_args: ModelArguments, auto_class: type, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of that Auto class, with the weights that the flags name or new ones."""
    if model_args.model_name_or_path is None:
        dtype = config.dtype if model_args.dtype == "auto" else model_args.dtype
        return auto_class.from_config(
            config,
            dtype=dtype,
            trust_remote_code=model_args.trust_remote_code,
            attn_implementation=model_args.attn_implementation,
        )
    try:
        return auto_class.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            dtype=model_args.dtype,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            attn_implementation=model_args.attn_implementation,
            **hub_options(model_args),
        )
    except (RuntimeError, ValueError) as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            f"--model_name_or_path {model_args.model_name_or_path} has weights of other sizes than its configuration, "
            f"for example a head for other classes. --ignore_mismatched_sizes makes a new head. {error}"
        ) from None


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest input in tokens; `None` if there is no limit."""
    if config.model_type == "sinkhorn":
        return config.max_num_blocks * config.block_size if config.sort_net in ("linear", "mlp") else None
    # RoBERTa uses 512 of its 514 positions; its tokenizer knows. A tokenizer without a limit gives a huge number.
    positions = getattr(config, "max_position_embeddings", None)
    return tokenizer.model_max_length if positions is None else min(positions, tokenizer.model_max_length)


def parse_overrides(text: str | None, num_hidden_layers: int, flag: str = "config_overrides") -> dict[str, Any]:
    """
    From `a=1,b=hard` to a dict. One layer type stands for all layers (`num_hidden_layers` unless overridden); several
    are joined by `+`.
    """
    overrides = {}
    for item in filter(None, (text or "").split(",")):
        name, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"--{flag}: '{item}' is not name=value.")
        try:
            overrides[name.strip()] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except json.JSONDecodeError:
            overrides[name.strip()] = value
    if isinstance(overrides.get("layer_types"), str):
        types = overrides["layer_types"].split("+")
        layers = overrides.get("num_hidden_layers", num_hidden_layers)
        overrides["layer_types"] = types * layers if len(types) == 1 else types
    return overrides
