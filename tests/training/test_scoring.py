# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Documents that a trained classifier scores, and the table of its predictions."""

import csv
import json
import re
from pathlib import Path

import pandas
import pytest
import torch
from datasets import Dataset, DatasetDict
from test_run_classification import TINY, run, write_table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from training.classification_data import Task
from training.predictions import write_predictions


def predictions(folder: Path) -> pandas.DataFrame:
    return pandas.read_csv(folder / "predict_results.tsv", sep="\t", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run [v2]"
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ["--train_file", write_table(folder.parent / "train.csv", 60), *TINY, "--learning_rate", "0.01"]
        run(monkeypatch, "--output_dir", folder, *flags, "--skip_baselines")
    return folder


def test_new_documents_need_no_training_data(trained, tmp_path, monkeypatch, capsys):
    new, out = tmp_path / "new.csv", tmp_path / "out"
    new.write_text("ticket,text\n007,cats and dogs at home\n1.50,sails and masts at sea\n")
    flags = ["--model_name_or_path", trained, "--do_predict", "--test_file", new, "--use_cpu"]
    run(monkeypatch, "--output_dir", out, *flags, "--id_column_name", "ticket")
    rows = predictions(out)
    assert list(rows) == ["index", "id", "prediction", "p(pets)", "p(ships)"]
    assert rows.values.tolist() == [
        ["0", "007", "ships", *rows.values[0][3:]],
        ["1", "1.50", "pets", *rows.values[1][3:]],
    ]
    classify = pipeline("text-classification", model=str(trained))
    assert float(rows["p(ships)"][0]) == pytest.approx(classify("cats and dogs at home")[0]["score"], abs=1e-4)
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["test"] == 2 and record["scores"] == {}
    assert f"The model is in {trained}" in capsys.readouterr().out
    assert not (out / "model.safetensors").exists()


def test_new_documents_with_labels_are_scored(trained, tmp_path, monkeypatch, capsys):
    test, out = tmp_path / "test.jsonl", tmp_path / "out"
    rows = [("cats and dogs at home", label) for label in ("ships", None, "pets", "ships")]
    rows.append(("sails and masts at sea", "pets"))
    test.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    flags = ["--model_name_or_path", trained, "--use_cpu", "--test_file", test, "--do_predict"]
    run(monkeypatch, "--output_dir", out, *flags)
    record = json.loads((out / "run.json").read_text())
    assert record["part"] == "test" and record["scores"]["this model"]["accuracy"] == 0.75
    assert json.loads((out / "test_results.json").read_text())["test_accuracy"] == 0.75
    assert "On the 4 test documents" in capsys.readouterr().out
    table = predictions(out)
    assert list(table["label"]) == ["ships", "", "pets", "ships", "pets"]
    assert list(table["prediction"]) == ["ships"] * 4 + ["pets"] and list(table["index"]) == list("01234")


def test_a_trained_model_is_evaluated_on_its_own_classes(trained, tmp_path, monkeypatch, capsys):
    part = write_table(tmp_path / "part.csv", 10)
    flags = ["--model_name_or_path", trained, "--use_cpu", "--validation_file", part, "--do_eval"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["scores"]["this model"]["accuracy"] == 1.0
    assert "On the 10 validation documents" in capsys.readouterr().out
    other = write_table(tmp_path / "other.csv", 24, labels=("ships", "planes"))
    flags = ["--model_name_or_path", trained, "--use_cpu", "--train_file", other, "--do_eval"]
    with pytest.raises(SystemExit, match="train data has labels that the model does not know: planes .rows 2, 3,"):
        run(monkeypatch, "--output_dir", tmp_path / "other", *flags)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--test_file", "new.csv"], "need a --train_file.*--do_predict or --do_eval, and without --do_train"),
        (["--test_file", "new.csv", "--do_predict", "--do_train"], "need a --train_file"),
        (["--test_file", "new.csv", "--do_predict", "--do_eval"], "--do_eval needs a --validation_file"),
        (["--validation_file", "new.csv", "--do_predict"], "--do_predict needs a --test_file"),
        (["--test_file", "new.csv", "--do_predict", "--do_regression"], "the model predicts classes, no numbers"),
        (["--test_file", "new.csv", "--do_predict", "--id_column_name", "key"], "no column 'key'.*--id_column_name"),
        (["--test_file", "bad.csv", "--do_predict"], "does not know: planes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_is_named(trained, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    write_table(Path("new.csv"), 4)
    write_table(Path("bad.csv"), 4, labels=("ships", "planes"))
    with pytest.raises(SystemExit, match=f"(?s)error: .*{words}"):
        run(monkeypatch, "--output_dir", "out", "--model_name_or_path", trained, "--use_cpu", *flags)
    assert not Path("out").exists()


def test_an_encoder_is_no_classifier(trained, tmp_path, monkeypatch):
    encoder = AutoModelForSequenceClassification.from_pretrained(trained).base_model
    encoder.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path / "encoder")
    flags = ["--model_name_or_path", tmp_path / "encoder", "--do_predict", "--use_cpu"]
    with pytest.raises(SystemExit, match="encoder is no trained classifier but SinkhornModel; train one first"):
        run(monkeypatch, *flags, "--test_file", write_table(tmp_path / "new.csv", 4), "--output_dir", tmp_path / "out")


def test_predictions_stand_beside_their_documents(trained, tmp_path, monkeypatch):
    """The Trainer groups documents by length, and gives back what it predicts in that order."""
    texts = [
        f"{'cats and dogs at home ' if row % 3 else 'sails and masts at sea '}" * (1 + row * 7 % 20)
        for row in range(40)
    ]
    labels = ["ships" if row % 3 else "pets" for row in range(40)]  # as in `write_table`
    test, out = tmp_path / "test.csv", tmp_path / "out"
    Dataset.from_dict({"text": texts, "label": labels}).to_csv(test)
    flags = ["--model_name_or_path", trained, "--do_predict", "--test_file", test, "--use_cpu"]
    run(monkeypatch, "--output_dir", out, *flags)
    rows = predictions(out)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(trained),
        AutoTokenizer.from_pretrained(trained),
    )
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 0].item() for text in texts]
    assert list(map(float, rows["p(pets)"])) == pytest.approx(alone, abs=2e-4)
    assert list(rows["label"]) == labels


