# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The documents and labels that the flags of `run_classification.py` name, as tokens."""

from dataclasses import dataclass, field

import numpy as np
from datasets import DatasetDict, load_dataset

from common.errors import UserError
from training.classification_data import Task, hold_out_validation, make_task, read_file, text_and_label
from training.flags import check_limits
from training.model_choice import (
    longest_input,
)
from training.progress import bars_where_long
from training.shipped_data import load_passages


@dataclass
class DataTrainingArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset for `load_dataset`."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; default: a tenth of training."})
    test_file: str | None = field(default=None, metadata={"help": "The same."})
    train_split_name: str = field(default="train", metadata={"help": "Of --dataset_name."})
    validation_split_name: str = field(default="validation", metadata={"help": "Of --dataset_name."})
    test_split_name: str = field(default="test", metadata={"help": "Of --dataset_name."})
    text_column_names: str = field(default="text", metadata={"help": "Columns joined to the text, by commas."})
    text_column_delimiter: str = field(default=" ", metadata={"help": "Put between joined columns."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the label."})
    do_regression: bool = field(default=False, metadata={"help": "Labels are numbers to predict."})
    split_by: str = field(default="address", metadata={"help": "Shipped task: split by address or president."})
    split_seed: int = field(default=0, metadata={"help": "Shipped task and held-out validation: seed of the split."})
    max_seq_length: int | None = field(default=None, metadata={"help": "Tokens kept per document; default: all."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes for tokenising."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use this many documents, drawn at random."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for test."})
    skip_baselines: bool = field(default=False, metadata={"help": "No TF-IDF comparison."})

    def __post_init__(self) -> None:
        if self.split_by not in ("address", "president"):
            raise UserError(f"--split_by must be address or president, got {self.split_by}.")
        if self.dataset_name and self.train_file:
            raise UserError("give --dataset_name or --train_file, not both.")
        if (self.validation_file or self.test_file) and not self.train_file:
            raise UserError("--validation_file and --test_file need a --train_file, which names the classes.")
        check_limits(self, "max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples")


def load_task(data_args: DataTrainingArguments, hub_options: dict) -> Task:
    """The documents and labels that the flags name, checked. The test part may have no labels."""
    if data_args.dataset_name is None and data_args.train_file is None:
        return make_task(load_passages(data_args.split_by, data_args.split_seed), data_args.do_regression)
    raw = {}
    if data_args.dataset_name is not None:
        loaded = load_dataset(data_args.dataset_name, data_args.dataset_config_name, **hub_options)
        for part in ("train", "validation", "test"):
            if getattr(data_args, f"{part}_split_name") in loaded:
                raw[part] = loaded[getattr(data_args, f"{part}_split_name")]
        if "train" not in raw:
            raise UserError(
                f"{data_args.dataset_name} has no split '{data_args.train_split_name}' but {', '.join(loaded)}; name "
                "the right one with --train_split_name."
            )
    else:
        for part in ("train", "validation", "test"):
            if getattr(data_args, f"{part}_file"):
                raw[part] = read_file(getattr(data_args, f"{part}_file"))
    columns = data_args.text_column_names.split(",")
    splits = {
        part: text_and_label(
            data,
            columns,
            data_args.label_column_name,
            data_args.text_column_delimiter,
            f"the {part} data",
            may_lack_label=part == "test",
        )
        for part, data in raw.items()
    }
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out_validation(
            splits["train"], data_args.split_seed, data_args.do_regression
        )
        print(f"No validation data given: {len(splits['validation'])} training documents are held out for it.")
    return make_task(DatasetDict(splits), data_args.do_regression)


def encode(splits: DatasetDict, tokenizer, config, data_args: DataTrainingArguments) -> DatasetDict:
    """Tokenises whole documents, and says so where anything is cut. A cut document keeps its special tokens."""
    limit = min(filter(None, (data_args.max_seq_length, longest_input(config, tokenizer))), default=None)

    def tokenise(rows: dict) -> dict:
        whole = tokenizer(rows["text"], verbose=False)
        kept = whole if limit is None else tokenizer(rows["text"], truncation=True, max_length=limit, verbose=False)
        return {**kept, "tokens_uncut": [len(ids) for ids in whole["input_ids"]]}

    encoded = DatasetDict()
    for part, rows in splits.items():
        with bars_where_long(len(rows)):
            encoded[part] = rows.map(
                tokenise,
                batched=True,
                num_proc=data_args.preprocessing_num_workers,
                remove_columns=[name for name in rows.column_names if name != "label"],
                desc="Tokenising",
            )
        if "label" in rows.column_names:
            encoded[part] = encoded[part].rename_column("label", "labels")
        lengths = list(encoded[part]["tokens_uncut"])
        encoded[part] = encoded[part].remove_columns("tokens_uncut")
        print(
            f"{part}: {len(lengths)} documents, {np.median(lengths):.0f} tokens in the middle, {max(lengths)} at most"
        )
        cut = [length - limit for length in lengths if limit is not None and length > limit]
        if cut:
            print(f"  cut to {limit} tokens: {len(cut)} documents lose {sum(cut)} of {sum(lengths)} tokens")
    return encoded
