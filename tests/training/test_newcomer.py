# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What a first user of the scripts meets: their help, what they tell, their defaults for few documents, their refusals."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from helpers import run_script


TINY = "--train_tokenizer_vocab_size 300 --per_device_train_batch_size 4 --num_train_epochs 2 --use_cpu".split()
TINY += ["--config_overrides", "hidden_size=16,intermediate_size=24,num_hidden_layers=1,num_attention_heads=2"]


def run(monkeypatch, *flags) -> None:
    run_script(monkeypatch, "run_classification.py", *flags)


def write_table(path: Path, rows: int = 24, labels: tuple = ("pets", "ships")) -> Path:
    texts = [f"{'cats and dogs at home' if row % 2 else 'sails and masts at sea'} number {row}" for row in range(rows)]
    Dataset.from_dict({"text": texts, "label": [labels[row % len(labels)] for row in range(rows)]}).to_csv(path)
    return path


def test_help_begins_with_what_people_need(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--help")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: run_classification.py") and len(lines) < 260 and max(map(len, lines)) <= 100
    rule = next(number for number, line in enumerate(lines) if line.startswith("-----"))
    more = lines.index("more of this script:")
    first = [line.split()[0] for line in lines[:more] if line.startswith("  --")]
    assert first[0] == "--train_file" and len(first) == 15
    assert {"--class_weights", "--from_scratch", "--output_dir", "--learning_rate"} <= set(first)
    after = [line.split()[0] for line in lines[rule:] if line.startswith("  --")]
    before = [line.split()[0] for line in lines[:rule] if line.startswith("  --")]
    assert "--weight_decay" in after and "--skip_baselines" in before and not set(after) & set(before)


