# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Labelled text as a task: checked, its classes numbered, and a part held out, before anything is written."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from common.errors import UserError
from training.file_rows import FileRows, named, to_dataset, with_column
from training.labels import (
    Label,
    are_vectors,
    class_names,
    classes_in,
    from_vectors,
    natural_order,
    number_targets,
)
from training.texts import check_columns, empty_rows, join_texts


VALIDATION_FRACTION = 0.1


@dataclass
class Task:
    """
    Splits with the columns `text`, `label` (`None` where a row of the test part has none; the column is missing where
    no row has), `row` (its number in the file, from 0) and perhaps `id`, and what a label is.
    """

    splits: DatasetDict
    problem_type: str  # single_label_classification, multi_label_classification or regression
    label_names: list[str] | None  # None for a regression


@dataclass
class Head:
    """What a trained model predicts."""

    problem_type: str
    label_names: list[str] | None


def text_and_label(
    data: Dataset | FileRows,
    text_columns: list[str],
    label_column: str,
    separator: str,
    name: str,
    may_lack_label: bool = False,
    regression: bool = False,
    id_column: str | None = None,
) -> Dataset:
    """
    The text columns, several joined by `separator`, as `text`; the label as `label`, if there is one or must be; the
    number of the row as `row`; `id_column`, if given, as `id`. Says how many texts are empty.

    Raises:
        UserError: a column is missing; names it, the columns there are, and the flag. Or rows have no label or a cell
        is
            of the wrong kind; names the rows.
    """
    labelled = label_column in data.column_names or not may_lack_label
    flags = dict.fromkeys(text_columns, "--text_column_names")
    if labelled:
        flags[label_column] = "--label_column_name"
    if id_column is not None:
        flags[id_column] = "--id_column_name"
    check_columns(data, flags, name)
    columns = {"text": join_texts(data, text_columns, separator, name), "row": list(range(len(data)))}
    if id_column is not None:
        columns["id"] = ["" if cell is None else str(cell) for cell in data[id_column]]
    if labelled:
        read = number_targets if regression else class_names
        labels = read(data[label_column], data.features.get(label_column), name)
        missing = [row for row, label in enumerate(labels) if label is None]
        if missing and not may_lack_label:
            raise UserError(
                f"{name}: {len(missing)} rows have no label in column '{label_column}' ({named(missing)}); fill or "
                "drop them."
            )
        if len(missing) < len(labels):
            columns["label"] = labels
            if missing:
                print(f"{name}: {named(missing)}, have no label; they are predicted, but do not count in the scores.")
    if empty := empty_rows(columns["text"]):
        print(f"{name}: {len(empty)} of {len(data)} texts are empty ({named(empty)}).")
    return to_dataset(columns)


def make_task(splits: DatasetDict, regression: bool, head: Head | None = None) -> Task:
    """
    Finds what the labels are and numbers them: as the training part has them, or as the trained `head` does. A test
    part may have none. Says which classes have a single example.

    Raises:
        UserError: only one class in training, or a label in another part that training, or the model, does not know.
    """
    splits = DatasetDict(splits)
    if head is not None:
        kind, names, owner = head.problem_type, head.label_names, "the model"
    else:
        kind, names, owner = ("regression", None, "") if regression else (*_classes(splits), "training")
    if kind == "regression":
        return Task(splits, kind, None)
    if head is None:
        if len(names) < 2:
            raise UserError(
                f"the training data has one class only ({names[0] if names else 'none'}); it needs two or more."
            )
        _tell_single_examples(splits["train"]["label"][:])
    several = kind == "multi_label_classification"
    number = {name: index for index, name in enumerate(names)}
    if all(name == f"LABEL_{index}" for name, index in number.items()):  # a model that was not told the names
        number |= {str(index): index for index in range(len(names))}

    not_known = "training never saw" if head is None else "the model does not know"

    def numbers(labels: list[Label], part: str) -> list:
        unknown = {row: missing for row, label in enumerate(labels) if (missing := classes_in(label) - set(number))}
        if unknown:
            told = sorted(set().union(*unknown.values()), key=natural_order)
            raise UserError(
                f"the {part} data has labels that {not_known}: "
                f"{', '.join(told[:10])} ({named(list(unknown))}). {owner.capitalize()} has: {', '.join(names)}. "
                + ("Add rows with them to the training data, or drop these." if head is None else LEAVE_OUT)
            )
        too_many = [row for row, label in enumerate(labels) if label is not None and len(classes_in(label)) != 1]
        if too_many and not several:
            raise UserError(f"the {part} data has several labels or none in {named(too_many)}; {owner} has one a row.")
        sets = [label if label is None else {number[name] for name in classes_in(label)} for label in labels]
        if several:
            return [
                label if label is None else [float(index in label) for index in range(len(names))] for label in sets
            ]
        return [label if label is None else label.pop() for label in sets]

    by_place = _read_vectors(splits, names) if several else lambda labels: labels
    for part, data in splits.items():
        if "label" in data.column_names:
            splits[part] = with_column(data, "label", numbers(by_place(data["label"][:]), part))
    return Task(splits, kind, names)


