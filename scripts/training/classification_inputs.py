# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The data flags of `run_classification.py`, and the documents that they name, as tokens."""

from dataclasses import dataclass, field

import numpy as np
from datasets import DatasetDict, load_dataset

from common.errors import UserError
from training.classification_data import Head, Task, hold_out_validation, make_task, text_and_label
from training.file_rows import named
from training.files import read_file
from training.flags import check_limits
from training.model_choice import longest_input
from training.progress import bars_where_long
from training.shipped_data import load_passages


LENGTH_STEP = 64


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
    id_column_name: str | None = field(
        default=None, metadata={"help": "Column of the test file that names its rows in predict_results.tsv."}
    )
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
        if self.dataset_name and (self.validation_file or self.test_file):
            raise UserError("--validation_file and --test_file need a --train_file, not --dataset_name.")
        check_limits(self, "max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples")


def load_task(data_args: DataTrainingArguments, hub_options: dict, head: Head | None = None) -> Task:
    """
    The documents and labels that the flags name, checked. The test part may have no labels. A trained `head` names the
    classes, so that no training part is needed.
    """
    regression = data_args.do_regression if head is None else head.problem_type == "regression"
    if data_args.do_regression and not regression:
        raise UserError("--do_regression: the model predicts classes, no numbers.")
    splits = {}
    for part, data in _read_parts(data_args, hub_options, head is not None).items():
        splits[part] = text_and_label(
            data,
            data_args.text_column_names.split(","),
            data_args.label_column_name,
            data_args.text_column_delimiter,
            f"the {part} data",
            may_lack_label=part == "test",
            regression=regression,
            id_column=data_args.id_column_name if part == "test" else None,
        )
    if "train" in splits and "validation" not in splits:
        splits["train"], splits["validation"] = hold_out_validation(splits["train"], data_args.split_seed, regression)
        print(f"No validation data given: {len(splits['validation'])} training documents are held out for it.")
    return make_task(DatasetDict(splits), regression, head)


def _read_parts(data_args: DataTrainingArguments, hub_options: dict, is_trained: bool) -> dict:
    """The parts as the files, the data set or the shipped task have them."""
    files = {part: getattr(data_args, f"{part}_file") for part in ("train", "validation", "test")}
    if any(files.values()):
        if files["train"] is None and not is_trained:
            raise UserError(
                "--validation_file and --test_file need a --train_file, which names the classes; or a trained "
                "classifier as --model_name_or_path with --do_predict or --do_eval, and without --do_train."
            )
        columns = [*data_args.text_column_names.split(","), data_args.label_column_name]
        if data_args.id_column_name is not None:
            columns.append(data_args.id_column_name)
        return {part: read_file(path, columns) for part, path in files.items() if path}
    if data_args.dataset_name is None:
        return dict(load_passages(data_args.split_by, data_args.split_seed))
    loaded = load_dataset(data_args.dataset_name, data_args.dataset_config_name, **hub_options)
    names = {part: getattr(data_args, f"{part}_split_name") for part in files}
    raw = {part: loaded[name] for part, name in names.items() if name in loaded}
    if "train" not in raw:
        raise UserError(
            f"{data_args.dataset_name} has no split '{data_args.train_split_name}' but {', '.join(loaded)}; name "
            "the right one with --train_split_name."
        )
    return raw


def padding_multiple(config, tokenizer, data_args: DataTrainingArguments, half_precision: bool) -> int | None:
    """
    What the length of a batch is to be a multiple of; `None`: of nothing.

    In half precision a CPU's memory fills with every new length, by gigabytes in an epoch of documents; presumably the
    library keeps what it compiled for each.
    """
    limit = _longest(config, tokenizer, data_args)
    return LENGTH_STEP if half_precision and (limit is None or limit % LENGTH_STEP == 0) else None


def _longest(config, tokenizer, data_args: DataTrainingArguments) -> int | None:
    return min(filter(None, (data_args.max_seq_length, longest_input(config, tokenizer))), default=None)


def encode(splits: DatasetDict, tokenizer, config, data_args: DataTrainingArguments) -> DatasetDict:
    """Tokenises complete documents, and reports any truncation. A truncated document keeps its special tokens."""
    limit = _longest(config, tokenizer, data_args)

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
        lengths = encoded[part]["tokens_uncut"][:]
        places = rows["row"][:] if "row" in rows.column_names else range(len(rows))
        if without := [row for row, length in zip(places, lengths) if length == 0]:
            raise UserError(
                f"the {part} data has documents of which the tokenizer makes no token ({named(without)}); drop "
                "them, or name a tokenizer that begins every document with a token."
            )
        encoded[part] = encoded[part].remove_columns("tokens_uncut")
        print(
            f"{part}: {len(lengths)} documents, {np.median(lengths):.0f} tokens in the middle, {max(lengths)} at most"
        )
        cut = [length - limit for length in lengths if limit is not None and length > limit]
        if cut:
            print(f"  cut to {limit} tokens: {len(cut)} documents lose {sum(cut)} of {sum(lengths)} tokens")
    return encoded
