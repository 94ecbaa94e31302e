# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Retrieval from long texts, in the manner of RULER (Hsieh et al., 2024, arXiv:2404.06654): prompts of an exact length with
something hidden in them, the question, and the answer.

`passkey`: one number in sentences that repeat. In prose: `keys`, one number asked for among several of other names;
`values`, all numbers of one name; `variables`, names that are set to others, of which all with one value are asked for.
`chat` is `keys`, asked as users of a chat ask, through the tokenizer's template, with the begin of the answer given.
`quote` hides nothing: it gives some words of the prose, and asks for those that follow them there.
"""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from common.errors import UserError


FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NAMES = (
    "amber basil cedar delta ember fable garnet harbor indigo jasper kettle lantern maple nectar opal pepper quartz "
    "raven saffron timber umber velvet walnut yarrow zephyr"
).split()
SEVERAL = 4


class Prompt(NamedTuple):
    tokens: list[int]
    answer: list[int]


class Hidden(NamedTuple):
    """Sentences to hide, of which the first is at the depth that is asked for, and what is asked."""

    sentences: list[str]
    question: str
    begin: str  # of what is answered, which is given
    answer: str


def passkey(rng: random.Random) -> Hidden:
    key = _number(rng)
    sentence = f"The pass key is {key}. Remember it. {key} is the pass key."
    return Hidden([sentence], "What is the pass key?", "The pass key is", f" {key}")


def keys(rng: random.Random) -> Hidden:
    names, numbers = rng.sample(NAMES, SEVERAL), [_number(rng) for _ in range(SEVERAL)]
    sentences = [f"The special number of {name} is {number}." for name, number in zip(names, numbers)]
    question, begin = f"What is the special number of {names[0]}?", f"The special number of {names[0]} is"
    return Hidden(sentences, question, begin, f" {numbers[0]}")


def values(rng: random.Random) -> Hidden:
    name, numbers = rng.choice(NAMES), [_number(rng) for _ in range(SEVERAL)]
    sentences = [f"A special number of {name} is {number}." for number in numbers]
    question = f"What are all the special numbers of {name}, in the order of the text?"
    return Hidden(sentences, question, "They are", " " + ", ".join(numbers))


def variables(rng: random.Random) -> Hidden:
    names, number = [name.upper() for name in rng.sample(NAMES, SEVERAL)], _number(rng)
    sentences = [f"VAR {names[0]} = {number}."]
    sentences += [f"VAR {name} = VAR {before}." for before, name in zip(names, names[1:])]
    question = f"Which variables have the value {number}, in the order of the text?"
    return Hidden(sentences, question, "They are", " " + ", ".join(names))


TASKS: dict[str, Callable[[random.Random], Hidden]] = {
    "passkey": passkey,
    "keys": keys,
    "chat": keys,
    "values": values,
    "variables": variables,
}


RETRIEVAL = (*TASKS, "quote")
GIVEN_WORDS, ASKED_WORDS, QUOTE_TOKENS = 8, 4, 160  # of a quote; and the most tokens of its question and answer
WORD = re.compile(r"\S+")


def make_prompt(
    task: str, tokenizer: PreTrainedTokenizerBase, length: int, depth: float, seed: int, prose: str
) -> Prompt:
    """
    Args:
        length: tokens of prompt and answer together.
        depth: where the first sentence stands, or the words of a quote, from 0, the start, to 1; other sentences come at
            random places after it, and with `keys` anywhere.
        prose: the text around what is hidden; `passkey` has one of its own.

    Raises:
        UserError: the length is too small for the task, or the tokenizer has no chat template for `chat`.
    """
    rng = random.Random(f"{task} {length} {depth} {seed}")
    start = [] if tokenizer.bos_token_id is None or not _adds_start(tokenizer) else [tokenizer.bos_token_id]
    if task == "quote":
        return _quote(rng, tokenizer, length, depth, prose, start)
    hidden = TASKS[task](rng)
    between = " "
    if task == "chat":
        before, between = _around_message(tokenizer)
        start = _tokens(tokenizer, before)
    asked = f"\n\n{hidden.question}{between}{hidden.begin}"
    question, answer = _question_and_answer(tokenizer, asked, hidden.answer)
    sentences = [_tokens(tokenizer, f"\n{text}\n") for text in hidden.sentences]
    room = length - len(start) - len(question) - len(answer) - sum(map(len, sentences))
    if room < 32:
        raise UserError(f"--lengths {length}: '{task}' needs at least {length - room + 32} tokens.")
    around = FILLER * (room // 8 + 1) if task == "passkey" else prose
    text = _tokens(tokenizer, around[: 12 * room])[:room]
    if len(text) < room:
        raise UserError(
            f"the text around what is hidden has {len(text)} tokens, {room} are needed: give longer texts."
        )
    first = round(depth * room)
    lowest = 0 if task in ("keys", "chat") else first
    places = [first, *sorted(rng.randint(lowest, room) for _ in sentences[1:])]
    tokens, done = list(start), 0
    for place, sentence in sorted(zip(places, sentences), key=lambda pair: pair[0]):
        tokens += text[done:place] + sentence
        done = place
    return Prompt(tokens + text[done:] + question, answer)


def _quote(
    rng: random.Random, tokenizer: PreTrainedTokenizerBase, length: int, depth: float, prose: str, start: list[int]
) -> Prompt:
    room = length - len(start) - QUOTE_TOKENS
    text = _tokens(tokenizer, prose[: 12 * max(length, 0)])
    if room < 32 or len(text) < length:
        raise UserError(
            f"--lengths {length}: 'quote' needs at least {QUOTE_TOKENS + 33} tokens, and a text of {length}, which has "
            f"{len(text)}."
        )
    read = tokenizer.decode(text[:room])
    words = list(WORD.finditer(read))[:-1]  # the last one may be cut
    last = len(words) - GIVEN_WORDS - ASKED_WORDS
    # The words that are nearest to the depth, a little before or after it, of those that stand in the text once.
    wanted = depth * last + rng.uniform(-20, 20)
    for first in sorted(range(max(last, 0)), key=lambda place: abs(place - wanted)):
        given = read[words[first].start() : words[first + GIVEN_WORDS - 1].end()]
        if read.count(given) > 1:
            continue
        end = words[first + GIVEN_WORDS + ASKED_WORDS - 1].end()
        answer = read[words[first].start() + len(given) : end]
        question, answer = _question_and_answer(tokenizer, f'\n\nThe text above says: "{given}', answer)
        if len(question) + len(answer) <= QUOTE_TOKENS:
            return Prompt(start + text[: length - len(start) - len(question) - len(answer)] + question, answer)
    raise UserError(
        f"--lengths {length}: no {GIVEN_WORDS} words stand in the text once: give other texts, or "
        "leave 'quote' out of --tasks."
    )


def _around_message(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before a user's message, and after it up to where the answer begins."""
    if tokenizer.chat_template is None:
        raise UserError("--tasks chat: the tokenizer has no chat template; leave 'chat' out for this model.")
    message = "<<message>>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = text.partition(message)
    return before, after


def _question_and_answer(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str
) -> tuple[list[int], list[int]]:
    """Tokens of both. A space before the answer that is a token of its own is part of the question."""
    both = _tokens(tokenizer, question + answer)
    for start in (_tokens(tokenizer, question + " "), _tokens(tokenizer, question)):
        if both[: len(start)] == start:
            return start, both[len(start) :]
    return _tokens(tokenizer, question), _tokens(tokenizer, answer)


def _number(rng: random.Random) -> str:
    return str(rng.randint(10000, 99999))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _adds_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts of this tokenizer begin with a token of their own."""
    return tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]
