# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Labels as files have them: classes by name, several a row, numbers to predict, and cells without one."""

import json
from pathlib import Path

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from training.classification_data import Head, Task
from training.classification_inputs import DataTrainingArguments, load_task


def load(train: Path | None = None, head: Head | None = None, **flags) -> Task:
    paths = {f"{part}_file": str(path) for part, path in flags.items() if isinstance(path, Path)}
    others = {name: value for name, value in flags.items() if not isinstance(value, Path)}
    if train is not None:
        paths |= {"train_file": str(train), "validation_file": paths.get("validation_file", str(train))}
    return load_task(DataTrainingArguments(**paths, **others), {}, head)


def lines(path: Path, labels: list, texts: list | None = None) -> Path:
    texts = texts or [f"text {row}" for row in range(len(labels))]
    path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in zip(texts, labels)))
    return path


def table(path: Path, labels: list[str]) -> Path:
    path.write_text("text,label\n" + "".join(f"text {row},{label}\n" for row, label in enumerate(labels)))
    return path


def sets(task: Task, part: str = "train") -> list:
    """The classes of each row, by name."""
    if task.problem_type == "single_label_classification":
        return [None if label is None else task.label_names[label] for label in task.splits[part]["label"]]
    return [
        None if label is None else [name for name, one in zip(task.label_names, label) if one]
        for label in task.splits[part]["label"]
    ]


