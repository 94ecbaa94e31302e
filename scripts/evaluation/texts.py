# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Long documents for perplexity and for the prose around what is hidden: the user's, or those that ship."""

from pathlib import Path

from common.errors import UserError
from training.files import read_file, read_parquet
from training.shipped_data import load_address_splits
from training.texts import check_columns, join_texts


BOOKS = Path(__file__).resolve().parents[2] / "data" / "books" / "test.parquet"


def long_texts(file: str | None, column: str, count: int, characters: int) -> list[str]:
    """
    The first `count` texts of at least so many characters; of those that ship, addresses and books in turn, from the
    parts that nothing is calibrated or trained on.

    Raises:
        UserError: the file cannot be read, lacks the column, or has no such text.
    """
    if file is None:
        addresses, books = load_address_splits()["test"]["text"], read_parquet(BOOKS)["text"]
        parts = [[text for text in texts if len(text) >= characters] for texts in (list(addresses), list(books))]
        shorter = min(map(len, parts))
        texts = [text for pair in zip(*parts) for text in pair] + parts[0][shorter:] + parts[1][shorter:]
    else:
        rows = read_file(file, [column])
        check_columns(rows, {column: "--text_column_name"}, file)
        texts = [text for text in join_texts(rows, [column], " ", file).to_pylist() if len(text) >= characters]
    if not texts:
        raise UserError(
            f"{'--texts_file ' + file if file else 'the shipped data'}: no text has {characters:,} characters, which "
            "the longest of --lengths needs: give longer texts, or shorter --lengths."
        )
    return texts[:count]
