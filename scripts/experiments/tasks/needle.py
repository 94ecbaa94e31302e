# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Needles in a haystack. A text is a number of pages. A page has its number and its answer; the first
page instead points to other pages, and the class of the text is the largest of their answers, read at the first token.
With one pointer it is that page's answer. `causal: true` is the same for decoders: the last page points, and the class
is read at the last token.

`written: "over and over"` fills a page with its number and its answer (and the first page with its pointers), so the
mean of a block has all the information. `written: "once"` writes each once; the rest of a page is random words.

`question` says where in its page the pointers stand. By default they begin it (or fill it, over and over), so that a
causal SortNet that reads the first token of a block reads them. With `question: "end"` they end the page, and with
`"anywhere"` they begin at a random token that is not the first; the rest of the page, at least half of it, is random words.
"""

import numpy as np
from transformers import AutoModelForSequenceClassification

from experiments.tasks import TaskData, accuracy, generated_parts, most_likely_class, pad


WORDS = 16  # different ones, which mean nothing


def draw(generator: np.random.Generator, data: dict) -> dict:
    page, classes, needles = data["page_tokens"], data["classes"], data["needles"]
    pages = data["length"] // page
    answers_from = 1 + WORDS
    numbers_from = answers_from + classes
    pointers_from = numbers_from + pages
    answers = generator.integers(classes, size=pages)
    targets = 1 + generator.permutation(pages - 1)[:needles]
    marks = np.stack((numbers_from + np.arange(pages), answers_from + answers), axis=1)
    if data["written"] == "over and over":
        tokens = np.repeat(marks, page // 2, axis=1)
        tokens[0] = pointers_from + np.sort(np.resize(targets, page))
    else:
        tokens = 1 + generator.integers(WORDS, size=(pages, page))
        tokens[:, 1:3] = marks
        tokens[0, 1 : 1 + needles] = pointers_from + targets
    if data.get("question", "first") != "first":
        tokens[0] = _asking_page(generator, pointers_from + targets, data)
    if data.get("causal"):
        tokens = np.roll(tokens, -1, axis=0)
    return {"input_ids": tokens.reshape(-1), "labels": int(answers[targets].max())}


def _asking_page(generator: np.random.Generator, pointers: np.ndarray, data: dict) -> np.ndarray:
    """Random words, and among them the pointers at the place that `question` names."""
    page = data["page_tokens"]
    if data["written"] == "over and over":
        pointers = np.sort(np.resize(pointers, page // 2))
    last_start = page - len(pointers)
    start = {"end": last_start, "anywhere": generator.integers(1, last_start + 1)}[data["question"]]
    tokens = 1 + generator.integers(WORDS, size=page)
    tokens[start : start + len(pointers)] = pointers
    return tokens


def target_pages(input_ids: np.ndarray, data: dict) -> list[int]:
    """The pages that the first page of an encoder's row points to."""
    pages = data["length"] // data["page_tokens"]
    pointers_from = 1 + WORDS + data["classes"] + pages
    asked = np.asarray(input_ids)[: data["page_tokens"]]
    return np.unique(asked[asked >= pointers_from] - pointers_from).tolist()


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    train, validation, test = generated_parts(lambda g: draw(g, data), data, seed, training)
    pages = data["length"] // data["page_tokens"]
    return TaskData(
        auto_class=AutoModelForSequenceClassification,
        config={
            "vocab_size": 1 + WORDS + data["classes"] + 2 * pages,
            "num_labels": data["classes"],
            "pad_token_id": 0,
            "classifier_pooling": "last" if data.get("causal") else "cls",
            "is_decoder": bool(data.get("causal")),
        },
        train=train,
        validation=validation,
        tests={"test": test},
        longest=data["length"],
        reduce=most_likely_class,
        score=accuracy,
        collate=pad,
        facts={"train": len(train), "test": len(test), **data},
    )