LEAVE_OUT = "Correct them, or leave the label column out: rows without a label are predicted all the same."


def _classes(splits: DatasetDict) -> tuple[str, list[str]]:
    """What the training part shows: the kind of task, and the classes in order."""
    labels = splits["train"]["label"][:]
    if not any(isinstance(label, list) for label in labels):
        _refuse_measurements(labels)
        return "single_label_classification", sorted(set(labels), key=natural_order)
    if are_vectors(labels):
        print(f"The labels are read as vectors of zeros and ones, with a place for each of {len(labels[0])} classes.")
        return "multi_label_classification", [str(place) for place in range(len(labels[0]))]
    return "multi_label_classification", sorted(set().union(*map(classes_in, labels)), key=natural_order)


def _refuse_measurements(labels: list[str]) -> None:
    """Numbers with fractions, most of which stand once, are no classes; `1.10` among a few versions is one."""
    try:
        fractions = any(float(label) != int(float(label)) for label in labels)
    except (ValueError, OverflowError):
        return
    if fractions and len(set(labels)) > max(2, len(labels) / 2):
        raise UserError(
            f"the labels are {len(set(labels))} different numbers with fractions in {len(labels)} rows, so no "
            "classes: predict them with --do_regression."
        )


def _read_vectors(splits: DatasetDict, names: list[str]) -> Callable[[list[Label]], list[Label]]:
    """How the lists of all parts are read: as vectors, if those of the first labelled part are and fit the classes."""
    first = next((data["label"][:] for data in splits.values() if "label" in data.column_names), [])
    length = next((len(label) for label in first if label is not None), 0)
    if length != len(names) or not are_vectors(first):
        return lambda labels: labels

    def read(labels: list[Label]) -> list[Label]:
        if not are_vectors(labels) or any(label is not None and len(label) != length for label in labels):
            raise UserError(f"the labels are vectors of {length} zeros and ones in one part, but not in all.")
        return from_vectors(labels, names)

    return read


def _tell_single_examples(labels: list[Any]) -> None:
    counts = Counter(name for label in labels for name in classes_in(label))
    single = sorted((name for name, count in counts.items() if count == 1), key=natural_order)
    if single:
        told = ", ".join(single[:10]) + (f" and {len(single) - 10} more" if len(single) > 10 else "")
        print(f"Classes with a single training example, too few to learn from: {told}.")


def hold_out_validation(train: Dataset, seed: int, regression: bool = False) -> tuple[Dataset, Dataset]:
    """
    A tenth of the training data, at least one row, each class in its share where the labels allow it. No class is held
    out whole.

    Raises:
        UserError: no row can be held out.
    """
    if len(train) < 2:
        raise UserError("the training data has one row only; it needs more, or give --validation_file as well.")
    labels = train["label"][:]  # all at once: a column hands out cells one by one, each from a table of its own
    names = [str(label) for label in labels]
    size = max(1, round(VALIDATION_FRACTION * len(train)))
    classes = Counter(names)
    can_stratify = min(classes.values()) >= 2 and len(classes) <= min(size, len(train) - size)
    kept, held_out = train_test_split(
        range(len(train)), test_size=size, random_state=seed, stratify=names if can_stratify else None
    )
    if not regression:
        classes_of = [classes_in(label) for label in labels]
        seen = set().union(*(classes_of[row] for row in kept))
        for row in list(held_out):
            if not classes_of[row] <= seen:  # the model could not learn it
                seen |= classes_of[row]
                held_out.remove(row)
                kept.append(row)
    if not held_out:
        raise UserError("no class of the training data has a row to spare for validation; give --validation_file.")
    return train.select(kept), train.select(held_out)
