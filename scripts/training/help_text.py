# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`--help` of a script that trains: first what people need, then the script's other flags, last the Trainer's."""

import argparse
import copy
import dataclasses
import re

from transformers import HfArgumentParser, TrainingArguments


# The flags that most runs are made of; a script shows those that it has.
FIRST = {
    "your data": (
        "train_file",
        "test_file",
        "text_column_names",
        "text_column_name",
        "label_column_name",
        "max_seq_length",
        "block_size",
    ),
    "the model": ("model_name_or_path", "from_scratch", "config_overrides"),
    "training": ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "class_weights"),
    "results": ("output_dir", "do_predict", "resume_from_checkpoint"),
}
RULE = "-" * 79


class FlagParser(HfArgumentParser):
    """An `HfArgumentParser` whose usage is one line and whose help begins with what people need."""

    def __init__(self, argument_classes: tuple[type, ...]):
        super().__init__(argument_classes, usage="%(prog)s [--flag value ...], or %(prog)s settings.json")

    def format_usage(self) -> str:
        return f"{super().format_usage().rstrip()}; --help lists the flags\n"

    def format_help(self) -> str:
        trainers = {field.name for field in dataclasses.fields(TrainingArguments)}
        actions = {action.dest: action for action in self._actions if action.dest != "help"}
        first = {name for names in FIRST.values() for name in names}
        formatter = argparse.HelpFormatter(self.prog, max_help_position=34, width=100)
        formatter.add_usage(self.usage, [], [])
        for title, names in FIRST.items():
            _add(formatter, title, [actions[name] for name in names if name in actions])
        _add(formatter, "more of this script", [a for n, a in actions.items() if n not in first | trainers])
        formatter.add_text(RULE)
        trainers_actions = [action for name, action in actions.items() if name in trainers - first]
        _add(formatter, "of the Transformers Trainer, whose documentation says more", trainers_actions, brief=True)
        return formatter.format_help()


def _add(formatter: argparse.HelpFormatter, title: str, actions: list[argparse.Action], brief: bool = False) -> None:
    formatter.start_section(title)
    formatter.add_arguments([_shown(action, brief) for action in actions])
    formatter.end_section()


def _shown(action: argparse.Action, brief: bool) -> argparse.Action:
    """Under one name, with its default; `brief`: the first sentence alone."""
    shown = copy.copy(action)
    shown.option_strings = action.option_strings[:1]
    shown.metavar = _kind(action)
    if action.nargs == "?":  # a switch
        shown.nargs = 0
    text = " ".join((action.help or "").split())
    if brief:
        text = re.split(r"\. |: [-*]|; ", text)[0].rstrip(".") + "." if text else ""
        text = text if len(text) < 120 else f"{text[:116].rsplit(' ', 1)[0]} ..."
    if action.default not in (None, False, "", argparse.SUPPRESS, dataclasses.MISSING):
        text = f"{text} [{action.default}]"
    shown.help = text.replace("%", "%%")
    shown.choices = None
    return shown


def _kind(action: argparse.Action) -> str:
    kind = getattr(action.type, "__name__", "")
    return {"int": "N", "float": "X"}.get(kind, "TEXT")