@pytest.mark.parametrize("script, name", [("run_clm.py", "names"), ("run_classification.py", "name")])
def test_the_text_column_has_two_names_everywhere(script, name, tmp_path, monkeypatch):
    """On the command line, with dashes, and in a file of settings."""
    train = write_table(tmp_path / "train.csv")
    settings = {"train_file": str(train), "output_dir": str(tmp_path / "out"), f"text_column_{name}": "body"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    for flags in (
        ["--train_file", train, "--output_dir", tmp_path / "out", f"--text_column_{name}", "body"],
        ["--train_file", train, "--output_dir", tmp_path / "out", f"--text-column-{name}=body"],
        [tmp_path / "settings.json"],
    ):
        with pytest.raises(SystemExit, match="no column 'body'"):
            run_script(monkeypatch, script, *flags)


def refused(folder: Path) -> dict[str, tuple[list, str]]:
    """Flags, by what is wrong, and the words of the refusal."""
    one = write_table(folder / "one.csv")
    Dataset.from_dict({"text": ["cats", "dogs"] * 8, "label": [["a"], ["b"]] * 8}).to_json(folder / "many.jsonl")
    numbers = write_table(folder / "numbers.csv", labels=(1.5, 2.5))
    return {
        "another metric": (["--train_file", one, "--metric_for_best_model", "f1"], "f1.*Did you mean macro_f1"),
        "a metric of a regression": (
            ["--train_file", numbers, "--do_regression", "--metric_for_best_model", "accuracy"],
            "an evaluation here has mse, mae, loss",
        ),
        "no such tracker": (["--train_file", one, "--report_to", "paper"], "--report_to paper is not known"),
        "a missing tracker": (
            ["--train_file", one, "--report_to", "wandb"],
            "wandb is not installed.*pip install wandb",
        ),
        "scores by batch": (["--train_file", one, "--batch_eval_metrics"], "--batch_eval_metrics is not supported"),
        "the loss alone": (["--train_file", one, "--prediction_loss_only"], "no scores to choose the best"),
        "patience without the best": (
            ["--train_file", one, "--early_stopping_patience", "2", "--load_best_model_at_end", "false"],
            "needs --load_best_model_at_end",
        ),
        "too smooth": (["--train_file", one, "--label_smoothing_factor", "1"], "from 0 to below 1"),
        "smoothing of numbers": (
            ["--train_file", numbers, "--do_regression", "--label_smoothing_factor", "0.1"],
            "one class a document; this task is a regression",
        ),
        "smoothing of several labels": (
            ["--train_file", folder / "many.jsonl", "--label_smoothing_factor", "0.1"],
            "one class a document; this task is several labels",
        ),
        "weights of several labels": (
            ["--train_file", folder / "many.jsonl", "--class_weights", "balanced"],
            "--class_weights is for one class a document",
        ),
        "other weights": (["--train_file", one, "--class_weights", "heavy"], "must be none or balanced, got heavy"),
        "scratch and weights": (
            ["--train_file", one, "--from_scratch", "--model_name_or_path", "x"],
            "--from_scratch or --model_name_or_path, not both",
        ),
    }


REFUSED = (
    "another metric, a metric of a regression, no such tracker, a missing tracker, scores by batch, the loss alone, "
    "patience without the best, too smooth, smoothing of numbers, smoothing of several labels, "
    "weights of several labels, other weights, scratch and weights"
)


@pytest.mark.parametrize("case", REFUSED.split(", "))
def test_refused_in_one_line_before_training(case, tmp_path, monkeypatch):
    flags, words = refused(tmp_path)[case]
    monkeypatch.setattr("transformers.Trainer.train", lambda *args, **kwargs: pytest.fail("training began"))
    if "wandb" in flags:
        monkeypatch.setattr("training.checks.get_available_reporting_integrations", lambda: [], raising=False)
    with pytest.raises(SystemExit, match=f"(?s)error: .*{words}"):
        run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path, monkeypatch, capsys):
    from training.checks import make_paddable
    from training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["cats and dogs"] * 20, 300, show_progress=False)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = ["--train_file", write_table(tmp_path / "train.csv"), "--tokenizer_name", tmp_path / "tokenizer"]
    flags += [*TINY, "--max_steps", "1", "--skip_baselines"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    assert "its end of text, </s>, is taken for it" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 2
    tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(SystemExit, match="no padding token.*--tokenizer_name"):
        make_paddable(tokenizer)


def test_a_run_tells_few_lines_and_the_time_it_takes(tmp_path, monkeypatch, capfd):
    train = write_table(tmp_path / "train.csv", 60, labels=("pets", "ships", "pets"))
    flags = ["--train_file", train, "--test_file", train, *TINY, "--class_weights", "balanced"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    out, err = capfd.readouterr()
    lines = [line for line in (out + err).replace("\r", "\n").splitlines() if line.strip()]
    assert not [line for line in lines if "it/s" in line or "examples" in line or "Loading weights" in line]
    assert len(lines) < 50
    assert any(line.startswith("Training ") and " parameters on cpu" in line and " steps" in line for line in lines)
    assert any(line.startswith("About ") and "of training to go" in line for line in lines)
    assert any(line.startswith("Weights of the classes: pets 0.75, ships 1.5") for line in lines)
    assert any(line.startswith("| pets ") and line.endswith("|        40 |") for line in lines)
    found = json.loads((tmp_path / "out" / "run.json").read_text())["by_class"]["test"]
    assert np.array(found["confusion"]["rows"]).sum(1).tolist() == [40, 20]
    assert found["classes"]["ships"]["support"] == 20


def test_scores_by_class(monkeypatch):
    from training.class_report import report_lines, scores_by_class

    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    found = scores_by_class(truth, predicted, ["a", "b", "c"])
    assert found["classes"]["a"] == {
        "precision": 0.5,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(4 / 7),
        "support": 3,
    }
    assert found["classes"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert found["confusion"]["rows"] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    many = scores_by_class(np.array([0, 0, 5]), np.array([3, 3, 4]), [f"class {number}" for number in range(13)])
    assert "confusion" not in many and many["confused"] == [[2, "class 0", "class 3"], [1, "class 5", "class 4"]]
    assert "  2 of class 0 taken for class 3" in report_lines(many)
    sets = scores_by_class(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]), ["a", "b"])
    assert sets["classes"]["a"]["recall"] == 0.5 and "confusion" not in sets


ENGLISH = "The printer on the third floor is not working and it was said that you are to fix this for us"
GERMAN = "Der Drucker im dritten Stock geht seit gestern nicht mehr, bitte schicken Sie jemanden, der ihn repariert"


def test_where_to_start_from(monkeypatch, capsys):
    from training.small_data import ENCODER, ModelOfOwnDataArguments, choose_start, looks_english

    assert looks_english([ENGLISH]) and not looks_english([GERMAN]) and not looks_english([""])
    arguments = ModelOfOwnDataArguments()
    assert choose_start(arguments, {}, [ENGLISH]) and arguments.model_name_or_path == str(ENCODER)
    assert "--from_scratch starts from nothing" in capsys.readouterr().out
    for given in ("model_type", "config_overrides", "tokenizer_name", "model_name_or_path"):
        assert not choose_start(ModelOfOwnDataArguments(), {given: ["x"]}, [ENGLISH])
    assert not choose_start(ModelOfOwnDataArguments(from_scratch=True), {"from_scratch": []}, [ENGLISH])
    assert not choose_start(ModelOfOwnDataArguments(), {}, [GERMAN])
    assert "do not look English" in capsys.readouterr().out


def test_a_run_that_goes_on_starts_as_it_began(tmp_path, monkeypatch):
    from training.small_data import ENCODER, ModelOfOwnDataArguments, choose_start

    assert choose_start(ModelOfOwnDataArguments(), {}, [GERMAN], checkpoint=str(ENCODER))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sinkhorn", "hidden_size": 128}))
    assert not choose_start(ModelOfOwnDataArguments(), {}, [ENGLISH], checkpoint=str(tmp_path))


def test_few_documents_are_read_more_often(tmp_path, monkeypatch, capsys):
    from transformers import TrainingArguments

    from training.small_data import choose_passes

    def passes(num_documents: int, given: dict, **settings) -> float:
        args = TrainingArguments(
            tmp_path, do_train=True, use_cpu=True, num_train_epochs=4, per_device_train_batch_size=8, **settings
        )
        choose_passes(args, given, num_documents)
        return args.num_train_epochs

    assert passes(194, {}) == 8 and "194 documents are few: 8 passes" in capsys.readouterr().out
    assert passes(10_000, {}) == 4 and passes(3, {}) == 30
    assert passes(194, {"num_train_epochs": ["4"]}) == 4 and passes(194, {"max_steps": ["9"]}) == 4
    assert passes(194, {}, gradient_accumulation_steps=4) == 29


def test_few_validation_documents_do_not_choose_the_weights(tmp_path, monkeypatch, capsys):
    from transformers import TrainingArguments

    from training.small_data import choose_checkpoint

    def takes_the_best(num_validation: int, *given: str) -> bool:
        args = TrainingArguments(
            tmp_path, use_cpu=True, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True
        )
        choose_checkpoint(args, dict.fromkeys(given, []), num_validation)
        return args.load_best_model_at_end

    assert not takes_the_best(22) and "22 validation documents are too few" in capsys.readouterr().out
    assert takes_the_best(100) and takes_the_best(22, "metric_for_best_model")
    assert takes_the_best(22, "load_best_model_at_end") and takes_the_best(22, "early_stopping_patience")


def test_advice_where_words_alone_do_better(monkeypatch):
    from argparse import Namespace

    from training.small_data import advice

    args = Namespace(num_train_epochs=8, class_weights="none")
    scores = {
        "majority class": {"accuracy": 0.632, "macro_f1": 0.194},
        "TF-IDF, whole text": {"accuracy": 0.985, "macro_f1": 0.97},
        "this model": {"accuracy": 0.632, "macro_f1": 0.304},
    }
    told = advice(scores, True, args)
    assert told.startswith(
        "The model only guesses the largest class, and a bag of words is better here (accuracy 0.985"
    )
    assert "--num_train_epochs 16" in told and "--class_weights balanced" in told and "pretrained" in told
    scores["this model"] = {"accuracy": 0.99, "macro_f1": 0.98}
    assert advice(scores, True, args) is None and advice({"this model": {"accuracy": 0.5}}, True, args) is None


def test_by_default_an_own_english_file_starts_from_the_encoder(tmp_path, monkeypatch, capsys):
    texts = [f"{ENGLISH}, number {row}" for row in range(12)]
    labels = ["open", "closed"] * 6
    Dataset.from_dict({"text": texts, "label": labels}).to_csv(tmp_path / "train.csv")
    flags = ["--train_file", tmp_path / "train.csv", "--max_steps", "1", "--skip_baselines", "--use_cpu"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    printed = capsys.readouterr()
    assert "Starting from sinkhorn-books-encoder" in printed.out and "MISSING" not in printed.out + printed.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["base_model"] == "sinkhorn-books-encoder" and record["config"]["hidden_size"] == 192
    assert record["config"]["hidden_dropout"] == 0.1
    assert record["config"]["_name_or_path"] == "sinkhorn-books-encoder"  # no folders of the machine


@pytest.mark.parametrize("name", ["runs/clm", "./clm", "a/b/c", "clm"])
def test_generation_without_the_folder_is_one_line_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    with pytest.raises(SystemExit, match="(there is|no) (no )?folder"):
        run_script(monkeypatch, "run_generation.py", "--model_name_or_path", name, "--prompt", "x")
    assert time.monotonic() - begun < 20


def test_small_data_of_the_measurement(monkeypatch):
    from maintenance.small_data import PERIODS, draw_passages

    drawn = draw_passages(0)
    assert {part: len(rows) for part, rows in drawn.items()} == {"train": 216, "test": 136}
    for part, column in (("train", 2), ("test", 3)):
        assert {p[0]: list(drawn[part]["period"]).count(p[0]) for p in PERIODS} == {p[0]: p[column] for p in PERIODS}
    assert not set(drawn["train"]["text"]) & set(drawn["test"]["text"])
