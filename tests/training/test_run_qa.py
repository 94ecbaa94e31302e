# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/run_qa.py` as a user calls it: on small files, with scores worked out by hand, and with bad input."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, BertConfig, BertModel

from helpers import run_script
from training.long_contexts import make_rows
from training.qa_data import DataTrainingArguments, encode, load_rows, rows_to_train_on
from training.qa_scores import best_spans, score_answer
from training.tokenizer import train_tokenizer


QUICK = ["--use_cpu", "--num_train_epochs", "1", "--per_device_train_batch_size", "4"]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
COLOURS = ("red", "green", "blue", "white")


def squad_rows(number: int = 12, padding: int = 20) -> list[dict]:
    rows = []
    for row in range(number):
        context = f"{'Word upon word. ' * padding}The ship number {row} is {COLOURS[row % 4]}, they say."
        answer = COLOURS[row % 4]
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
        rows.append({"id": f"q{row}", "question": "What is the ship?", "context": context, "answers": answers})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(monkeypatch, *flags) -> None:
    run_script(monkeypatch, "run_qa.py", *flags)


def rows_of(path: Path, **arguments):
    return load_rows(DataTrainingArguments(train_file=str(path), **arguments))["train"]


@pytest.fixture
def tiny_bert(tmp_path) -> Path:
    tokenizer = train_tokenizer((row["context"] for row in squad_rows()), 300, show_progress=False)
    tokenizer.model_max_length = 128
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=128, **TINY)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_fine_tuning_with_sparse_attention_and_answering(tiny_bert, tmp_path, monkeypatch, capsys):
    data, out = write(tmp_path / "data.jsonl", squad_rows()), tmp_path / "out"
    settings = "block_size=8,num_sorted_blocks=1,num_local_blocks=1"
    flags = ["--train_file", data, "--validation_file", data, "--test_file", data, "--max_eval_samples", 5]
    flags += ["--attn_implementation", "sinkhorn", "--sinkhorn_attention", settings]
    run(monkeypatch, "--output_dir", out, "--model_name_or_path", tiny_bert, *flags, *QUICK)
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["sinkhorn_attention"]["block_size"] == 8 and record["data"]["max_seq_length"] == 128
    assert record["data"]["validation"] == 5 and record["part"] == "test"
    assert {"eval_f1", "eval_exact_match"} <= record["validation"][0].keys()

    given = json.loads((out / "predict_predictions.json").read_text())
    assert list(given) == [f"q{row}" for row in range(12)]
    assert all(given[row["id"]] in row["context"] for row in squad_rows())
    scores = [score_answer(given[row["id"]], row["answers"]["text"])["f1"] for row in squad_rows()]
    assert record["scores"]["this model"]["f1"] == pytest.approx(sum(scores) / 12)

    new = [{name: row[name] for name in ("question", "context")} for row in squad_rows(3)]
    flags = ["--test_file", write(tmp_path / "new.jsonl", new), "--do_predict", "--use_cpu"]
    run(monkeypatch, "--output_dir", tmp_path / "new", "--model_name_or_path", out, *flags)
    answered = json.loads((tmp_path / "new" / "predict_predictions.json").read_text())
    assert answered == {str(row): given[f"q{row}"] for row in range(3)}
    assert json.loads((tmp_path / "new" / "run.json").read_text())["scores"] == {}


def test_a_small_sinkhorn_model_learns_an_answer_from_scratch(tmp_path, monkeypatch):
    rows = squad_rows(16, padding=1)
    table = Dataset.from_list([{**row, "answers": json.dumps(row["answers"])} for row in rows])
    table.to_csv(str(tmp_path / "data.csv"))
    flags = ["--train_file", tmp_path / "data.csv", "--validation_file", tmp_path / "data.csv"]
    flags += ["--config_overrides", "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,block_size=8"]
    flags += ["--train_tokenizer_vocab_size", 300, "--use_cpu", "--num_train_epochs", 12, "--learning_rate", 0.01]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags, "--per_device_train_batch_size", 4)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["scores"]["this model"]["exact_match"] >= 0.75
    assert record["scores"]["this model"]["f1"] == max(entry["eval_f1"] for entry in record["validation"])
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").config.model_type == "sinkhorn"


@pytest.mark.parametrize(
    "prediction, references, exact, f1",
    [
        ("The  Cat!", ["cat"], 1, 1),
        ("an old cat", ["the cat", "a dog"], 0, 2 / 3),
        ("red cat", ["blue dog", "cat, red"], 0, 1),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("$1,000", ["1000"], 1, 1),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),
        ("theatre", ["atre"], 0, 0),
    ],
)
def test_scores_by_hand(prediction, references, exact, f1):
    assert score_answer(prediction, references) == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_the_best_span_is_that_of_all_pairs():
    torch.manual_seed(0)
    starts, ends = torch.randn(2, 20, 30).unbind()
    starts[:, :7] += 100  # the question, and the padding behind the context, would win
    ends[:, 25:] += 100
    first, stop = torch.full((20,), 7), torch.arange(20) % 15 + 10
    spans = best_spans(starts, ends, first, stop, 4)
    for row in range(20):
        pairs = [(begin, end) for begin in range(7, int(stop[row])) for end in range(begin, min(begin + 4, stop[row]))]
        assert tuple(spans[row].tolist()) == max(
            pairs, key=lambda pair: float(starts[row][pair[0]] + ends[row][pair[1]])
        )


