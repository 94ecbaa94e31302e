# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Shows what a model sorts in one text: the sort matrices of each layer and head before and after balancing, also over
the checkpoints of its training; the source-token attention maps; and the passages that were sorted next to each other.

    python scripts/plot_sorting.py --model_name_or_path runs/sotu --output_dir runs/sotu-sorting
    python scripts/plot_sorting.py --model_name_or_path runs/clm --output_dir runs/clm-sorting \\
        --text_file speech.txt --checkpoints runs/clm/checkpoint-523 runs/clm/checkpoint-1046 --layer 0 3 --head 1

Writes `sorting-layerN.png`, `training-layerN.png` (if there are checkpoints), `attention-layerN.png` and
`passages.md`. Any Sinkhorn model works: encoder, causal model or classifier. Only the body of the model is used.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import HfArgumentParser
from transformers.utils import logging

import plotting.inputs
from common.errors import UserError
from plotting.drawing import draw_attention, draw_sorting, save_figure
from plotting.inputs import (
    ModelSource,
    check_tokens,
    cut_tokens,
    load_sinkhorn_model,
    load_tokenizer,
    select_numbers,
    sorting_layers,
)
from plotting.passages import describe_pairs, first_words
from plotting.recording import LayerSorting, mean_over_blocks, record_sorting


