# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Extractive question answering, generated from the State of the Union addresses: what follows these words? A row is the
question, then a passage of an address; the answer is a span of the passage: a year, an amount of money, or the next
word. The question is the kind of answer and the words before it, which occur in the passage once. No address is in
both training and test.

Years and amounts can be guessed if a passage has few of them (`guess` in the facts is the score of guessing); a next
word cannot. Training draws both kinds at random; the test has equally many of each.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from experiments.tasks import TEST, TRAIN, VALIDATION, GeneratedRows, TaskData, pad
from training.cued_questions import KINDS, NEXT_WORD, Question, next_word, questions_on
from training.shipped_data import load_address_splits, split_words
from training.tokenizer import train_tokenizer


class Passages:
    """Passages with their tokens and questions."""

    def __init__(self, texts: list[str], tokenizer: Any, data: dict):
        self.tokenizer, self.data = tokenizer, data
        pieces = (piece for text in texts for piece in split_words(text, data["passage_words"]))
        self.texts = [piece for piece in pieces if len(piece.split()) > data["cue_words"]]
        encoded = tokenizer(self.texts, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        self.tokens, self.offsets = encoded["input_ids"], encoded["offset_mapping"]
        asked = [questions_on(text, data["cue_words"]) for text in self.texts]
        self.questions = [(index, question) for index, found in enumerate(asked) for question in found]

    def row(self, index: int, question: Question) -> dict | None:
        """Tokens with the span of the answer; `None` where that is cut off at `max_tokens`."""
        kind, cue, begin, end = question
        asked = self.tokenizer(f"{kind} {cue}")["input_ids"] + [self.tokenizer.eos_token_id]
        inside = [i for i, (start, stop) in enumerate(self.offsets[index]) if start < end and stop > begin]
        if len(asked) + inside[-1] >= self.data["max_tokens"]:
            return None
        return {
            "input_ids": np.array((asked + self.tokens[index])[: self.data["max_tokens"]]),
            "start_positions": len(asked) + inside[0],
            "end_positions": len(asked) + inside[-1],
            "by_word": int(kind == NEXT_WORD),
        }

    def draw(self, generator: np.random.Generator, by_word: bool | None = None) -> dict:
        """A random row: for a next word, for a year or an amount, or for either."""
        if by_word is None:
            by_word = bool(generator.integers(2))
        while True:
            if by_word:
                index = int(generator.integers(len(self.texts)))
                question = next_word(generator, self.texts[index], self.data["cue_words"])
            else:
                index, question = self.questions[generator.integers(len(self.questions))]
            row = None if question is None else self.row(index, question)
            if row is not None:
                return row

    def guess(self) -> float:
        """The share of years and amounts found by choosing one of those in the passage."""
        chances = [1 / len(KINDS[question[0]].findall(self.texts[index])) for index, question in self.questions]
        return float(np.mean(chances))


def collate(rows: list[dict]) -> dict[str, Tensor]:
    names = ("input_ids", "start_positions", "end_positions")
    return pad([{name: row[name] for name in names} for row in rows])


def best_spans(logits: tuple[Tensor, Tensor], labels: Any, longest_answer: int = 16) -> Tensor:
    """`(B, 2)`: first and last token of the span of at most `longest_answer` tokens with the largest sum of logits."""
    starts, ends = (part.float() for part in logits[:2])
    sums = starts.unsqueeze(2) + ends.unsqueeze(1)
    length = starts.shape[1]
    offset = torch.arange(length).unsqueeze(0) - torch.arange(length).unsqueeze(1)
    allowed = ((offset >= 0) & (offset < longest_answer)).to(sums.device)
    best = sums.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    return torch.stack((best // length, best % length), dim=1)


def score(predictions: np.ndarray, labels: tuple[np.ndarray, np.ndarray], rows: Any) -> dict[str, float]:
    """Exact match, and F1 of the tokens of the two spans by place."""
    (start, end), (true_start, true_end) = predictions.T, labels
    common = np.maximum(0, np.minimum(end, true_end) - np.maximum(start, true_start) + 1)
    f1 = 2 * common / ((end - start + 1) + (true_end - true_start + 1))
    exact = (start == true_start) & (end == true_end)
    by_word = np.array([row["by_word"] for row in rows], dtype=bool)
    return {
        "exact_match": float(exact.mean()),
        "f1": float(f1.mean()),
        "exact_match_next_word": float(exact[by_word].mean()),
        "exact_match_year_or_amount": float(exact[~by_word].mean()),
    }


def load(data: dict, seed: int, training: dict, imdb_folder: str | None = None) -> TaskData:
    limit = data.get("max_addresses")
    texts = {part: list(rows["text"])[:limit] for part, rows in load_address_splits(seed).items()}
    tokenizer = train_tokenizer(texts["train"], data["vocabulary"], show_progress=False)
    passages = {part: Passages(documents, tokenizer, data) for part, documents in texts.items()}

    def held_out(part: str, stream: int) -> list[dict]:
        drawn = GeneratedRows(data[f"{part}_rows"], lambda generator: {"generator": generator}, seed, stream)
        return [passages[part].draw(drawn[i]["generator"], by_word=i % 2 == 0) for i in range(len(drawn))]

    rows = training["max_steps"] * training["per_device_train_batch_size"]
    train = GeneratedRows(rows, passages["train"].draw, seed, TRAIN)
    validation, test = held_out("validation", VALIDATION), held_out("test", TEST)
    return TaskData(
        auto_class=AutoModelForQuestionAnswering,
        config={"vocab_size": len(tokenizer), "pad_token_id": 0},
        train=train,
        validation=validation,
        tests={"test": test},
        longest=data["max_tokens"],
        reduce=best_spans,
        score=score,
        collate=collate,
        facts={"train": rows, "test": len(test), "guess": passages["test"].guess()},
    )
