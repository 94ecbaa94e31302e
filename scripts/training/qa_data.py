# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The data flags of `run_qa.py`, and the questions, contexts and answers that they name, as tokens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from common.errors import UserError
from training.file_rows import named, to_dataset
from training.files import read_file
from training.flags import check_limits
from training.model_choice import longest_input
from training.texts import check_columns


LONGEST = 4096  # tokens that are read by default, where the model sets no limit or a larger one
ROWS_AT_ONCE = 100  # of 4,096 tokens; with their offsets, more would take gigabytes
FORM = '{"text": ["words of the context"], "answer_start": [17]}'


@dataclass
class DataTrainingArguments:
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet, as SQuAD."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; without it nothing is validated."})
    test_file: str | None = field(default=None, metadata={"help": "The same; answers may be missing."})
    question_column_name: str = field(default="question", metadata={"help": "Column of the question."})
    context_column_name: str = field(default="context", metadata={"help": "Column of the text it is about."})
    answers_column_name: str = field(default="answers", metadata={"help": f"Column of the answers: {FORM}."})
    id_column_name: str = field(default="id", metadata={"help": "Column that names a row; default: its number."})
    max_seq_length: int | None = field(
        default=None, metadata={"help": f"Tokens of question and context; default: the model's, {LONGEST} at most."}
    )
    max_answer_length: int = field(default=30, metadata={"help": "Tokens of the longest answer that is predicted."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for test."})

    def __post_init__(self) -> None:
        check_limits(self, "max_seq_length", "max_answer_length")
        check_limits(self, "max_train_samples", "max_eval_samples", "max_predict_samples")


@dataclass
class Row:
    """A question on a context. `answers`: the texts that are right; `start`: the first character of the first one."""

    id: str
    question: str
    context: str
    answers: list[str]
    start: int


@dataclass
class Encoded:
    """
    Rows as tokens.

    Attributes:
        data: `input_ids`, the tokenizer's masks, `row` (its place), `first` and `stop` (the tokens of the context), and
            where the rows have answers `start_positions` and `end_positions`: the first token where an answer is cut
            off.
        offsets: of each row `(stop - first, 2)`: where the tokens of the context begin and end in it.
        is_whole: of each row whether its answer is among the tokens.
    """

    data: Dataset
    offsets: list[np.ndarray]
    is_whole: list[bool]


def load_rows(data_args: DataTrainingArguments) -> dict[str, list[Row]]:
    """
    The rows of `train`, `validation` and `test` that the flags name, checked.

    Raises:
        UserError: there is no file, a column is missing, or rows are not as SQuAD's; names the rows.
    """
    limits = {
        "train": data_args.max_train_samples,
        "validation": data_args.max_eval_samples,
        "test": data_args.max_predict_samples,
    }
    files = {part: getattr(data_args, f"{part}_file") for part in limits}
    if not any(files.values()):
        raise UserError(
            "there is no data: name files with --train_file, --validation_file and --test_file. Their rows are as in "
            f"SQuAD: id, question, context and answers, {FORM}."
        )
    return {part: _read(file, part, data_args)[: limits[part]] for part, file in files.items() if file}


def _read(file: str, part: str, data_args: DataTrainingArguments) -> list[Row]:
    names = [getattr(data_args, f"{name}_column_name") for name in ("id", "question", "context", "answers")]
    read = read_file(file, names)
    flags = {names[1]: "--question_column_name", names[2]: "--context_column_name"}
    has_answers = part != "test" or names[3] in read.column_names
    if has_answers:
        flags[names[3]] = "--answers_column_name"
    name = f"the {part} data"
    check_columns(read, flags, name)
    ids = [str(cell) for cell in read[names[0]]] if names[0] in read.column_names else list(map(str, range(len(read))))
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = [row for row, id in enumerate(ids) if id in seen or seen.add(id)]
        raise UserError(f"{name}: column '{names[0]}' names several rows alike ({named(twice)}); ids must differ.")
    cells = zip(read[names[1]], read[names[2]], read[names[3]] if has_answers else [None] * len(read))
    rows = []
    for row, (question, context, answers) in enumerate(cells):
        where = f"{name}, row {row} (counted from 0)"
        for column, text in ((names[1], question), (names[2], context)):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}: column '{column}' has no text; fill it, or drop the row.")
        texts, start = _answers(answers, context, f"{where}, column '{names[3]}'") if has_answers else ([], 0)
        rows.append(Row(ids[row], question, context, texts, start))
    return rows


def _answers(cell: Any, context: str, where: str) -> tuple[list[str], int]:
    """The answers' texts, and where the first begins. A cell of a csv file is JSON."""
    try:
        cell = json.loads(cell) if isinstance(cell, str) else cell
        texts, starts = list(cell["text"]), [int(start) for start in cell["answer_start"]]
        is_read = len(texts) == len(starts) and all(isinstance(text, str) for text in texts)
    except (ValueError, TypeError, KeyError):
        is_read = False
    if not is_read:
        raise UserError(f"{where} must be {FORM}, got {str(cell)[:80]}.")
    if not any(text.strip() for text in texts):
        raise UserError(f"{where} has no answer. Questions without one are not supported; drop the row.")
    for text, start in zip(texts, starts):
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            raise UserError(
                f"{where}: answer_start {start} does not match the text: the answer is {text[:40]!r}, and there the "
                f"context has {found[:40]!r}. Count characters from 0, of the context as it stands in the file."
            )
    first = next(place for place, text in enumerate(texts) if text.strip())
    return texts, starts[first] + len(texts[first]) - len(texts[first].lstrip())


def length_limit(
    data_args: DataTrainingArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int:
    """
    Tokens of question and context together.

    Raises:
        UserError: the model takes fewer than the flag asks for.
    """
    longest = longest_input(config, tokenizer)
    longest = None if longest is None or longest > 10**9 else longest  # a tokenizer without a limit
    if data_args.max_seq_length is None:
        return min(longest or LONGEST, LONGEST)
    if longest is not None and data_args.max_seq_length > longest:
        raise UserError(
            f"--max_seq_length {data_args.max_seq_length}: the model takes {longest} tokens. Give that, or a longer "
            "table of positions with scripts/extend_positions.py."
        )
    return data_args.max_seq_length


def encode(rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, part: str) -> Encoded:
    """
    Question, then context, of which the end is cut off at `limit` tokens.

    Raises:
        UserError: the tokenizer does not say where its tokens stand, or a question leaves no room for its context.
    """
    if not tokenizer.is_fast:
        raise UserError("the tokenizer does not say where its tokens stand: name a fast one with --tokenizer_name.")
    columns: dict[str, list] = {}
    offsets, is_whole = [], []
    for place, row, tokens, encoding in _in_pieces(rows, tokenizer, limit, part):
        segments = encoding.sequence_ids
        first = segments.index(1) if 1 in segments else 0
        stop = first + segments.count(1)
        if first == stop:
            raise UserError(f"the {part} data: the tokenizer makes no token of the context of row {place}; drop it.")
        answer = next((text.strip() for text in row.answers if text.strip()), None)
        if answer is not None:
            begin = encoding.char_to_token(row.start, 1)
            end = encoding.char_to_token(row.start + len(answer) - 1, 1)
            is_whole.append(begin is not None and end is not None)
            tokens["start_positions"], tokens["end_positions"] = (begin, end) if is_whole[-1] else (0, 0)
        offsets.append(np.array(encoding.offsets[first:stop], dtype=np.int32))
        for name, value in (tokens | {"row": place, "first": first, "stop": stop}).items():
            columns.setdefault(name, []).append(value)
    return Encoded(to_dataset(columns), offsets, is_whole)


def _in_pieces(
    rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, part: str
) -> Iterator[tuple[int, Row, dict[str, Any], Any]]:
    """Of each row its place, itself, its columns for the model, and its encoding."""
    extra = tokenizer.num_special_tokens_to_add(pair=True)
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[begin : begin + ROWS_AT_ONCE]
        questions = [row.question.strip() for row in some]
        lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]]
        if too_long := [begin + place for place, length in enumerate(lengths) if length + extra >= limit]:
            raise UserError(
                f"the {part} data: the questions of {named(too_long)}, leave no room for a context within {limit} "
                "tokens; shorten them, or give a larger --max_seq_length."
            )
        encoded = tokenizer(
            questions, [row.context for row in some], truncation="only_second", max_length=limit, verbose=False
        )
        for place, row in enumerate(some):
            tokens = {name: np.array(values[place], dtype=np.int32) for name, values in encoded.items()}
            yield begin + place, row, tokens, encoded.encodings[place]


def report_lengths(encoded: Encoded, part: str, limit: int) -> None:
    """Prints how long the rows are, and how many answers are cut off."""
    lengths = [len(ids) for ids in encoded.data["input_ids"][:]]
    print(f"{part}: {len(lengths)} questions, {np.median(lengths):.0f} tokens in the middle, {max(lengths)} at most")
    if cut := encoded.is_whole.count(False):
        what = "are not trained on" if part == "train" else "count as wrong"
        print(f"  cut to {limit} tokens: {cut} answers are behind the end and {what}")


def rows_to_train_on(encoded: Encoded) -> Dataset:
    """
    The columns that a model takes, of the rows whose answer is among the tokens.

    Raises:
        UserError: there are none.
    """
    kept = [row for row, is_whole in enumerate(encoded.is_whole) if is_whole]
    if not kept:
        raise UserError("no training row has its answer among the tokens read; give a larger --max_seq_length.")
    return encoded.data.remove_columns(["row", "first", "stop"]).select(kept)
