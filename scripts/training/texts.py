# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The texts of some columns of a file or data set, and which of them are empty."""

from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset

from common.errors import UserError
from training.file_rows import Column, FileRows, named


def check_columns(data: Dataset | FileRows, columns: dict[str, str], name: str) -> None:
    """
    Raises:
        UserError: one of `columns` (each with the flag that names it) is missing; names those there are, and the flag.
    """
    for column, flag in columns.items():
        if column not in data.column_names:
            raise UserError(
                f"{name} has no column '{column}'; its columns are {', '.join(data.column_names)}. Name the right one "
                f"with {flag}.{_other_delimiter(data.column_names)}"
            )


def join_texts(data: Dataset | FileRows, columns: list[str], separator: str, name: str) -> pyarrow.ChunkedArray:
    """
    A text for each row: its cells of `columns`, or the strings of a cell that is a list, joined by `separator`.

    Raises:
        UserError: cells are no text, as a dict; names the rows.
    """
    if len(columns) == 1 and isinstance(data, FileRows) and (texts := data[columns[0]].texts()) is not None:
        return texts
    joined, wrong = Column(), []
    for row, cells in enumerate(zip(*(data[column] for column in columns))):
        try:
            joined.append(separator.join(_text(cell, separator) for cell in cells))
        except TypeError:
            wrong.append(row)
    if wrong:
        raise UserError(
            f"{name}: the text of {named(wrong)}, is no text but an object, a list of other things than strings, or "
            f"bytes; make it a string in column {', '.join(columns)}."
        )
    return joined.texts()


def texts_of(data: Dataset, at_once: int = 1000) -> Iterator[str]:
    """The column `text`, some rows at a time: row by row, a selection of rows takes four times as long."""
    for start in range(0, len(data), at_once):
        yield from data["text"][start : start + at_once]


def _text(cell: Any, separator: str) -> str:
    if isinstance(cell, list) and all(isinstance(part, str) for part in cell):
        return separator.join(cell)
    if isinstance(cell, (dict, list, tuple, bytes)):
        raise TypeError
    return "" if cell is None or cell != cell else str(cell)  # NaN: an empty cell, as pandas holds it


def empty_rows(texts: pyarrow.ChunkedArray) -> list[int]:
    """Rows whose text has nothing but white space."""
    without_letters = pyarrow.compute.equal(pyarrow.compute.binary_length(texts), 0)
    is_empty = pyarrow.compute.or_(without_letters, pyarrow.compute.utf8_is_space(texts))
    return pyarrow.compute.indices_nonzero(is_empty).to_pylist()


def _other_delimiter(columns: list[str]) -> str:
    """A hint, where a csv file seems to have been written with another delimiter."""
    if len(columns) != 1 or not any(mark in columns[0] for mark in ";\t|,"):
        return ""
    return " Does it have another delimiter? A csv file needs commas, a tsv file tabs."
