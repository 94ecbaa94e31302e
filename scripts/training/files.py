# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Named columns of a user's file, cell by cell as they stand there. No type is guessed: what looks like a number, a date,
a truth value or a missing one (`007`, `1.50`, `None`, `NA`) is that text.
"""

import codecs
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, Features

from common.errors import UserError
from training.delimited import read_delimited
from training.file_rows import FileRows
from training.json_rows import read_json


SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
PIECE = 1 << 20  # bytes


def read_file(path: str, columns: Iterable[str]) -> FileRows:
    """
    Those of `columns` that a csv, tsv, json, jsonl or parquet file has; a txt file is one document in the column
    `text`.

    Raises:
        UserError: the file is missing, empty, of another kind, not UTF-8 or malformed; names the place and the cure.
    """
    file, columns = Path(path), list(dict.fromkeys(columns))
    if not file.is_file():
        raise UserError(f"there is no file {path}.")
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    if file.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    if kind == ".parquet":
        rows = _read_parquet(file, columns)
    else:
        check_utf8(file)
        if kind in (".csv", ".tsv"):
            rows = read_delimited(file, columns, "\t" if kind == ".tsv" else ",")
        elif kind == ".txt":
            rows = FileRows(["text"], ["text"])
            rows.append([file.read_text(encoding="utf-8-sig")])
        else:
            rows = read_json(file, columns)
    if len(rows) == 0:
        raise UserError(f"{path} has no rows; it needs at least one below the column names.")
    return rows


def check_utf8(file: Path) -> None:
    """
    Reads piece by piece: as one text, a single emoji would make four bytes of every letter.

    Raises:
        UserError: some bytes are not UTF-8.
    """
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    with open(file, "rb") as stream:
        while True:
            piece = stream.read(PIECE)
            held_back = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                place = start - held_back + error.start
                with open(file, "rb") as again:
                    utf16 = again.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                raise UserError(
                    f"{file} is not UTF-8 text (byte {place}); save it as UTF-8, for example with "
                    f"`iconv -f {'utf-16' if utf16 else 'latin1'} -t utf-8`."
                ) from None
            if not piece:
                return
            start += len(piece)


def read_parquet(path: Path) -> Dataset:
    """The whole file, in memory. Unlike `Dataset.from_parquet`, it takes signs such as `[` in the path as they are."""
    with open(path, "rb") as stream:
        return Dataset(pyarrow.parquet.ParquetFile(stream).read())


def _read_parquet(file: Path, columns: list[str]) -> FileRows:
    try:
        with open(file, "rb") as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            names = parquet.schema_arrow.names
            found = [name for name in columns if name in names]
            rows = FileRows(names, found)
            for batch in parquet.iter_batches(columns=found, batch_size=1000):
                rows.append_batch(batch)
            features = Features.from_arrow_schema(parquet.schema_arrow)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as parquet: {' '.join(str(error).split())}") from None
    rows.features = {name: features[name] for name in found}
    return rows
