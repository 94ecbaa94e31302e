# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Labelled text from files, a dataset or the shipped task, checked before anything is written."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from sklearn.model_selection import train_test_split

from common.errors import UserError


FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
VALIDATION_FRACTION = 0.1


@dataclass
class Task:
    """Splits with the columns `text` and `label`, and the kind of label."""

    splits: DatasetDict
    problem_type: str  # single_label_classification, multi_label_classification or regression
    label_names: list[str] | None  # None for a regression


def read_file(path: str) -> Dataset:
    """
    Reads a csv, tsv, json, jsonl or parquet file, or a txt file as one document in the column `text`.

    Raises:
        UserError: the file is missing, empty, unsupported or not UTF-8; names the file and the fix.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file {path}.")
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{path} must end in one of {', '.join(FORMATS)}.")
    kind = FORMATS[file.suffix.lower()]
    if file.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    if kind != "parquet":
        try:
            file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, for example with "
                f"`iconv -f latin1 -t utf-8`."
            ) from None
    options = {}
    if kind == "csv":
        options["delimiter"] = "\t" if file.suffix.lower() == ".tsv" else ","
    elif kind == "text":
        options["sample_by"] = "document"
    try:
        data = load_dataset(kind, data_files=path, split="train", **options)
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"{path} has no rows; it needs at least one below the column names.") from None
        raise UserError(f"{path} cannot be read as {kind}: {error.__cause__ or error}") from None
    return data


def text_and_label(
    data: Dataset, text_columns: list[str], label_column: str, separator: str, name: str, may_lack_label: bool = False
) -> Dataset:
    """
    Keeps the label column as `label` and the text columns, joined by `separator`, as `text`. Without a label column
    (`may_lack_label`), only `text`.

    Raises:
        UserError: a column is missing; names it, the existing columns, and the flag.
    """
    labelled = label_column in data.column_names or not may_lack_label
    columns = [(column, "--text_column_names") for column in text_columns]
    for column, flag in columns + [(label_column, "--label_column_name")] * labelled:
        if column not in data.column_names:
            raise UserError(
                f"{name} has no column '{column}'; its columns are {', '.join(data.column_names)}. Name the right one "
                f"with {flag}.{_other_delimiter(data.column_names)}"
            )
    texts = [
        separator.join("" if part is None else str(part) for part in parts)
        for parts in zip(*(data[column] for column in text_columns))
    ]
    if not labelled:
        return Dataset.from_dict({"text": texts})
    labels = data[label_column]
    missing = sum(label is None for label in labels)
    if missing:
        raise UserError(f"{name}: {missing} rows have no label in column '{label_column}'; fill or drop them.")
    labels = list(labels)
    if len({type(label) for label in labels}) > 1:  # 1 and "one"
        labels = [str(label) for label in labels]
    kept = Dataset.from_dict({"text": texts, "label": labels})
    feature = data.features[label_column]
    return kept.cast_column("label", feature) if isinstance(feature, ClassLabel) else kept


def _other_delimiter(columns: list[str]) -> str:
    """A hint if a csv file seems to have another delimiter."""
    if len(columns) > 1 or not any(mark in columns[0] for mark in ";\t|"):
        return ""
    return " Does it have another delimiter? A csv file needs commas, a tsv file tabs."


def make_task(splits: DatasetDict, regression: bool) -> Task:
    """
    Determines the kind of labels and numbers them. A test part may have none.

    Raises:
        UserError: training has only one class, or another part has a label that training lacks.
    """
    labelled = {name: part for name, part in splits.items() if "label" in part.column_names}
    without = {name: part for name, part in splits.items() if name not in labelled}
    if regression:
        numbers = {name: _as_numbers(part) for name, part in labelled.items()}
        return Task(DatasetDict(numbers | without), "regression", None)
    multi_label = isinstance(labelled["train"]["label"][0], list)
    if not multi_label:
        labelled = {name: _labels_by_name(part) for name, part in labelled.items()}
    labels = labelled["train"]["label"]
    known = sorted(set().union(*map(classes_in, labels)), key=_natural_order)
    if len(known) < 2:
        raise UserError(
            f"the training data has one class only ({known[0] if known else 'none'}); it needs two or more."
        )
    number = {name: index for index, name in enumerate(known)}
    for name, part in labelled.items():
        unknown = sorted(set().union(*map(classes_in, part["label"])) - set(known))
        if unknown:
            raise UserError(
                f"the {name} data has labels that training never saw: {', '.join(unknown[:10])}. Training has: "
                f"{', '.join(known)}. Add rows with them to the training data, or drop these."
            )

    def encode(row: dict) -> dict:
        if multi_label:
            return {"label": [float(name in map(str, row["label"])) for name in known]}
        return {"label": number[str(row["label"])]}

    numbered = {name: part.map(encode, remove_columns=["label"]) for name, part in labelled.items()}
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    return Task(DatasetDict(numbered | without), kind, known)


def classes_in(label: Any) -> set[str]:
    """The classes of a row: a list of them, or one."""
    return set(map(str, label if isinstance(label, list) else [label]))


def hold_out_validation(train: Dataset, seed: int, regression: bool = False) -> tuple[Dataset, Dataset]:
    """
    Holds out a tenth of the training data, at least one row, stratified by class if possible. No class is held out
    completely.

    Raises:
        UserError: no row can be held out.
    """
    if len(train) < 2:
        raise UserError("the training data has one row only; it needs more, or give --validation_file as well.")
    labels = [str(label) for label in train["label"]]
    size = max(1, round(VALIDATION_FRACTION * len(train)))
    classes = Counter(labels)
    can_stratify = min(classes.values()) >= 2 and len(classes) <= min(size, len(train) - size)
    kept, held_out = train_test_split(
        range(len(train)), test_size=size, random_state=seed, stratify=labels if can_stratify else None
    )
    if not regression:
        classes_of = [classes_in(label) for label in train["label"]]
        seen = set().union(*(classes_of[row] for row in kept))
        for row in list(held_out):
            if not classes_of[row] <= seen:  # the model could not learn it
                seen |= classes_of[row]
                held_out.remove(row)
                kept.append(row)
    if not held_out:
        raise UserError("no class of the training data has a row to spare for validation; give --validation_file.")
    return train.select(kept), train.select(held_out)


def _as_numbers(part: Dataset) -> Dataset:
    if isinstance(part.features["label"], ClassLabel):
        raise UserError("--do_regression needs numbers as labels, but the label column holds classes.")
    try:
        numbers = [float(label) for label in part["label"]]
    except (TypeError, ValueError) as error:
        raise UserError(f"--do_regression needs numbers as labels: {error}.") from None
    return part.remove_columns("label").add_column("label", numbers)


def _labels_by_name(part: Dataset) -> Dataset:
    """
    The names of a `ClassLabel` column; other labels as stripped text. Whole numbers that were read as 1.0 and 2.0, for
    example because a row of the file had none, become 1 and 2.

    Raises:
        UserError: the labels have fractions.
    """
    feature, labels = part.features["label"], part["label"]
    if isinstance(feature, ClassLabel):
        names = [feature.int2str(label) for label in labels]
    elif feature.dtype.startswith("float"):
        if any(label != int(label) for label in labels):
            raise UserError("the labels are numbers with fractions, not classes: predict them with --do_regression.")
        names = [str(int(label)) for label in labels]
    else:
        names = [str(label).strip() for label in labels]
    return part.remove_columns("label").add_column("label", names)


def _natural_order(name: str) -> tuple:
    """Numbers by value, before words."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
