# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Rows of a json or jsonl file: one object a line, or one array of objects."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from common.errors import UserError
from training.file_rows import Column, FileRows


PIECE = 1 << 20  # characters
SPACE = re.compile(r"\s*")
DECODER = json.JSONDecoder(parse_float=Decimal)  # 1.50 stays 1.50


def read_json(file: Path, columns: list[str]) -> FileRows:
    """
    Those of `columns` that any row has; a row without one has `None` there.

    Raises:
        UserError: a row is no JSON, or no object; names the line or the row.
    """
    with open(file, encoding="utf-8-sig") as stream:
        is_array = next((line.lstrip()[0] for line in stream if line.strip()), "") == "["
        stream.seek(0)
        rows, names = FileRows([], columns), {}
        for place, row in _items(file, stream) if is_array else _lines(file, stream):
            if not isinstance(row, dict):
                raise UserError(
                    f'{file}, {place}: it needs an object such as {{"text": "...", "label": "..."}}, got '
                    f"{json.dumps(row, default=str)[:40]}."
                )
            names.update(dict.fromkeys(row))
            rows.append([_as_written(row.get(name)) for name in columns])
    lengths = [_length(rows[name]) for name in columns if name in names] if len(rows) == 1 else []
    if len(lengths) > 1 and len(set(lengths)) == 1 and lengths[0] > 1:
        raise UserError(
            f"{file} holds whole columns in one object; it needs an object for each row: "
            '{"text": "...", "label": "..."}.'
        )
    rows.column_names = list(names)
    return rows


def _length(column: Column) -> int:
    """Of the only cell of a column, if it is a list."""
    return max(len(cell) if isinstance(cell, list) else 0 for cell in column)


def _as_written(cell: Any) -> Any:
    return {True: "true", False: "false"}[cell] if isinstance(cell, bool) else cell


def _lines(file: Path, stream: TextIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.isspace():
            try:
                yield f"line {number}", DECODER.decode(line)
            except ValueError as error:
                raise UserError(
                    f"{file}, line {number} is not JSON: {error}. The file needs one object a line, or one array of "
                    "objects."
                ) from None


def _items(file: Path, stream: TextIO) -> Iterator[tuple[str, Any]]:
    """The items of an array, read piece by piece."""
    text, place = "", 0

    def read_on() -> bool:
        nonlocal text, place
        piece = stream.read(max(PIECE, len(text) - place))
        text, place = text[place:] + piece, 0
        return bool(piece)

    def next_sign() -> str:
        nonlocal place
        while True:
            place = SPACE.match(text, place).end()
            if place < len(text):
                return text[place]
            if not read_on():
                return ""

    next_sign()
    place += 1  # behind the bracket
    row = 0
    while next_sign() != "]":
        if row:
            if next_sign() != ",":
                raise UserError(
                    f"{file} is not JSON: a comma or the end of the array is missing behind row {row - 1}."
                )
            place += 1
            next_sign()
        while True:
            try:
                value, end = DECODER.raw_decode(text, place)
                break
            except ValueError as error:
                if not read_on():
                    raise UserError(f"{file}, row {row} (counted from 0) is not JSON: {error}.") from None
        place = end
        yield f"row {row}, counted from 0", value
        row += 1
