# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Documents for language modelling from files, a dataset or the shipped addresses, as chunks of tokens."""

import re
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import pyarrow
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from training.file_rows import named, to_dataset
from training.files import read_file
from training.flags import check_limits
from training.progress import bars_where_long
from training.shipped_data import load_address_splits
from training.texts import check_columns, empty_rows, join_texts


@dataclass
class LanguageModelingDataArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset for `load_dataset`."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "txt (one document), or csv, tsv, json, jsonl or parquet (a document a row)."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same."})
    test_file: str | None = field(default=None, metadata={"help": "The same."})
    extra_train_file: str | None = field(
        default=None, metadata={"help": "Documents added to the training part of the data above; the same kinds."}
    )
    text_column_name: str = field(default="text", metadata={"help": "Column of the text, one document a row."})
    validation_split_percentage: int = field(
        default=5, metadata={"help": "Documents held out of training where there is no validation data."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split, for the shipped addresses too."})
    hold_out: str = field(
        default="random",
        metadata={
            "help": "Shipped addresses held out for the test: random ones, or with `classification` those that "
            "run_classification.py tests on."
        },
    )
    keep_documents: bool = field(
        default=False, metadata={"help": "One complete document per row, instead of chunks of joined documents."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes for tokenising."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first chunks (or documents) only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation and test."})

    def __post_init__(self) -> None:
        if self.dataset_name and self.train_file:
            raise UserError("give --dataset_name or --train_file, not both.")
        if (self.validation_file or self.test_file) and not self.train_file:
            raise UserError("--validation_file and --test_file need a --train_file.")
        if self.hold_out not in ("random", "classification"):
            raise UserError(f"--hold_out must be random or classification, got {self.hold_out}.")
        check_limits(self, "max_train_samples", "max_eval_samples")
        if not 0 < self.validation_split_percentage < 100:
            raise UserError(
                f"--validation_split_percentage must be between 1 and 99, got {self.validation_split_percentage}."
            )


def load_documents(args: LanguageModelingDataArguments, hub_options: dict | None = None) -> DatasetDict:
    """
    `train`, `validation` and perhaps `test`, with the column `text`, one document a row. `hub_options` go to
    `load_dataset`.

    Raises:
        UserError: a file is missing, empty or not UTF-8, or lacks the column; names it and the flag.
    """
    if args.train_file:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        splits = {part: read_file(path, [args.text_column_name]) for part, path in files.items() if path}
    elif args.dataset_name:
        splits = dict(load_dataset(args.dataset_name, args.dataset_config_name, **(hub_options or {})))
    else:
        splits = dict(load_address_splits(args.split_seed, args.hold_out))
    splits = {part: splits[part] for part in ("train", "validation", "test") if part in splits}
    if "train" not in splits:
        raise UserError(f"{args.dataset_name} has no split 'train'.")
    if args.extra_train_file:
        splits["extra training"] = read_file(args.extra_train_file, [args.text_column_name])
    for part, data in splits.items():
        check_columns(data, {args.text_column_name: "--text_column_name"}, f"the {part} data")
        texts = join_texts(data, [args.text_column_name], " ", f"the {part} data")
        empty = empty_rows(texts)
        if len(empty) == len(texts):
            raise UserError(f"the {part} data has no text in column '{args.text_column_name}'.")
        if empty:
            print(f"the {part} data: {len(empty)} of {len(texts)} texts are empty and left out ({named(empty)}).")
            texts = texts.filter(pyarrow.array(~np.isin(np.arange(len(texts)), empty)))
        splits[part] = to_dataset({"text": texts})
    extra = splits.pop("extra training", None)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(splits["train"], args)
    if extra is not None:  # after validation data is held out: that is the data that the model is for
        splits["train"] = concatenate_datasets([splits["train"], extra])
    return DatasetDict(splits)


def _hold_out(train: Dataset, args: LanguageModelingDataArguments) -> tuple[Dataset, Dataset]:
    if len(train) < 2:
        return _hold_out_tail(train[0]["text"], args.validation_split_percentage)
    size = max(1, round(len(train) * args.validation_split_percentage / 100))
    print(f"No validation data given: {size} of {len(train)} training documents are held out for it.")
    parts = train.train_test_split(size, seed=args.split_seed)
    return parts["train"], parts["test"]


def _hold_out_tail(text: str, percentage: int) -> tuple[Dataset, Dataset]:
    """The last words of the only document, as a validation document."""
    words = sum(1 for _ in re.finditer(r"\S+", text))
    if words < 2:
        raise UserError("the training data is one document of one word; give --validation_file as well, or more text.")
    size = min(words - 1, max(1, round(words * percentage / 100)))
    place = next(islice(re.finditer(r"\S+", text), words - size, None)).start()
    print(f"No validation data given: the last {size} of {words} words of the one document are held out for it.")
    return Dataset.from_dict({"text": [text[:place].rstrip()]}), Dataset.from_dict({"text": [text[place:]]})


def to_chunks(
    documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, chunk_length: int, args: LanguageModelingDataArguments
) -> tuple[DatasetDict, dict[str, float]]:
    """
    Tokenises documents, each with an end-of-text token, joins them and cuts them to chunks of `chunk_length` tokens;
    or keeps them complete. Prints the number of tokens dropped at the end.

    Returns:
        Splits with the column `input_ids`, and the tokens per byte of text of each split.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenise(rows: dict) -> dict:
        ids = tokenizer(rows["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [tokens + end for tokens in ids], "bytes": [len(text.encode()) for text in rows["text"]]}

    def join(rows: dict) -> dict:
        tokens = list(chain.from_iterable(rows["input_ids"]))
        starts = range(0, len(tokens) - chunk_length + 1, chunk_length)
        return {"input_ids": [tokens[start : start + chunk_length] for start in starts]}

    workers = args.preprocessing_num_workers
    with bars_where_long(sum(len(rows) for rows in documents.values())):
        tokens = documents.map(tokenise, batched=True, num_proc=workers, remove_columns=["text"], desc="Tokenising")
    chunks, rates = {}, {}
    for part, rows in tokens.items():
        lengths = [len(ids) for ids in rows["input_ids"]]
        rates[part] = sum(lengths) / sum(rows["bytes"][:])
        rows = rows.remove_columns("bytes")
        summary = f"{part}: {len(rows)} documents, {sum(lengths)} tokens"
        if args.keep_documents:
            summary += f", {np.median(lengths):.0f} in the middle, {max(lengths)} at most"
        else:
            rows = rows.map(join, batched=True, batch_size=len(rows), desc="Cutting")
            left = sum(lengths) - len(rows) * chunk_length
            summary += (
                f" in {len(rows)} chunks of {chunk_length}; the last {left} tokens, less than a chunk, are left out"
            )
        print(summary)
        if len(rows) == 0:
            is_held_out = part == "validation" and args.train_file and not args.validation_file
            held_out = ", a larger --validation_split_percentage" if is_held_out else ""
            raise UserError(
                f"the {part} data is shorter than one chunk of {chunk_length} tokens: give more text, a smaller "
                f"--block_size{held_out}, or --keep_documents."
            )
        limit = args.max_train_samples if part == "train" else args.max_eval_samples
        chunks[part] = rows if limit is None else rows.select(range(min(limit, len(rows))))
    return DatasetDict(chunks), rates