def test_the_index_is_the_row_of_the_file(trained, tmp_path, monkeypatch):
    test, out = write_table(tmp_path / "test.csv", 40), tmp_path / "out"
    flags = ["--model_name_or_path", trained, "--do_predict", "--test_file", test, "--use_cpu"]
    run(monkeypatch, "--output_dir", out, *flags, "--max_predict_samples", "6", "--id_column_name", "text")
    rows = predictions(out)
    assert len(rows) == 6 and list(map(int, rows["index"])) == sorted(map(int, rows["index"]))
    assert list(rows["index"]) != list("012345")
    assert [re.search(r"number (\d+)", text).group(1) for text in rows["id"]] == list(rows["index"])


NAMES = ["plain", "a, b", "tab\tin it", "two\nlines", "return\rin it", 'she said "yes"', '"quoted"', "NA", "é🙂", "a"]


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_every_name_is_read_back(tmp_path, several):
    kind = "multi_label_classification" if several else "single_label_classification"
    labels = [[float(index in (row, 0)) for index in range(10)] if several else row for row in range(10)]
    data = Dataset.from_dict({"text": NAMES, "row": list(range(10)), "id": NAMES, "label": labels})
    logits = torch.eye(10).roll(1, 0) * 8 - 4  # the class before
    path = tmp_path / "predictions.tsv"
    write_predictions(path, Task(DatasetDict(test=data), kind, NAMES), data, logits)
    with open(path, encoding="utf-8", newline="") as file:
        by_csv = list(csv.DictReader(file, delimiter="\t"))
    by_pandas = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False).to_dict("records")
    assert by_csv == by_pandas and len(by_csv) == 10
    assert list(by_csv[0]) == ["index", "id", "prediction", "label", *(f"p({name})" for name in NAMES)]
    for row, record in enumerate(by_csv):
        assert record["id"] == NAMES[row]
        before = NAMES[row - 1]
        if several:
            assert json.loads(record["prediction"]) == [before]
            assert json.loads(record["label"]) == sorted({"plain", NAMES[row]}, key=NAMES.index)
        else:
            assert (record["prediction"], record["label"]) == (before, NAMES[row])
        assert float(record[f"p({before})"]) > 0.9


def test_several_labels_and_numbers_are_scored(tmp_path, monkeypatch):
    texts = ["cats", "dogs", "cats and dogs"] * 8
    for name, labels, flags in (
        ("several", [text.split(" and ") for text in texts], []),
        ("number", [len(text) / 10 for text in texts], ["--do_regression"]),
    ):
        train, new = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.new.jsonl"
        Dataset.from_dict({"text": texts, "label": labels}).to_json(train)
        run(monkeypatch, "--output_dir", tmp_path / name, "--train_file", train, *TINY, "--max_steps", "2", *flags)
        rows = [{"text": text, "label": label} for text, label in zip(texts[:3], labels)]
        new.write_text("\n".join(map(json.dumps, [*rows, {"text": "birds"}])))
        flags = ["--model_name_or_path", tmp_path / name, "--do_predict", "--test_file", new, "--use_cpu"]
        run(monkeypatch, "--output_dir", tmp_path / f"{name}.scored", *flags)
        table = predictions(tmp_path / f"{name}.scored")
        assert [json.loads(label) for label in table["label"][:3]] == labels[:3] and table["label"][3] == ""
        assert all(isinstance(json.loads(prediction), (list, float, int)) for prediction in table["prediction"])
        scores = json.loads((tmp_path / f"{name}.scored" / "run.json").read_text())["scores"]["this model"]
        assert ("mse" in scores) == (name == "number")


def test_documents_without_a_token_are_refused(tmp_path, monkeypatch):
    from training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["cats and dogs at home"] * 9, 300, show_progress=False)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    train = tmp_path / "train.csv"
    train.write_text("text,label\n" + 'cats,a\ndogs,b\n"",a\n' * 12)
    flags = ["--train_file", train, "--tokenizer_name", tmp_path / "tokenizer", "--validation_file", train, *TINY]
    words = r"the train data has documents of which the tokenizer makes no token \(rows 2, 5, .* and 2 more"
    with pytest.raises(SystemExit, match=words):
        run(monkeypatch, *flags, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
