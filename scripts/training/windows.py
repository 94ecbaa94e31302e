# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Long documents, cut into windows for an encoder of short inputs."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase


def windows_of(text: str, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> list[str]:
    """
    Consecutive pieces of `text` of at most `num_tokens` tokens with the special ones, at least one piece. A window ends
    with a word: the tokenizer would make other tokens of half a word.
    """
    room = num_tokens - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places, words = encoded["offset_mapping"], encoded.word_ids()
    pieces, start = [], 0
    while start < len(places):
        end = min(start + room, len(places))
        cut = end
        while start < cut < len(places) and words[cut] == words[cut - 1]:
            cut -= 1
        end = end if cut == start else cut  # a word longer than the window is cut
        pieces.append(text[places[start][0] : places[end - 1][1]])
        start = end
    return pieces or [text]


def to_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Dataset:
    """A row for each window: its `text`, its document's other columns, and the document's number as `document`."""
    windows = [
        (number, window)
        for number, text in enumerate(rows["text"][:])
        for window in windows_of(text, tokenizer, num_tokens)
    ]
    numbers, texts = zip(*windows)
    return rows.select(numbers).remove_columns("text").add_column("text", texts).add_column("document", numbers)
