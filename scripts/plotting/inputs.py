# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The text, the model and the tokenizer that a program looks into, with errors in one line."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

import modeling_sinkhorn  # noqa: F401  registers the Sinkhorn classes with the Auto classes
from common.errors import UserError


class ModelSource(NamedTuple):
    """Where a model comes from. `flag` is named in errors."""

    name: str
    flag: str = "--model_name_or_path"
    revision: str = "main"
    trust_remote_code: bool = False

    @property
    def hub(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def read_text(text: str | None, text_file: str | None) -> str:
    """One of both."""
    if text is None:
        try:
            text = Path(text_file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--text_file: {text_file} is not UTF-8 text (byte {error.start}).") from None
        except FileNotFoundError:
            raise UserError(f"--text_file: there is no file {text_file}.") from None
        except IsADirectoryError:
            raise UserError(f"--text_file: there is no file {text_file}; it is a folder.") from None
        except OSError as error:
            raise UserError(f"--text_file: {text_file} cannot be read: {error.strerror or error}.") from None
    if not text.strip():
        raise UserError("--text or --text_file: the text is empty; give one with words in it.")
    return text


def load_sinkhorn_config(source: ModelSource) -> Any:
    try:
        config = AutoConfig.from_pretrained(source.name, **source.hub)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source.flag}: {source.name} cannot be loaded: {' '.join(str(error).split())}") from None
    if config.model_type != "sinkhorn":
        raise UserError(
            f"{source.flag}: {source.name} is a {config.model_type} model, which sorts nothing; name a Sinkhorn model."
        )
    return config


def load_sinkhorn_model(source: ModelSource, implementation: str, auto_class: Any = AutoModel) -> PreTrainedModel:
    """In float32 and evaluation mode; by default its body alone."""
    load_sinkhorn_config(source)
    try:
        model = auto_class.from_pretrained(
            source.name, attn_implementation=implementation, dtype=torch.float32, **source.hub
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source.flag}: {source.name} cannot be loaded: {' '.join(str(error).split())}") from None
    return model.eval()


def sorting_layers(model: PreTrainedModel, source: ModelSource) -> list[int]:
    """Numbers of the layers that sort, at least one."""
    found = [number for number, layer in enumerate(model.base_model.layers) if layer.self_attn.sorts]
    if not found:
        raise UserError(
            f"{source.flag}: no layer of {source.name} sorts (its layer_types are "
            f"{sorted(set(model.config.layer_types))}); name a model with sinkhorn, sortcut or mixture attention."
        )
    return found


def load_tokenizer(source: ModelSource, tokenizer_name: str | None) -> Any:
    name = tokenizer_name or source.name
    try:
        return AutoTokenizer.from_pretrained(
            name,
            revision=source.revision if name == source.name else "main",
            trust_remote_code=source.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer in {name} ({' '.join(str(error).split())[:200]}); name one with --tokenizer_name."
        ) from None


def check_tokens(token_ids: list[int], config: Any) -> None:
    if not token_ids:
        raise UserError("--text or --text_file: the text has no tokens; give one with words in it.")
    if max(token_ids) >= config.vocab_size:
        raise UserError(
            f"--tokenizer_name: this tokenizer has more entries than the model's vocabulary of {config.vocab_size}; "
            "name the one that the model was trained with."
        )


def cut_tokens(num_tokens: int, config: Any, max_seq_length: int) -> int:
    """How many of the tokens the flag and the model allow. Prints what is left out."""
    limit = max_seq_length
    if config.sort_net in ("linear", "mlp"):
        limit = min(limit, config.max_num_blocks * config.block_size)
    if num_tokens > limit:
        print(f"Reading the first {limit:,} of {num_tokens:,} tokens (--max_seq_length {max_seq_length}).")
    return min(num_tokens, limit)


def select_numbers(wanted: list[int] | None, available: list[int], flag: str, what: str) -> list[int]:
    if wanted is None:
        return available
    if unknown := sorted(set(wanted) - set(available)):
        raise UserError(f"--{flag} {' '.join(map(str, unknown))}: {what} {', '.join(map(str, available))}.")
    return sorted(set(wanted))
