# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The cells of a label column as classes by name, several a row where they are lists, or as numbers to predict."""

import ast
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel

from common.errors import UserError
from training.file_rows import named


LARGEST = float(np.finfo(np.float32).max)  # in which the loss is computed
Label = str | list[str] | None  # a class, several classes, or an empty cell


def class_names(cells: Iterable[Any], feature: Any, data: str) -> list[Label]:
    """
    Each cell's class as its text without the space around it, a list of them where any cell is a list, or `None` where
    it is empty. `feature` says how `datasets` describes the column: numbers of a `ClassLabel` become its names, -1 is
    empty. Whole numbers held as 1.0 and 2.0, as pandas holds a column with empty cells, are 1 and 2.

    Raises:
        UserError: a cell is no class; names the rows of `data`.
    """
    inside = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    classes = next((one for one in (feature, inside) if isinstance(one, ClassLabel)), None)
    names = classes.names if classes else None
    labels, wrong, fractions = [], [], []
    for row, cell in enumerate(cells):
        try:
            if isinstance(cell, (list, tuple, np.ndarray)):
                several = [_class_name(one, names) for one in cell]
                if None in several and several != [None]:
                    wrong.append(row)
                labels.append(None if several == [None] else several)
            else:
                labels.append(_class_name(cell, names))
        except FractionError:
            fractions.append(row)
        except ValueError:
            wrong.append(row)
    if fractions:
        raise UserError(
            f"{data}: the labels are numbers with fractions ({named(fractions)}), so no classes: predict them with "
            "--do_regression."
        )
    if wrong:
        known = f" of the {len(names)} of the column" if names else ", a number or a list of them"
        raise UserError(f"{data}: no class{known} is the label of {named(wrong)}.")
    if feature is None and not any(isinstance(label, list) for label in labels):
        labels = _lists_in_words(labels)
    if any(isinstance(label, list) for label in labels):
        return [[label] if isinstance(label, str) else label for label in labels]
    return labels


class FractionError(ValueError):
    """A number with a fraction, where a class is expected."""


def _class_name(cell: Any, names: list[str] | None) -> str | None:
    if cell is None:
        return None
    if isinstance(cell, str):
        return cell.strip() or None
    if names is not None:
        if cell != -1 and not 0 <= cell < len(names):
            raise ValueError
        return None if cell == -1 else names[cell]
    if isinstance(cell, bool) or not isinstance(cell, numbers.Number):
        if isinstance(cell, (dict, list, tuple, np.ndarray, bytes)):
            raise ValueError
        return str(cell)
    if math.isnan(cell):
        return None
    if math.isinf(cell) or cell != int(cell):
        raise FractionError
    return str(int(cell))


def _lists_in_words(labels: list[Label]) -> list[Label]:
    """Lists, where every cell of a csv file is one in Python's words: `['cats', 'dogs']`, as pandas writes them."""
    several = []
    for label in labels:
        if label is None:
            several.append(None)
            continue
        if not (label.startswith("[") and label.endswith("]")):
            return labels
        try:
            items = ast.literal_eval(label)
            several.append([_class_name(one, None) for one in items])
        except (ValueError, SyntaxError, RecursionError):
            return labels
    return several if any(several) else labels


def number_targets(cells: Iterable[Any], feature: Any, data: str) -> list[float | None]:
    """
    Each cell as a number to predict, or `None` where it is empty.

    Raises:
        UserError: the column holds classes, or a cell is no number, not finite, or beyond single precision; names the
            rows of `data`.
    """
    if isinstance(feature, ClassLabel):
        raise UserError("--do_regression needs numbers as labels, but the label column holds classes.")
    targets, wrong, cells_of = [], [], {}
    for row, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            targets.append(None)
            continue
        try:
            target = float(cell)
        except (TypeError, ValueError, OverflowError):
            target = math.nan
        if not abs(target) <= LARGEST:
            wrong.append(row)
            cells_of[row] = cell
        targets.append(target)
    if wrong:
        raise UserError(
            f"--do_regression needs numbers as labels, finite ones: {data} has {str(cells_of[wrong[0]])[:40]!r} in "
            f"row {wrong[0]} ({named(wrong)}); correct or drop {'them' if len(wrong) > 1 else 'it'}."
        )
    return targets


def are_vectors(labels: Sequence[Label]) -> bool:
    """
    Whether the lists are vectors with a 1 for each class that a row has: all of one length, two or more, of zeros and
    ones. As lists of class numbers they would be of no use.
    """
    lists = [label for label in labels if label is not None]
    lengths = {len(label) if isinstance(label, list) else 0 for label in lists}
    return len(lengths) == 1 and min(lengths) >= 2 and all(set(label) <= ZEROS_AND_ONES for label in lists)


ZEROS_AND_ONES = {"0", "1", "False", "True"}


def from_vectors(labels: Sequence[Label], names: Sequence[str]) -> list[Label]:
    """The classes where a vector has a 1."""
    return [
        label if label is None else [name for name, one in zip(names, label) if one in ("1", "True")]
        for label in labels
    ]


def classes_in(label: Label) -> set[str]:
    """The classes of a row: those in a list, the one, or none."""
    if label is None:
        return set()
    return set(map(str, label if isinstance(label, list) else [label]))


def natural_order(name: str) -> tuple:
    """Numbers by value, before words."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    return (1, 0.0, name) if math.isnan(value) else (0, value, name)
