# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Questions on long passages of State of the Union addresses, as rows of SQuAD: which year, amount or word follows these
words? The words stand in the passage once, whatever their case. No address is in two parts.
"""

import re
from typing import Any

import numpy as np

from training.cued_questions import KINDS, NEXT_WORD, WORD, Question, questions_on
from training.shipped_data import load_address_splits, split_words


PARTS = ("train", "validation", "test")
ASKED = {"year": "Which year", "amount": "Which amount", NEXT_WORD: "Which word"}
TRIES = 200  # drawn passages without a question that is left, before a kind is given up
ARTICLES = ("a", "an", "the")
LETTERS = re.compile(r"\w(?:.*\w)?")


def make_rows(sizes: dict[str, int], seed: int, passage_words: int, cue_words: int) -> dict[str, list[dict]]:
    """
    For each part so many rows, or as many as the addresses have: `id`, `question`, `context`, `answers`, `kind` (as many
    of each kind as can be) and `chance` (of guessing one of the answers of that kind in the passage). No question
    stands twice. Passages have `passage_words` words, four fifths of them at least.
    """
    made, addresses = {}, load_address_splits(seed)
    for number, part in enumerate(PARTS):
        generator = np.random.default_rng([seed, number])
        pieces = (piece for text in addresses[part]["text"][:] for piece in split_words(text, passage_words))
        passages = [piece for piece in pieces if len(piece.split()) >= 0.8 * passage_words]
        made[part] = _rows(passages, sizes[part], generator, cue_words)
    return made


def _rows(passages: list[str], size: int, generator: np.random.Generator, cue_words: int) -> list[dict]:
    left: dict[int, dict[str, list[Question]]] = {}
    rows: list[dict] = []
    for number, kind in enumerate(ASKED):  # the next words, of which there are enough, last
        wanted = round(size * (number + 1) / len(ASKED)) - len(rows)
        failed = 0
        while wanted and failed < TRIES:
            index = int(generator.integers(len(passages)))
            if index not in left:
                left[index] = _questions_by_kind(passages[index], cue_words)
            questions = left[index][kind]
            if not questions:
                failed += 1
                continue
            place = generator.random() * len(passages[index])
            # The nearest to a random place, so that answers stand everywhere alike.
            question = min(questions, key=lambda question: abs(question[2] - place))
            questions.remove(question)
            if passages[index].lower().count(question[1].lower()) != 1:
                continue
            rows.append(_row(passages[index], question))
            wanted, failed = wanted - 1, 0
    order = generator.permutation(len(rows))
    return [rows[place] | {"id": str(number)} for number, place in enumerate(order)]


def _questions_by_kind(passage: str, cue_words: int) -> dict[str, list[Question]]:
    """Their words may still stand in the passage again, in another case; that is tried when one is drawn."""
    found: dict[str, list[Question]] = {kind: [] for kind in ASKED}
    words = list(WORD.finditer(passage))
    for question in questions_on(passage, cue_words):
        found[question[0]].append(question)
    for index in range(cue_words, len(words)):
        inner = LETTERS.search(words[index][0])
        if (
            inner is None
            or inner[0].lower() in ARTICLES
            or any(kind.search(words[index][0]) for kind in KINDS.values())
        ):
            continue  # of an article, the score leaves nothing
        cue = passage[words[index - cue_words].start() : words[index - 1].end()]
        begin = words[index].start()
        found[NEXT_WORD].append((NEXT_WORD, cue, begin + inner.start(), begin + inner.end()))
    return found


def _row(passage: str, question: Question) -> dict[str, Any]:
    kind, cue, begin, end = question
    if kind in KINDS:
        chance = 1 / len(KINDS[kind].findall(passage))
    else:
        chance = 1 / len(passage.split())
    return {
        "question": f'{ASKED[kind]} follows the words "{" ".join(cue.split())}"?',
        "context": passage,
        "answers": {"text": [passage[begin:end]], "answer_start": [begin]},
        "kind": kind,
        "chance": chance,
    }
