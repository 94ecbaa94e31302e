# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
ListOps by the rules of Long Range Arena (Tay et al. 2020, `lra_benchmarks/data/listops.py`): nested lists of digits
with minimum, maximum, median and sum modulo ten; the class is the value. A subtree is a digit with probability 3/4, or
else a list of 2 to `max_args` subtrees; at `max_depth` it is always a digit. Expressions with fewer than `min_length`
or more than `max_length` tokens are drawn again. Long Range Arena has depth 10, 10 arguments, and 500 to 2,000 tokens.
"""

import random
import statistics

import numpy as np
from transformers import AutoModelForSequenceClassification

from experiments.tasks import TaskData, accuracy, generated_parts, most_likely_class, pad


OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
VOCABULARY = ["<pad>", "<s>", "]", *OPERATORS, *map(str, range(10))]
TOKEN = {word: token for token, word in enumerate(VOCABULARY)}
LIST_SHARE = 0.25


class TooLong(Exception):
    pass


def expression(generator: random.Random, data: dict) -> tuple[list[str], int]:
    """Words and value of one expression of allowed length."""
    words: list[str] = []

    def subtree(depth: int) -> int:
        if len(words) > data["max_length"]:
            raise TooLong
        # A root that is a digit is too short whatever the rest, so it is not drawn at all.
        if depth == data["max_depth"] or (depth > 1 and generator.random() > LIST_SHARE):
            value = generator.randrange(10)
            words.append(str(value))
            return value
        operator = generator.choice(list(OPERATORS))
        words.append(operator)
        values = [subtree(depth + 1) for _ in range(generator.randint(2, data["max_args"]))]
        words.append("]")
        return OPERATORS[operator](values)

    while True:
        words.clear()
        try:
            value = subtree(1)
        except TooLong:
            continue
        if data["min_length"] < len(words) < data["max_length"]:
            return list(words), value


def draw(generator: np.random.Generator, data: dict) -> dict:
    words, value = expression(random.Random(int(generator.integers(2**63))), data)
    return {"input_ids": np.array([TOKEN["<s>"], *map(TOKEN.get, words)]), "labels": value}


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    train, validation, test = generated_parts(lambda g: draw(g, data), data, seed, training)
    return TaskData(
        auto_class=AutoModelForSequenceClassification,
        config={"vocab_size": len(VOCABULARY), "num_labels": 10, "pad_token_id": 0, "classifier_pooling": "mean"},
        train=train,
        validation=validation,
        tests={"test": test},
        longest=data["max_length"] + 1,
        reduce=most_likely_class,
        score=accuracy,
        collate=pad,
        facts={"train": len(train), "test": len(test), **data},
    )