def test_tokens_of_answers_and_those_cut_off(tmp_path):
    rows = squad_rows(2)
    answers = {"text": ["sails", "Red sails"], "answer_start": [4, 0]}
    rows.append({"id": "q2", "question": "What?", "context": f"Red sails. {rows[0]['context']}", "answers": answers})
    tokenizer = train_tokenizer((row["context"] for row in rows), 300, show_progress=False)
    listed = rows_of(write(tmp_path / "data.json", rows))
    whole, cut = (encode(listed, tokenizer, limit, "train") for limit in (4096, 40))
    assert whole.is_whole == [True, True, True] and cut.is_whole == [False, False, True]
    for row, source in zip(whole.data, rows):
        words = tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1])
        assert words.strip() == source["answers"]["text"][0]
        question = tokenizer.decode(row["input_ids"][: row["first"]], skip_special_tokens=True)
        assert question.strip() == source["question"]
    assert cut.data["start_positions"][:2] == [0, 0]
    assert max(map(len, cut.data["input_ids"])) == 40
    assert len(rows_to_train_on(cut)) == 1 and len(rows_to_train_on(whole)) == 3
    with pytest.raises(SystemExit, match="no training row has its answer.*--max_seq_length"):
        rows_to_train_on(encode(listed[:2], tokenizer, 40, "train"))
    with pytest.raises(SystemExit, match="questions of rows 0, 1, .*no room.*--max_seq_length"):
        encode(listed[:2], tokenizer, 5, "train")


def changed(**fields) -> list[dict]:
    rows = squad_rows(3)
    rows[1] |= fields
    return rows


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"question": "a", "answers": {}}], "no column 'context'.*--context_column_name"),
        ([{"question": "a", "context": "b"}], "no column 'answers'.*--answers_column_name"),
        (changed(answers={"text": ["green"], "answer_start": [3]}), "row 1 .*answer_start 3 does not match"),
        (changed(answers={"text": ["green"], "answer_start": [-5]}), "row 1 .*answer_start -5 does not match"),
        (changed(answers={"text": ["green"]}), "row 1 .*must be"),
        (changed(answers="green"), "row 1 .*must be"),
        (changed(answers={"text": [], "answer_start": []}), "row 1 .*has no answer"),
        (changed(question=" "), "row 1 .*'question' has no text"),
        (changed(id="q2"), "column 'id' names several rows alike .*row 2"),
    ],
)
def test_rows_that_are_not_squad_are_refused(rows, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        rows_of(write(tmp_path / "data.jsonl", rows))


def test_flags_that_do_not_fit_are_refused(tiny_bert, tmp_path, monkeypatch):
    data, out = write(tmp_path / "data.jsonl", squad_rows()), ["--output_dir", tmp_path / "out", "--use_cpu"]
    with pytest.raises(SystemExit, match="no data.*--train_file"):
        run(monkeypatch, *out)
    with pytest.raises(SystemExit, match="no train data.*--train_file"):
        run(monkeypatch, *out, "--test_file", data)
    with pytest.raises(SystemExit, match="no test data.*--test_file"):
        run(monkeypatch, *out, "--train_file", data, "--do_predict")
    with pytest.raises(SystemExit, match="need a trained model"):
        run(monkeypatch, *out, "--test_file", data, "--do_predict")
    flags = ["--model_name_or_path", tiny_bert, "--train_file", data, "--max_seq_length", 200]
    with pytest.raises(SystemExit, match="takes 128 tokens.*extend_positions"):
        run(monkeypatch, *out, *flags)
    assert not (tmp_path / "out").exists()


def test_long_contexts_ask_for_what_stands_there_once():
    made = make_rows({"train": 12, "validation": 6, "test": 6}, 0, 2500, 8)
    contexts = {part: {row["context"] for row in rows} for part, rows in made.items()}
    assert not contexts["train"] & contexts["test"] and not contexts["validation"] & contexts["test"]
    for rows in made.values():
        assert [sum(row["kind"] == kind for row in rows) for kind in ("year", "amount", "next")] == [len(rows) / 3] * 3
        for row in rows:
            cue = row["question"].split('"', 1)[1].rsplit('"', 1)[0]
            text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
            flat = " ".join(row["context"].split())
            assert flat.lower().count(cue.lower()) == 1 and len(cue.split()) == 8
            assert row["context"][start : start + len(text)] == text
            assert " ".join(row["context"][:start].split()).rstrip('("').rstrip().endswith(cue)
