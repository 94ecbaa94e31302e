# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/run_classification.py` as a user calls it: end to end on small files, and with every kind of bad input."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from helpers import run_script
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, pipeline


TINY = [
    "--config_overrides",
    "hidden_size=16,intermediate_size=24,num_hidden_layers=1,num_attention_heads=2,block_size=8",
    "--train_tokenizer_vocab_size",
    "300",
    "--per_device_train_batch_size",
    "4",
    "--num_train_epochs",
    "2",
    "--use_cpu",
]


def run(monkeypatch, *flags) -> None:
    run_script(monkeypatch, "run_classification.py", *flags)


def write_table(path: Path, rows: int = 24, labels: tuple = ("pets", "ships"), column: str = "label") -> Path:
    texts = [f"{'cats and dogs at home' if row % 2 else 'sails and masts at sea'} number {row}" for row in range(rows)]
    Dataset.from_dict({"text": texts, column: [labels[row % len(labels)] for row in range(rows)]}).to_csv(path)
    return path


def test_from_a_csv_to_a_model_that_predicts(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    train, test = write_table(tmp_path / "train.csv", 60), write_table(tmp_path / "test.csv", 10)
    flags = ["--train_file", train, "--test_file", test, "--results_file", tmp_path / "results.json"]
    run(monkeypatch, "--output_dir", out, *flags, *TINY, "--learning_rate", "0.01")
    assert (tmp_path / "results.json").read_text() == (out / "run.json").read_text()
    printed = capsys.readouterr().out
    assert "6 training documents are held out" in printed
    assert "TF-IDF, whole text" in printed and "this model" in printed
    record = json.loads((out / "run.json").read_text())
    assert record["part"] == "test" and record["data"]["test"] == 10
    assert record["scores"]["this model"]["accuracy"] == 1.0
    assert record["versions"]["torch"] and record["commit"] and record["machine"]["cpu_cores"]

    lines = (out / "predict_results.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["index", "prediction", "p(pets)", "p(ships)"]
    assert len(lines) == 11
    classify = pipeline("text-classification", model=str(out), trust_remote_code=False)
    assert (
        classify("sails and masts at sea number 3")[0]["label"]
        == AutoModelForSequenceClassification.from_pretrained(out).config.id2label[
            0 if lines[1].split("\t")[1] == "pets" else 1
        ]
    )
    assert not list(out.rglob("*.tmp"))


def test_resuming_gives_the_same_model(tmp_path, monkeypatch):
    train = write_table(tmp_path / "train.csv")
    flags = ["--train_file", train, *TINY, "--do_train", "--skip_baselines", "--num_train_epochs", "3"]
    run(monkeypatch, "--output_dir", tmp_path / "whole", *flags)

    class PullThePlug(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise KeyboardInterrupt

    import transformers

    plain_init = transformers.Trainer.__init__

    def init(self, *args, **kwargs):
        plain_init(self, *args, **kwargs)
        self.add_callback(PullThePlug())

    with monkeypatch.context() as broken:
        broken.setattr(transformers.Trainer, "__init__", init)
        with pytest.raises(KeyboardInterrupt):
            run(broken, "--output_dir", tmp_path / "broken", *flags)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    run(monkeypatch, "--output_dir", tmp_path / "broken", *flags, "--resume_from_checkpoint", "last")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


@pytest.mark.parametrize(
    "flags, metric, best",
    [([], "eval_accuracy", max), (["--metric_for_best_model", "loss"], "eval_loss", min)],
    ids=["accuracy", "loss"],
)
def test_the_best_checkpoint_on_validation_is_the_one_kept(flags, metric, best, tmp_path, monkeypatch):
    train = write_table(tmp_path / "train.csv", 60, labels=("pets", "ships", "ships", "pets", "pets"))  # half noise
    flags = ["--train_file", train, *TINY, *flags, "--num_train_epochs", "6", "--learning_rate", "0.02"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags, "--skip_baselines")
    *epochs, final = json.loads((tmp_path / "out" / "run.json").read_text())["validation"][:7]
    assert len(epochs) == 6 and len({epoch["eval_loss"] for epoch in epochs}) > 1
    assert final[metric] == best(epoch[metric] for epoch in epochs)


def test_several_labels_and_regression(tmp_path, monkeypatch):
    texts = ["cats", "dogs", "cats and dogs"] * 8
    Dataset.from_dict({"text": texts, "label": [text.split(" and ") for text in texts]}).to_json(
        tmp_path / "many.jsonl"
    )
    run(monkeypatch, "--output_dir", tmp_path / "many", "--train_file", tmp_path / "many.jsonl", *TINY)
    assert "micro_f1" in json.loads((tmp_path / "many" / "run.json").read_text())["scores"]["this model"]

    Dataset.from_dict({"text": texts, "label": [len(text) / 10 for text in texts]}).to_parquet(
        tmp_path / "len.parquet"
    )
    flags = ["--train_file", tmp_path / "len.parquet", "--do_regression"]
    run(monkeypatch, "--output_dir", tmp_path / "regression", *flags, *TINY)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "regression")
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"


def test_truncation_is_told_and_whole_documents_are_the_default(tmp_path, monkeypatch, capsys):
    train = write_table(tmp_path / "train.csv")
    run(monkeypatch, "--output_dir", tmp_path / "whole", "--train_file", train, *TINY, "--skip_baselines")
    assert "cut to" not in capsys.readouterr().out
    flags = ["--train_file", train, *TINY, "--skip_baselines", "--max_seq_length", "5"]
    run(monkeypatch, "--output_dir", tmp_path / "cut", *flags)
    assert "cut to 5 tokens: 22 documents lose" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(tmp_path / "cut").pad_token_id == 0


def bad_inputs(folder: Path) -> dict[str, tuple[list, str]]:
    """Flags by name of what is wrong, and the words of the error."""
    good = write_table(folder / "good.csv")
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("text,label\n")
    (folder / "latin1.csv").write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    (folder / "full").mkdir()
    (folder / "full" / "work").write_text("hours of it")
    one = write_table(folder / "one.csv", labels=("pets",))
    new = write_table(folder / "new.csv", labels=("pets", "planes"))
    gaps = write_table(folder / "gaps.csv", labels=("pets", None))
    return {
        "no such file": (["--train_file", folder / "nothing.csv"], "there is no file"),
        "empty file": (["--train_file", folder / "empty.csv"], "empty.csv is empty"),
        "no rows": (["--train_file", folder / "header.csv"], "has no rows"),
        "not UTF-8": (["--train_file", folder / "latin1.csv"], r"not UTF-8 text \(byte 14\)"),
        "no text column": (["--train_file", good, "--text_column_names", "body"], "no column 'body'.*text, label"),
        "no label column": (["--train_file", good, "--label_column_name", "topic"], "no column 'topic'.*text, label"),
        "one class": (["--train_file", one], r"one class only \(pets\)"),
        "rows without a label": (["--train_file", gaps], "rows have no label"),
        "unseen label": (["--train_file", good, "--test_file", new], "test data has labels.*planes"),
        "no numbers": (["--train_file", good, "--do_regression"], "needs numbers as labels"),
        "full folder": (
            ["--train_file", good, "--output_dir", folder / "full"],
            "not empty.*--resume_from_checkpoint",
        ),
        "block size 0": (
            ["--train_file", good, "--config_overrides", "block_size=0"],
            "`block_size` must be at least 1",
        ),
        "not an override": (["--train_file", good, "--config_overrides", "block_size"], "is not name=value"),
        "no such split": (["--split_by", "party"], "--split_by must be address or president"),
        "two sources": (["--train_file", good, "--dataset_name", "imdb"], "not both"),
    }


BAD_INPUTS = (
    "no such file, empty file, no rows, not UTF-8, no text column, no label column, one class, rows without a label, "
    "unseen label, no numbers, full folder, block size 0, not an override, no such split, two sources"
)


@pytest.mark.parametrize("case", BAD_INPUTS.split(", "))
def test_bad_input_is_one_clear_line_and_writes_nothing(case, tmp_path, monkeypatch):
    flags, words = bad_inputs(tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    if "--output_dir" not in flags:
        flags = ["--output_dir", tmp_path / "out", *flags]
    with pytest.raises(SystemExit, match=f"(?s)error: .*{words}"):
        run(monkeypatch, *flags)
    assert sorted(tmp_path.rglob("*")) == before
