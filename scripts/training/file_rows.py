# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Rows that were read from a file, held column by column in little memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint


PIECE = 1 << 22  # characters


class Column:
    """Cells in order. Those that are texts are kept as UTF-8, whatever the widest letter among them."""

    def __init__(self) -> None:
        self.pieces: list[pyarrow.Array | list] = []
        self.last: list = []
        self.size = 0

    def append(self, cell: Any) -> None:
        self.last.append(cell)
        self.size += len(cell) if isinstance(cell, str) else 64
        if self.size > PIECE:
            self._pack()

    def _pack(self) -> None:
        if self.last:
            only_texts = all(isinstance(cell, str) for cell in self.last)
            self.pieces.append(pyarrow.array(self.last, pyarrow.string()) if only_texts else self.last)
        self.last, self.size = [], 0

    def texts(self) -> pyarrow.ChunkedArray | None:
        """The column as Arrow has it, if every cell is a text."""
        self._pack()
        if all(isinstance(piece, pyarrow.Array) for piece in self.pieces):
            return pyarrow.chunked_array(self.pieces, pyarrow.string())
        return None

    def __len__(self) -> int:
        return sum(map(len, self.pieces)) + len(self.last)

    def __iter__(self) -> Iterator[Any]:
        for piece in self.pieces:
            yield from piece.to_pylist() if isinstance(piece, pyarrow.Array) else piece
        yield from self.last


class FileRows:
    """
    The part of a `Dataset`'s interface that reading needs.

    Attributes:
        column_names: of all columns of the file, also those that were not read.
        features: what the file says about a column beyond its values, as the names of its classes.
    """

    def __init__(self, column_names: Sequence[str], columns: Sequence[str]):
        self.column_names = list(column_names)
        self.columns = {name: Column() for name in columns}
        self.features: dict[str, Any] = {}
        self.num_rows = 0

    def append(self, cells: Sequence[Any]) -> None:
        """One row: its cells in the order of `columns`."""
        for column, cell in zip(self.columns.values(), cells):
            column.append(cell)
        self.num_rows += 1

    def append_batch(self, batch: pyarrow.RecordBatch) -> None:
        """Rows of Arrow. An empty batch of columns still counts its rows."""
        for name, column in self.columns.items():
            for cell in batch.column(name).to_pylist():
                column.append(cell)
        self.num_rows += batch.num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]


def to_dataset(columns: dict[str, Any]) -> Dataset:
    """In memory. Its fingerprint is drawn: `datasets` would make a copy or two of all texts to compute one."""
    return Dataset(pyarrow.table(columns), fingerprint=generate_random_fingerprint())


def with_column(data: Dataset, name: str, cells: Sequence[Any]) -> Dataset:
    """
    `data` with other cells in its column `name`. `add_column` of `datasets` writes every row of a selection, as a held-out
    part is, anew; here the parts of a file stay lists of places in one table.
    """
    table, places = data.data.table, data._indices
    if places is None:
        column = pyarrow.array(cells)
    else:
        spread: list[Any] = [None] * len(table)
        for place, cell in zip(places.column(0).to_pylist(), cells):
            spread[place] = cell
        column = pyarrow.array(spread)
    # What the table says about the types of its columns is about the old cells.
    table = table.set_column(table.column_names.index(name), name, column).replace_schema_metadata(None)
    return Dataset(table, indices_table=places, fingerprint=generate_random_fingerprint())


def named(rows: Sequence[int]) -> str:
    """`row 3` or `rows 3, 7, 8 and 12 more`, for messages; the first ten, counted from 0."""
    told = ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
    return f"row{'s' * (len(rows) != 1)} {told}, counted from 0"