@dataclass
class PlotArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub model."})
    output_dir: str = field(metadata={"help": "Where figures and passages.md go; replaces those of an earlier call."})
    text: str | None = field(default=None, metadata={"help": "Text to read."})
    text_file: str | None = field(
        default=None,
        metadata={"help": "UTF-8 file with the text. Default: an address that the scripts' training left out."},
    )
    checkpoints: list[str] | None = field(
        default=None,
        metadata={
            "help": "Checkpoints of the training run, or folders with them. Default: the checkpoint-* in the model's "
            "folder."
        },
    )
    layer: list[int] | None = field(default=None, metadata={"help": "Layers to draw, from 0 on; default: all."})
    head: list[int] | None = field(
        default=None,
        metadata={"help": "Sorting (key/value) heads to draw, with the query heads that share them; default: all."},
    )
    num_tables: int = field(
        default=6,
        metadata={
            "help": "Layers and heads whose passages are named, those that sort most; all are in the first table."
        },
    )
    num_pairs: int = field(default=5, metadata={"help": "Pairs of passages named for each layer and head."})
    max_seq_length: int = field(default=2048, metadata={"help": "Tokens read; a map takes the square of them."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self) -> None:
        if self.text is not None and self.text_file is not None:
            raise UserError("give --text or --text_file, not both.")
        for name, least in (("num_tables", 0), ("num_pairs", 1), ("max_seq_length", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, got {getattr(self, name)}.")


def read_text(args: PlotArguments) -> tuple[str, str]:
    """The text, and what the figures call it."""
    if args.text is not None or args.text_file is not None:
        name = "the text of --text" if args.text_file is None else Path(args.text_file).name
        return plotting.inputs.read_text(args.text, args.text_file), name
    from training.shipped_data import load_address_splits  # needs the packages of `[train]`

    address = load_address_splits(0)["test"][0]
    return address["text"], f"an example, {address['president']}'s address of {address['year']}"


def checkpoint_step(folder: Path) -> int:
    """The training step of a checkpoint, from its name or the Trainer's record."""
    if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
        return int(match[1])
    try:
        return int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"--checkpoints: {folder} has no step; name it checkpoint-STEP, or keep its trainer_state.json."
        ) from None


def find_checkpoints(args: PlotArguments) -> dict[int, Path]:
    """
    Checkpoints by step, lowest first. Those named by the flag must exist; those in the model's folder are optional.
    """
    found: list[Path] = []
    for name in args.checkpoints or ():
        folder = Path(name)
        inside = sorted(folder.glob("checkpoint-*/config.json"))
        if not folder.is_dir():
            raise UserError(f"--checkpoints: there is no folder {name}.")
        if not (folder / "config.json").is_file() and not inside:
            raise UserError(f"--checkpoints: {name} holds no config.json and no checkpoint-* folders.")
        is_checkpoint = folder.name.startswith("checkpoint-") or not inside
        found += [folder] if is_checkpoint else [file.parent for file in inside]
    if args.checkpoints is None:
        found = [file.parent for file in Path(args.model_name_or_path).glob("checkpoint-*/config.json")]
    return dict(sorted((checkpoint_step(folder), folder) for folder in found))


def tokenize(text: str, tokenizer: Any, config: Any, max_seq_length: int) -> Tensor:
    """The first tokens of the text, `(1, L)`, as many as the model and the flag allow. Prints what is left out."""
    input_ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    check_tokens(input_ids[0].tolist(), config)
    return input_ids[:, : cut_tokens(input_ids.shape[1], config, max_seq_length)]


def main() -> None:
    (args,) = HfArgumentParser(PlotArguments).parse_args_into_dataclasses()
    logging.set_verbosity_error()  # no reports of heads that are not loaded
    logging.disable_progress_bar()
    (text, text_name), checkpoints = read_text(args), find_checkpoints(args)
    if args.text is None and args.text_file is None:
        print(f"The text is {text_name}; --text_file names yours.")
    source = ModelSource(
        args.model_name_or_path, revision=args.model_revision, trust_remote_code=args.trust_remote_code
    )
    model = load_sinkhorn_model(source, "eager")
    config = model.config
    sorting_layers(model, source)
    numbers = select_numbers(args.layer, list(range(config.num_hidden_layers)), "layer", "the model has the layers")
    heads = select_numbers(
        args.head, list(range(config.num_key_value_heads)), "head", "the model has the sorting heads"
    )
    tokenizer = load_tokenizer(source, args.tokenizer_name)
    input_ids = tokenize(text, tokenizer, config, args.max_seq_length)

    def by_block(number: int, sorting: LayerSorting) -> LayerSorting:
        return mean_over_blocks(sorting, config.block_size)

    layers, maps = record_sorting(model, input_ids, maps=True, keep=by_block)
    states: dict[str, dict[int, LayerSorting]] = {}
    for step, folder in checkpoints.items():
        earlier = load_sinkhorn_model(
            source._replace(name=str(folder), flag="--checkpoints"), config._attn_implementation
        )
        for setting in ("layer_types", "num_key_value_heads", "block_size", "is_decoder", "sort_granularity"):
            if getattr(earlier.config, setting) != getattr(config, setting):
                raise UserError(f"--checkpoints: {folder} is of another model; its {setting} is not the model's.")
        states[f"step {step}"] = record_sorting(earlier, input_ids, keep=by_block)[0]
    states["model"] = layers

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    groups = config.num_attention_heads // config.num_key_value_heads
    query_heads = [head * groups + member for head in heads for member in range(groups)]
    written = []
    for number in numbers:
        title = f"layer {number}, {config.layer_types[number]}; text: {text_name}"
        if number in layers:
            figure = draw_sorting({"model": layers[number]}, heads, title)
            written.append(save_figure(figure, output / f"sorting-layer{number}.png"))
            if checkpoints:
                over_time = {state: found[number] for state, found in states.items()}
                written.append(
                    save_figure(draw_sorting(over_time, heads, title), output / f"training-layer{number}.png")
                )
        figure = draw_attention(maps[number], query_heads, config.block_size, f"source-token attention map, {title}")
        written.append(save_figure(figure, output / f"attention-layer{number}.png"))
    shown = {number: sorting for number, sorting in layers.items() if number in numbers}
    passages = first_words(tokenizer, input_ids, config.block_size)
    named = describe_pairs(shown, heads, config, passages, args.num_tables, args.num_pairs)
    head = (
        f"# Passages sorted beside each other\n\nText: {text_name}. {input_ids.shape[1]:,} tokens in {len(passages)} "
        "blocks of "
    )
    (output / "passages.md").write_text(f"{head}{config.block_size}.\n\n{named}", encoding="utf-8")
    print(named)
    print(f"In {output}: {', '.join([*written, 'passages.md'])}")


if __name__ == "__main__":
    main()
