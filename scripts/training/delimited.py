# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Tables as text: csv, whose values may stand in quotes, and tsv, whose quotes may be part of the text."""

import csv
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from training.file_rows import FileRows


LONGEST_CELL = 2**31 - 1  # Python's own limit is 131,072 characters, less than a long document


def read_delimited(file: Path, columns: list[str], delimiter: str) -> FileRows:
    """
    Those of `columns` that the table has, each cell as its text. Empty lines are no rows.

    Raises:
        UserError: a quote is not closed, a row has too few or too many cells, or a name stands twice.
    """
    quoting = _tsv_quoting(file) if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = _lines(file, delimiter, quoting)
    try:
        _, header = next(lines, (0, []))
        found = [name for name in columns if name in header]
        for name in found:
            if header.count(name) > 1:
                raise UserError(f"{file} has {header.count(name)} columns named '{name}'; rename all but one.")
        places = [header.index(name) for name in found]
        rows = FileRows(header, found)
        for line, cells in lines:
            if len(cells) != len(header):
                raise UserError(
                    f"{file}, line {line}: {len(cells)} cells where the names of the columns are {len(header)}. A "
                    f"{'tab' if delimiter == chr(9) else 'comma'} in a value needs quotes around the value."
                )
            rows.append([cells[place] for place in places])
    except csv.Error as error:
        raise UserError(
            f"{file}, {error}. A value that begins with a quote ends with one, and a quote inside it stands twice: "
            '"She said ""yes"", and left".'
        ) from None
    return rows


def _lines(file: Path, delimiter: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """The cells of every row, and the number of the line that it begins on."""
    limit = csv.field_size_limit(LONGEST_CELL)
    line = 1
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _tsv_quoting(file: Path) -> int:
    """
    Whether quotes enclose the values of a tsv file, as pandas writes them, or are part of the text. They are part of
    it where every line for itself is a whole row, and to read them as enclosing would fail or join rows.
    """
    plain, quoted = _count(file, csv.QUOTE_NONE), _count(file, csv.QUOTE_MINIMAL)
    if plain == quoted or plain is None:
        return csv.QUOTE_NONE if quoted is None else csv.QUOTE_MINIMAL
    num_rows, num_columns = plain
    if quoted is not None and num_columns == 1:  # every line is a whole row there
        return csv.QUOTE_MINIMAL
    print(f"{file}: quotes are read as part of the text, a row a line ({num_rows} rows).")
    return csv.QUOTE_NONE


def _count(file: Path, quoting: int) -> tuple[int, int] | None:
    """Rows and columns, or `None` where the table cannot be read so."""
    try:
        lines = _lines(file, "\t", quoting)
        _, header = next(lines, (0, []))
        num_rows = 0
        for _, cells in lines:
            if len(cells) != len(header):
                return None
            num_rows += 1
        return num_rows, len(header)
    except csv.Error:
        return None
