# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The flags of a script that trains: from the command line or a JSON file, as for Transformers' own scripts."""

import dataclasses
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from common.errors import UserError
from common.run_record import write_json
from training.help_text import FlagParser


# Flags that do not change what is trained: a run may resume with other values.
CHANGEABLE_FLAGS = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "results_file",
    "compare_with",
    "do_eval",
    "do_predict",
    "max_eval_samples",
    "max_predict_samples",
    "id_column_name",
    "token",
    "cache_dir",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "report_to",
    "disable_tqdm",
    "preprocessing_num_workers",
    "dataloader_num_workers",
}
# One flag under two names: each script takes both.
OTHER_NAMES = {"text_column_name": "text_column_names", "text_column_names": "text_column_name"}


def parse(*argument_classes: type) -> tuple[Any, ...]:
    """
    One object of each class and, last, the given flags by name. Without `do_train`, `do_eval` and `do_predict`, all
    three are done.

    Raises:
        UserError: the JSON file cannot be read, a flag is not known, or a value is refused.
    """
    parser, given = FlagParser(argument_classes), _under_known_names(given_flags(sys.argv[1:]), argument_classes)
    try:
        if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
            parsed = parser.parse_dict(given)
        else:
            arguments = _under_known_names(sys.argv[1:], argument_classes)
            *parsed, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
            if unknown:
                raise UserError(f"not understood: {' '.join(unknown)}.{_did_you_mean(unknown, argument_classes)}")
    except ValueError as error:
        raise UserError(str(error)) from None
    training_args = next(arguments for arguments in parsed if hasattr(arguments, "do_train"))
    # Their values do not say what was asked for: the Trainer sets `do_eval` whenever there is an `eval_strategy`.
    if not given.keys() & {"do_train", "do_eval", "do_predict"}:
        training_args.do_train = training_args.do_eval = training_args.do_predict = True
    return (*parsed, given)


def _under_known_names(given: Any, argument_classes: tuple[type, ...]) -> Any:
    """Flags by name, or a command line, with the name of `OTHER_NAMES` that the classes have."""
    fields = {field.name for kind in argument_classes for field in dataclasses.fields(kind)}
    names = {name: other for name, other in OTHER_NAMES.items() if name not in fields and other in fields}
    if isinstance(given, dict):
        return {names.get(name, name): value for name, value in given.items()}

    def renamed(argument: str) -> str:
        name, separator, value = argument.partition("=")
        known = names.get(name[2:].replace("-", "_")) if name.startswith("--") else None
        return f"--{known}{separator}{value}" if known else argument

    return [renamed(argument) for argument in given]


def given_flags(arguments: list[str]) -> dict[str, Any]:
    """`--a-b 1 2 --c=x --d` to `{"a_b": ["1", "2"], "c": ["x"], "d": []}`; a JSON file gives its content."""
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        try:
            return json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{arguments[0]} cannot be read as JSON: {error}.") from None
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, separator, value = argument[2:].partition("=")
            values = given.setdefault(name.replace("-", "_"), [])
            values[:] = [value] if separator else []
        else:
            values.append(argument)
    return given


def check_limits(arguments: Any, *names: str) -> None:
    """
    Raises:
        UserError: a limit that is given is below 1.
    """
    for name in names:
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(arguments, name)}; leave it out to use all.")


def _did_you_mean(unknown: list[str], argument_classes: tuple[type, ...]) -> str:
    known = [f"--{field.name}" for kind in argument_classes for field in dataclasses.fields(kind)]
    close = [match for word in unknown for match in difflib.get_close_matches(word, known, 1)]
    return f" Did you mean {' '.join(close)}?" if close else " --help lists the flags."


def record_model_and_data(given: dict[str, Any], training_args: TrainingArguments, is_resuming: bool) -> None:
    """
    Records the model and data of a training run, and refuses to resume it with others: its tokenizer and weights would
    not fit.

    Raises:
        UserError: the run in `output_dir` has another model or other data; names the flags that differ.
    """
    training = {field.name for field in dataclasses.fields(training_args)}
    now = {name: value for name, value in training_flags(given).items() if name not in training}
    path = Path(training_args.output_dir) / "model_and_data.json"
    if is_resuming and path.is_file():
        then = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(name for name in {**then, **now} if then.get(name) != now.get(name))
        if differ:
            changes = "; ".join(f"--{name} was {_value(then, name)} and is {_value(now, name)}" for name in differ)
            raise UserError(
                f"the run in {training_args.output_dir} cannot resume with another model or other data: {changes}. "
                "Give the same flags, or another --output_dir."
            )
    elif training_args.process_index == 0:
        write_json(path, now)


def _value(flags: dict[str, Any], name: str) -> str:
    value = flags.get(name)
    return "not given" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def training_flags(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that must be the same when a training run resumes."""
    return {name: value for name, value in sorted(given.items()) if name not in CHANGEABLE_FLAGS}
