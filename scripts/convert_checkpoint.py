# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Converts a pretrained Llama, Mistral, Qwen2 or Qwen3 model to sparse attention where each token chooses the blocks that it
reads: the same weights, without training. The folder that it writes is complete, with code, tokenizer and card.

    python scripts/convert_checkpoint.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --output_dir runs/smollm2
    python scripts/convert_checkpoint.py --model_name_or_path M --output_dir D --config_overrides num_sorted_blocks=16
    python scripts/convert_checkpoint.py --model_name_or_path M --output_dir D --config_overrides layer_types=full_attention
    python scripts/convert_checkpoint.py --model_name_or_path M --output_dir D --calibration_file texts.parquet
    python scripts/convert_checkpoint.py --model_name_or_path runs/trained --output_dir D  # a converted model, trained on

With layers of full attention the new model must equal the old one; this is checked before anything is written. In the end
a table compares both, and a window of as many keys, on texts held out.

A converted model that was trained on keeps its weights and settings, and gets an index that is fitted to them anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
)

from common.errors import UserError
from conversion.calibration import calibration_tokens
from conversion.card import base_card, base_model_of, card
from conversion.equality import check_equality
from conversion_sinkhorn import ConversionError, convert, converted_config, is_sinkhorn
from evaluation.comparison import SHORTEST, compare
from training.model_choice import check_folders, opened_by_name, parse_overrides


@dataclass
class ConversionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub model to convert."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    config_overrides: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fields to choose, such as num_sorted_blocks=16 sort_net=keys; layer_types=full_attention stands for "
            "all layers."
        },
    )
    calibration_file: str | None = field(
        default=None,
        metadata={"help": "Text for the index: txt, csv, tsv, json, jsonl or parquet; default: texts that ship."},
    )
    text_column_name: str = field(default="text", metadata={"help": "Its column."})
    calibration_rows: int = field(default=6, metadata={"help": "Pieces of text that the index is calibrated on."})
    calibration_length: int = field(
        default=8192,
        metadata={
            "help": "Tokens of each, up to what the model was made for: an index that is used on longer texts finds less."
        },
    )
    evaluation_length: int = field(
        default=2048,
        metadata={
            "help": "Tokens of the held-out texts on which the new model is compared with the old one in the end; 0: no "
            "comparison."
        },
    )
    base_model: str | None = field(
        default=None, metadata={"help": "The model's id on the Hub, for the card, where a folder is converted."}
    )
    license: str | None = field(default=None, metadata={"help": "For the card; default: that of the model's card."})
    gguf_file: str | None = field(default=None, metadata={"help": "A GGUF file in the folder, to be dequantized."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights; default: that of the files."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    token: str | None = field(default=None, metadata={"help": "Hub token; the stored one by default."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16", "auto"):
            raise UserError(f"--dtype must be float32, bfloat16, float16 or auto, got {self.dtype}.")
        for name in ("calibration_rows", "calibration_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if 0 != self.evaluation_length < SHORTEST:
            raise UserError(f"--evaluation_length must be at least {SHORTEST}, or 0, got {self.evaluation_length}.")


def load_to_compute(args: ConversionArguments, config: PreTrainedConfig, hub: dict[str, Any]) -> PreTrainedModel:
    """The model in float32: a processor without arithmetic in half precision takes hours there, and nothing is lost."""
    stored = config.dtype if args.dtype == "auto" else args.dtype
    dtype = "auto" if stored is None else torch.float32
    return AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=dtype, **hub).eval()


def dtype_to_store(args: ConversionArguments, config: PreTrainedConfig, source: PreTrainedModel) -> torch.dtype:
    if args.dtype != "auto":
        return getattr(torch, args.dtype)
    return config.dtype or source.dtype


def main() -> None:
    (args,) = HfArgumentParser(ConversionArguments).parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite_output_dir:
        raise UserError(f"--output_dir {folder} is not empty: name another, or add --overwrite_output_dir.")
    check_folders(args)
    hub = {"revision": args.model_revision, "cache_dir": args.cache_dir, "token": args.token}
    if args.gguf_file is not None:
        hub["gguf_file"] = args.gguf_file
    with opened_by_name(args.model_name_or_path):
        config = AutoConfig.from_pretrained(args.model_name_or_path, **hub)
    overrides = parse_overrides(",".join(args.config_overrides or ()), getattr(config, "num_hidden_layers", 1))
    try:
        wanted = converted_config(config, **overrides)  # before the weights are fetched
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, **hub)
        source = load_to_compute(args, config, hub)
        tokens = None
        if wanted.sort_net == "index" and "sinkhorn_attention" in wanted.layer_types:
            length = min(args.calibration_length, wanted.max_position_embeddings)
            tokens = calibration_tokens(
                tokenizer, args.calibration_file, args.text_column_name, args.calibration_rows, length
            )
            print(f"Calibrating the index on {tokens.numel():,} tokens ...", flush=True)
        model = convert(source, tokens, **overrides)  # it shares the weights of the source
    except (ConversionError, StrictDataclassError) as error:
        raise UserError(f"{args.model_name_or_path} cannot be converted so. {error}") from None
    error = check_equality(source)
    base = base_card(args.model_name_or_path, args.model_revision, args.token)
    base_model = base_model_of(args.model_name_or_path, base, args.base_model)
    text = card(model, folder.name, base_model, base, args.license, again=is_sinkhorn(config))
    model.to(dtype_to_store(args, config, source))
    model.config.dtype = model.dtype
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"With full attention its logits are those of {args.model_name_or_path} to {error:.1g}.")
    if "license:" not in text.split("---")[1]:
        print("Its card has no licence, as none was found for the base model: give one with --license.")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {parameters:,} parameters in {str(model.dtype).removeprefix('torch.')}")
    if args.evaluation_length > 0:
        config = model.config
        del source, model  # they are opened again, one after the other
        print(compare(args.model_name_or_path, hub, folder, config, args.evaluation_length))


if __name__ == "__main__":
    with torch.no_grad():
        main()
