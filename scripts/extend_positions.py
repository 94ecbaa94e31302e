# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Gives an encoder with a table of learned positions (BERT, RoBERTa, DistilBERT, ELECTRA and models of their types) a longer
one, so that it takes longer inputs: the old table, repeated, as the authors of Longformer did. Inputs that fitted before
give the same numbers. What is longer works after fine-tuning.

    python scripts/extend_positions.py --model_name_or_path M --max_position_embeddings 4096 --output_dir D
    python scripts/run_classification.py --output_dir runs/mine --model_name_or_path D --attn_implementation sinkhorn \\
        --train_file train.csv --text_column_names text --label_column_name label

Models with rotary positions (ModernBERT, Llama ...) have no table and need none of this.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, HfArgumentParser, PreTrainedConfig, PreTrainedModel

from common.errors import UserError
from training.model_choice import check_folders, opened_by_name


# The types with such a table, and whether its first rows, up to that of the padding token, belong to no place.
TYPES = {
    "bert": False,
    "electra": False,
    "distilbert": False,
    "roberta": True,
    "camembert": True,
    "xlm-roberta": True,
}


@dataclass
class ExtensionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub model to extend."})
    max_position_embeddings: int = field(
        metadata={"help": "Tokens of the longest input. In the configuration of a RoBERTa it is a few more."}
    )
    output_dir: str = field(metadata={"help": "Folder to write."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    token: str | None = field(default=None, metadata={"help": "Hub token; the stored one by default."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})


def first_place(config: PreTrainedConfig) -> int:
    """The row of the table that the first token of a text takes."""
    return config.pad_token_id + 1 if TYPES[config.model_type] else 0


def check_extension(config: PreTrainedConfig, num_tokens: int) -> None:
    """
    Raises:
        UserError: the model has no such table, or none that would become longer.
    """
    if config.model_type not in TYPES:
        raise UserError(
            f"{config.model_type} models have no table of learned positions that this program knows; it knows those of "
            f"{', '.join(TYPES)}. Models with rotary positions take longer inputs as they are."
        )
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise UserError(f"the model has positions of the kind '{kind}', not one for each place.")
    now = config.max_position_embeddings - first_place(config)
    if num_tokens <= now:
        raise UserError(
            f"--max_position_embeddings {num_tokens}: the model takes {now} tokens already; a longer table is made only."
        )


def extended(table: Tensor, first: int, num_rows: int) -> Tensor:
    """`(rows, E)` to `(num_rows, E)`: the rows from `first` on are repeated, the last time in part."""
    places = table[first:]
    index = torch.arange(num_rows - first, device=table.device) % len(places)
    return torch.cat((table[:first], places[index]))


def extend(model: PreTrainedModel, num_tokens: int) -> None:
    """Changes the model and its configuration."""
    first, embeddings = first_place(model.config), model.base_model.embeddings
    old = embeddings.position_embeddings
    weight = extended(old.weight.detach(), first, num_tokens + first)
    new = nn.Embedding(*weight.shape, padding_idx=old.padding_idx, device=weight.device, dtype=weight.dtype)
    new.load_state_dict({"weight": weight})
    embeddings.position_embeddings = new
    model.config.max_position_embeddings = len(weight)


def main() -> None:
    (args,) = HfArgumentParser(ExtensionArguments).parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite_output_dir:
        raise UserError(f"--output_dir {folder} is not empty: name another, or add --overwrite_output_dir.")
    check_folders(args)
    hub = {"revision": args.model_revision, "cache_dir": args.cache_dir, "token": args.token}
    with opened_by_name(args.model_name_or_path):
        config = AutoConfig.from_pretrained(args.model_name_or_path, **hub)
    check_extension(config, args.max_position_embeddings)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, **hub)
    # With the head that it has, so that no weight is lost.
    named = getattr(transformers, (config.architectures or ["AutoModel"])[0], AutoModel)
    model = named.from_pretrained(args.model_name_or_path, dtype="auto", **hub)
    before = config.max_position_embeddings - first_place(config)
    extend(model, args.max_position_embeddings)
    tokenizer.model_max_length = args.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(
        f"{folder}: takes {args.max_position_embeddings:,} tokens, {before:,} before. Fine-tune it on long texts, with "
        "attn_implementation='sinkhorn' (import interface_sinkhorn)."
    )


if __name__ == "__main__":
    main()