@pytest.mark.parametrize(
    "labels",
    [
        ["None", "sport"],
        ["NA", "null"],
        ["007", "7"],
        ["true", "false"],
        ["2026-01-02", "02.01.2026"],
        ["1.10", "1.1"],
        ["1.0", "1"],
        ["1e5", "100000"],
        ["NaN", "inf"],
        ["[spam]", "ham"],
        ["-1", "0"],
        ["a\u00a0b", "ä"],
    ],
    ids=lambda labels: labels[0],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_class_is_the_text_of_its_cell(tmp_path, labels, suffix):
    path, labels = tmp_path / f"train{suffix}", labels * 4
    if suffix == ".csv":
        table(path, labels)
    elif suffix == ".jsonl":
        lines(path, labels)
    else:
        Dataset.from_dict({"text": labels, "label": labels}).to_parquet(path)
    assert sets(load(path)) == labels


def test_classes_are_in_natural_order(tmp_path):
    task = load(table(tmp_path / "train.csv", ["10", "9", "b", "A", "nan"]))
    assert task.label_names == ["9", "10", "A", "b", "nan"]


def test_lists_are_several_labels(tmp_path):
    path = tmp_path / "train.jsonl"
    for labels, names in (
        ([[0], [1, 2], [], [2]], ["0", "1", "2"]),
        ([["cats"], ["dogs", "cats"], "dogs"], ["cats", "dogs"]),
        ([["a, b"], ["a", "b"]], ["a", "a, b", "b"]),
    ):
        task = load(lines(path, labels))
        assert task.problem_type == "multi_label_classification" and task.label_names == names
        expected = [set(map(str, label if isinstance(label, list) else [label])) for label in labels]
        assert list(map(set, sets(task))) == expected


def test_lists_of_class_labels_have_their_names(tmp_path):
    path = tmp_path / "train.parquet"
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["neg", "pos", "odd"]))})
    Dataset.from_dict({"text": list("abc"), "label": [[0], [1, 2], []]}, features=features).to_parquet(path)
    assert sets(load(path)) == [["neg"], ["odd", "pos"], []]
    rows = {"text": list("ab"), "label": [[-1], [1]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    assert sets(load(path, test=tmp_path / "test.parquet"), "test") == [None, ["pos"]]
    rows = {"text": list("ab"), "label": [[1], [-1, 1]]}
    Dataset.from_dict(rows, features=features).to_parquet(path)
    with pytest.raises(SystemExit, match="train data: no class of the 3 .* is the label of row 1, counted from 0"):
        load(path)


@pytest.mark.parametrize(
    "vectors",
    [[[0, 1, 0], [1, 1, 0], [0, 0, 0]], [[0.0, 1.0, 0.0], [1.0, 1, 0], [0, 0, 0]], [[False, True, False]] * 3],
    ids=["numbers", "fractions", "truth values"],
)
def test_vectors_of_zeros_and_ones(tmp_path, capsys, vectors):
    task = load(lines(tmp_path / "train.jsonl", vectors), test=lines(tmp_path / "test.jsonl", [[1, 0, 0], None]))
    assert "vectors of zeros and ones, with a place for each of 3 classes" in capsys.readouterr().out
    assert task.label_names == ["0", "1", "2"]
    assert list(task.splits["train"]["label"]) == [[float(one) for one in vector] for vector in vectors]
    assert sets(task, "test") == [["0"], None]
    with pytest.raises(SystemExit, match="vectors of 3 zeros and ones in one part, but not in all"):
        load(tmp_path / "train.jsonl", test=lines(tmp_path / "test.jsonl", [[1, 0]]))


def test_lists_that_a_csv_holds_in_words(tmp_path):
    path = tmp_path / "train.csv"
    labels = [["cats", "dogs"], [], ["a, b"]]
    pandas.DataFrame({"text": list("abc"), "label": labels}).to_csv(path, index=False)
    assert sets(load(path)) == [["cats", "dogs"], [], ["a, b"]]
    table(path, ["[1]", "[2]", "none"])
    assert sets(load(path)) == ["[1]", "[2]", "none"], "not all are lists"


def class_label_table(path: Path, labels: list[int]) -> Path:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = {"text": [f"text {row}" for row in range(len(labels))], "label": labels}
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_labels_of_minus_one_are_none(tmp_path):
    train = class_label_table(tmp_path / "train.parquet", [0, 1] * 3)
    task = load(train, test=class_label_table(tmp_path / "test.parquet", [-1] * 3))
    assert task.label_names == ["neg", "pos"] and "label" not in task.splits["test"].column_names
    with pytest.raises(SystemExit, match=r"2 rows have no label in column 'label' \(rows 1, 3, counted from 0\)"):
        load(class_label_table(tmp_path / "gaps.parquet", [0, -1, 1, -1]))


@pytest.mark.parametrize("empty", ["csv", "spaces", "null", "missing", "pandas"])
def test_an_empty_cell_is_no_label(tmp_path, capsys, empty):
    def write(name: str, labels: list) -> Path:
        """Labels with `None` where there is none."""
        if empty in ("csv", "spaces"):
            blank = "" if empty == "csv" else "  "
            return table(tmp_path / f"{name}.csv", [blank if label is None else label for label in labels])
        path = tmp_path / f"{name}.jsonl"
        if empty == "pandas":  # 1.0, NaN
            path = path.with_suffix(".parquet")
            numbers = [None if label is None else float(label) for label in labels]
            pandas.DataFrame({"text": [f"text {row}" for row in range(len(labels))], "label": numbers}).to_parquet(
                path
            )
            return path
        lines(path, labels)
        if empty == "missing":
            path.write_text(path.read_text().replace(', "label": null', ""))
        return path

    train = write("train", ["1", "2"] * 3)
    task = load(train, test=write("test", ["1", None, "2", None]))
    assert "test data: rows 1, 3, counted from 0, have no label; they are predicted" in capsys.readouterr().out
    assert sets(task, "test") == ["1", None, "2", None]
    task = load(train, test=write("unlabelled", [None, None]))
    assert "label" not in task.splits["test"].column_names and list(task.splits["test"]["row"]) == [0, 1]
    many = write("many", ["1", "2"] + [None] * 12)
    words = r"the train data: 12 rows have no label in column 'label' \(rows 2, 3, .* 11 and 2 more, counted from 0\)"
    with pytest.raises(SystemExit, match=words):
        load(many)
    with pytest.raises(SystemExit, match="the validation data: 12 rows have no label"):
        load(train, validation=many)


def test_numbers_with_fractions_are_no_classes(tmp_path):
    with pytest.raises(SystemExit, match="6 different numbers with fractions in 6 rows.*--do_regression"):
        load(table(tmp_path / "train.csv", [f"{row}.5" for row in range(6)]))
    with pytest.raises(SystemExit, match=r"numbers with fractions \(rows 0, 2.*--do_regression"):
        load(lines(tmp_path / "train.jsonl", [0.5, 1, 2.5]))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", [float("nan"), float("inf"), -float("inf"), 1e39, "many"])
def test_targets_that_are_no_finite_numbers(tmp_path, target, suffix):
    path, targets = tmp_path / f"train{suffix}", [0.5, target, 2.5, target]
    if suffix == ".csv":
        table(path, [str(label) for label in targets])
    elif suffix == ".jsonl":
        lines(path, targets)
    else:
        targets = list(map(str, targets)) if isinstance(target, str) else targets
        Dataset.from_dict({"text": list("abcd"), "label": targets}).to_parquet(path)
    with pytest.raises(
        SystemExit, match=r"needs numbers as labels, finite ones: the train data has .*in row 1 \(rows 1, 3"
    ):
        load(path, do_regression=True)


def test_targets_are_read_as_numbers(tmp_path):
    train = table(tmp_path / "train.csv", ["007", "1e2", " 1.5", "-1"])
    task = load(train, test=table(tmp_path / "test.csv", ["1", ""]), do_regression=True)
    assert task.problem_type == "regression" and list(task.splits["train"]["label"]) == [7.0, 100.0, 1.5, -1.0]
    assert list(task.splits["test"]["label"]) == [1.0, None]


def test_what_is_thin_is_told(tmp_path, capsys):
    labels = ["a", "b"] * 5 + ["rare", "Rarer"]
    load(lines(tmp_path / "train.jsonl", labels, ["x"] * 10 + ["", " \n"]))
    printed = capsys.readouterr().out
    assert "Classes with a single training example, too few to learn from: Rarer, rare." in printed
    assert "the train data: 2 of 12 texts are empty (rows 10, 11, counted from 0)." in printed
    load(lines(tmp_path / "train.jsonl", ["a", "b"] * 2))
    assert "single" not in capsys.readouterr().out


def test_labels_that_training_never_saw_are_named_with_their_rows(tmp_path):
    train, test = table(tmp_path / "train.csv", ["a", "b"] * 2), table(tmp_path / "test.csv", ["a", "c", "d", "c"])
    words = r"test data has labels that training never saw: c, d \(rows 1, 2, 3, counted from 0\). Training has: a, b"
    with pytest.raises(SystemExit, match=words):
        load(train, test=test)
    words = r"labels that the model does not know: c, d \(rows 1.*\). The model has: a, b.*leave the label column out"
    with pytest.raises(SystemExit, match=words):
        load(test=test, head=Head("single_label_classification", ["a", "b"]))


def test_a_model_that_was_not_told_the_names_of_its_classes(tmp_path):
    head = Head("single_label_classification", ["LABEL_0", "LABEL_1"])
    task = load(test=table(tmp_path / "test.csv", ["1", "LABEL_0", "0"]), head=head)
    assert list(task.splits["test"]["label"]) == [1, 0, 0] and task.label_names == head.label_names


def test_several_labels_for_a_model_with_one_a_row(tmp_path):
    head, path = Head("single_label_classification", ["a", "b"]), tmp_path / "test.jsonl"
    assert sets(load(test=lines(path, [["b"], "a"]), head=head), "test") == ["b", "a"]
    with pytest.raises(
        SystemExit, match="several labels or none in rows 0, 2, counted from 0; the model has one a row"
    ):
        load(test=lines(path, [["b", "a"], "a", []]), head=head)
