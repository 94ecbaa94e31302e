# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The text on which an index is calibrated, as rows of tokens."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from training.files import read_file, read_parquet
from training.shipped_data import load_address_splits
from training.texts import check_columns, join_texts


BOOKS = Path(__file__).resolve().parents[2] / "data" / "books"


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase, file: str | None, column: str, num_rows: int, length: int
) -> Tensor:
    """
    `(num_rows, length)`, fewer of both where the text is shorter.

    Raises:
        UserError: the file cannot be read, lacks the column, or is too short.
    """
    texts = shipped_texts(num_rows) if file is None else texts_of(file, column)
    rows = []
    for text in texts:
        # A letter is at most a few tokens: enough of the text, and not all of a library.
        tokens = tokenizer(text[: 40 * length * num_rows], add_special_tokens=False, verbose=False)["input_ids"]
        wanted = 1 if file is None else num_rows - len(rows)
        rows += [tokens[start : start + length] for start in range(0, len(tokens), length)][:wanted]
        if len(rows) == num_rows:
            break
    longest = max(map(len, rows), default=0)
    rows = [row for row in rows if len(row) == longest]
    if longest < 64:
        raise UserError(
            f"--calibration_file {file}: its longest text has {longest} tokens; an index needs at least 64, and a few "
            "thousand are better."
        )
    return torch.tensor(rows)


def shipped_texts(count: int) -> list[str]:
    """Long addresses and long books in turn, of those parts that nothing is scored on."""
    addresses = load_address_splits()["train"]["text"]
    books = read_parquet(BOOKS / "train.parquet")["text"]
    longest = [sorted(texts, key=len, reverse=True) for texts in (list(addresses), list(books))]
    return [text for pair in zip(*longest) for text in pair][:count]


def texts_of(file: str, column: str) -> list[str]:
    rows = read_file(file, [column])
    check_columns(rows, {column: "--text_column_name"}, file)
    return join_texts(rows, [column], " ", file).to_pylist()
