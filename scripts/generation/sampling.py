# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The model that writes, and how it picks its tokens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import modeling_sinkhorn  # noqa: F401  registers the Sinkhorn classes with the Auto classes
from block_attention_sinkhorn import computes_in_bfloat16
from common.errors import UserError
from training.model_choice import check_folders, opened_by_name


@dataclass
class WriterArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub model."})
    max_new_tokens: int = field(default=200, metadata={"help": "Tokens to write at most."})
    do_sample: bool = field(default=True, metadata={"help": "Sample tokens; otherwise the likeliest."})
    temperature: float | None = field(
        default=None, metadata={"help": "Of the sampling, lower is safer; default: the model's, else 0.8."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Sample from this many likeliest tokens; default: the model's, else 50."}
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "Sample from the likeliest tokens of this probability; default: the model's, else 0.95."},
    )
    repetition_penalty: float | None = field(
        default=None, metadata={"help": "Above 1: avoid repetition; default: the model's, else 1."}
    )
    prefill_chunk_size: int | None = field(
        default=4096, metadata={"help": "Tokens of the prompt read at once, to bound memory."}
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "float32, bfloat16, float16, or auto, that of the files; default: auto on a GPU; on a CPU bfloat16 "
            "for files in it where the processor computes in it, else float32: others take many times as long for half "
            "precision."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the sampling."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if self.dtype not in (None, "float32", "bfloat16", "float16", "auto"):
            raise UserError(f"--dtype must be float32, bfloat16, float16 or auto, got {self.dtype}.")


def settings(args: WriterArguments, model: PreTrainedModel) -> dict[str, float]:
    """The given flags, and our defaults for what neither they nor the model's generation config set."""
    ours = {"repetition_penalty": 1.0}
    if args.do_sample:
        ours |= {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
    given = {name: getattr(args, name) for name in ours if getattr(args, name) is not None}
    return {name: value for name, value in ours.items() if getattr(model.generation_config, name) is None} | given


def options(args: WriterArguments, model: PreTrainedModel) -> dict[str, Any]:
    """For `generate()`."""
    return {"max_new_tokens": args.max_new_tokens, "do_sample": args.do_sample} | settings(args, model)


def open_writer(args: WriterArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    The model, on a GPU where there is one, and its tokenizer.

    Raises:
        UserError: there is none of that name, or it reads in both directions.
    """
    check_folders(args)
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    with opened_by_name(args.model_name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, **hub)
        config = AutoConfig.from_pretrained(args.model_name_or_path, **hub)
    if config.model_type == "sinkhorn" and not config.is_decoder:
        raise UserError(
            f"--model_name_or_path: {args.model_name_or_path} reads in both directions and cannot write; name a "
            "causal model, as run_clm.py makes them."
        )
    has_gpu = torch.cuda.is_available()
    dtype = args.dtype or ("auto" if has_gpu else fastest_on_cpu(config.dtype))
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=dtype, **hub).eval()
    return model.to("cuda" if has_gpu else "cpu"), tokenizer


def fastest_on_cpu(of_files: torch.dtype | None) -> torch.dtype:
    """In which to compute on this processor, with weights of that type in the files."""
    return torch.bfloat16 if of_files == torch.bfloat16 and computes_in_bfloat16() else torch.float32


def read_text(path: str) -> str:
    """
    Raises:
        UserError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # editors on Windows begin with a mark
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
