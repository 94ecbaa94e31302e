# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Questions on a passage whose answers need no people: what follows these words, which stand in the passage once?"""

import re

import numpy as np


KINDS = {
    "year": re.compile(r"\b(?:1[6-9]|20)\d\d\b"),
    "amount": re.compile(r"\$\d[\d,]*(?:\.\d+)?"),
}
NEXT_WORD = "next"
WORD = re.compile(r"\S+")

Question = tuple[str, str, int, int]  # kind, the words before the answer, its first character, its end


def questions_on(passage: str, cue_words: int) -> list[Question]:
    """Each year and amount whose words before it stand in `passage` once."""
    found = []
    words = [(match.start(), match.end()) for match in WORD.finditer(passage)]
    starts = [start for start, _ in words]
    for kind, pattern in KINDS.items():
        for match in pattern.finditer(passage):
            index = int(np.searchsorted(starts, match.start(), side="right")) - 1
            if starts[index] != match.start() or index < cue_words:
                continue  # inside a word, as the second year of 1861-62; or nothing before it
            cue = passage[words[index - cue_words][0] : words[index - 1][1]]
            if passage.count(cue) == 1:
                found.append((kind, cue, match.start(), match.end()))
    return found


def next_word(generator: np.random.Generator, passage: str, cue_words: int) -> Question | None:
    """A question for a word of the passage, or `None` where the words drawn stand there more than once."""
    words = list(WORD.finditer(passage))
    index = int(generator.integers(cue_words, len(words)))
    cue = passage[words[index - cue_words].start() : words[index - 1].end()]
    return (NEXT_WORD, cue, words[index].start(), words[index].end()) if passage.count(cue) == 1 else None
