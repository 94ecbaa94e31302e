# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/run_classification.py` as a user calls it: end to end on small files, and with every kind of bad input."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainerCallback,
    pipeline,
)

from helpers import run_script, tiny_config
from modeling_sinkhorn import SinkhornForSequenceClassification


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
    assert lines[0].split("\t") == ["index", "prediction", "label", "p(pets)", "p(ships)"]
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


def test_a_cut_document_keeps_its_special_tokens(monkeypatch):
    from training.classification_inputs import DataTrainingArguments, encode
    from training.model_choice import longest_input

    words = {word: number for number, word in enumerate("[UNK] [CLS] [SEP] [PAD] cats and dogs".split())}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512)
    splits = DatasetDict({"train": Dataset.from_dict({"text": ["cats and dogs and cats", "cats"], "label": [0, 1]})})
    arguments = DataTrainingArguments(max_seq_length=4)
    encoded = encode(splits, tokenizer, tiny_config(), arguments)
    assert encoded["train"]["input_ids"] == [[1, 4, 5, 2], [1, 4, 2]]
    roberta = RobertaConfig(max_position_embeddings=514)
    assert longest_input(roberta, tokenizer) == 512
    assert longest_input(tiny_config(), tokenizer) is None


def test_a_pretrained_model_is_not_trained_at_the_rate_of_a_small_one(monkeypatch, capsys):
    from training import defaults

    roberta = RobertaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    ours, others = SinkhornForSequenceClassification(tiny_config()), RobertaForSequenceClassification(roberta)
    for model, name, given, small, rate in (
        (others, "M", {}, 10**7, 1e-4),
        (others, "M", {"learning_rate": "1e-3"}, 10**7, 1e-3),
        (ours, "M", {}, 10**7, 1e-3),
        (ours, "M", {}, 10, 1e-4),  # a large one
        (ours, None, {}, 10, 1e-3),  # from scratch
    ):
        monkeypatch.setattr(defaults, "SMALL", small)
        arguments = SimpleNamespace(do_train=True, learning_rate=1e-3)
        defaults.choose_learning_rate(arguments, given, name, model)
        assert arguments.learning_rate == rate
        printed = capsys.readouterr().out
        assert ("M is pretrained: the learning rate is 0.0001 instead of 0.001" in printed) == (rate == 1e-4)


def test_batches_have_few_lengths_in_half_precision():
    from training.classification_inputs import DataTrainingArguments, padding_multiple

    backend = Tokenizer(WordLevel({"cats": 0}, unk_token="cats"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512)
    roberta = RobertaConfig(max_position_embeddings=514)
    for config, limit, half_precision, multiple in (
        (tiny_config(), None, True, 64),
        (tiny_config(), None, False, None),
        (roberta, None, True, 64),
        (roberta, 500, True, None),  # no longer than asked for
        (roberta, 2048, True, 64),  # cut to the 512 that the model has
        (RobertaConfig(max_position_embeddings=500), None, True, None),  # it has no positions for more
    ):
        arguments = DataTrainingArguments(max_seq_length=limit)
        assert padding_multiple(config, tokenizer, arguments, half_precision) == multiple


def test_a_test_file_without_labels_is_predicted(tmp_path, monkeypatch, capsys):
    train, test = write_table(tmp_path / "train.csv", 60), tmp_path / "new.csv"
    Dataset.from_dict({"text": ["cats and dogs at home", "sails and masts at sea"]}).to_csv(test)
    flags = ["--train_file", train, "--test_file", test, *TINY, "--learning_rate", "0.01"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    printed = capsys.readouterr().out
    assert "On the 6 validation documents" in printed and "predict_results.tsv" in printed
    _, *lines = (tmp_path / "out" / "predict_results.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in lines] == ["ships", "pets"]  # as in `write_table`


def test_evaluation_leaves_the_record_of_training_alone(tmp_path, monkeypatch, capsys):
    """With dashes in the flags, as argparse takes them too."""
    train, out = write_table(tmp_path / "train.csv"), tmp_path / "out"
    flags = ["--train_file", train, "--skip_baselines", "--use_cpu"]
    run(monkeypatch, "--output_dir", out, *flags, *TINY)
    before = (out / "run.json").read_text()
    flags += ["--model_name_or_path", out, "--do-eval"]
    with pytest.raises(SystemExit, match="holds a training run.*--overwrite_output_dir"):
        run(monkeypatch, "--output_dir", out, *flags)
    run(monkeypatch, "--output_dir", tmp_path / "other", *flags)
    assert (out / "run.json").read_text() == before and not (tmp_path / "other" / "model.safetensors").exists()
    scores = [json.loads((folder / "run.json").read_text())["scores"] for folder in (out, tmp_path / "other")]
    assert scores[0] == scores[1]


def test_no_class_is_held_out_whole(monkeypatch):
    from training.classification_data import hold_out_validation

    labels = ["pets"] * 12 + ["ships"] * 12 + ["rare"]
    for seed in range(20):
        train, validation = hold_out_validation(Dataset.from_dict({"label": labels}), seed)
        assert "rare" in train["label"] and set(validation["label"]) <= {"pets", "ships"}
        assert len(train) + len(validation) == len(labels)
    numbers = Dataset.from_dict({"label": [0.1 * row for row in range(20)]})
    assert len(hold_out_validation(numbers, 0, regression=True)[1]) == 2
    with pytest.raises(SystemExit, match="no class .* has a row to spare"):
        hold_out_validation(Dataset.from_dict({"label": ["a", "b"]}), 0)


def test_a_held_out_part_copies_no_rows(monkeypatch):
    """Both parts have numbered labels, and show rows of one table still."""
    from training.classification_data import hold_out_validation, make_task
    from training.file_rows import to_dataset
    from training.texts import texts_of

    def address(part: Dataset) -> int:
        return part.data.table.column("text").chunk(0).buffers()[2].address

    texts, labels = [f"text {row}" for row in range(40)], ["a", "b"] * 20
    whole = to_dataset({"text": texts, "row": list(range(40)), "label": labels})
    splits = dict(zip(("train", "validation"), hold_out_validation(whole, 0)))
    test = to_dataset({"text": texts[:3], "row": [0, 1, 2], "label": ["b", None, "a"]})
    parts = make_task(DatasetDict({**splits, "test": test}), regression=False).splits
    assert {address(parts[name]) for name in splits} == {address(whole)}
    assert parts["test"]["label"][:] == [1, None, 0]
    assert sorted(parts["train"]["row"][:] + parts["validation"]["row"][:]) == list(range(40))
    for part in (parts["train"], parts["validation"]):
        assert part["label"][:] == [row % 2 for row in part["row"]]
        assert list(texts_of(part, at_once=7)) == [texts[row] for row in part["row"]]
    shuffled = parts["train"].shuffle(seed=1).select(range(9))  # what --max_train_samples does
    assert shuffled["label"][:] == [row % 2 for row in shuffled["row"]]


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    train, other = write_table(tmp_path / "train.csv"), write_table(tmp_path / "other.csv", 12)
    flags = ["--output_dir", tmp_path / "out", *TINY, "--skip_baselines"]
    run(monkeypatch, *flags, "--train_file", train)
    again = [*flags, "--resume_from_checkpoint", "last", "--num_train_epochs", "3"]
    with pytest.raises(SystemExit, match="other data: --train_file was .*train.csv and is .*other.csv"):
        run(monkeypatch, *again, "--train_file", other)
    tokenizer = (tmp_path / "out" / "tokenizer.json").read_text()
    write_table(
        train, 30, labels=("ships", "pets")
    )  # the file has changed: the tokenizer is that of the weights still
    run(monkeypatch, *again, "--train_file", train)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == tokenizer


def test_labels_as_files_have_them(monkeypatch):
    from training.classification_data import make_task, text_and_label

    def names(labels: list) -> list[str]:
        rows = Dataset.from_list([{"text": "x", "label": label} for label in labels])
        rows = text_and_label(rows, ["text"], "label", " ", "the data")
        return make_task(DatasetDict({"train": rows}), regression=False).label_names

    assert names([1.0, 2.0, 10.0]) == ["1", "2", "10"]
    assert names([" sport", "sport ", "arts"]) == ["arts", "sport"]
    assert names([True, False]) == ["False", "True"]
    with pytest.raises(SystemExit, match="numbers with fractions.*--do_regression"):
        names([0.5, 1.0])


def test_a_file_with_labels_of_two_kinds(tmp_path, monkeypatch):
    lines = [json.dumps({"text": f"number {row}", "label": [1, "one"][row % 2]}) for row in range(24)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    flags = ["--train_file", tmp_path / "mixed.jsonl", *TINY, "--skip_baselines", "--max_steps", "1"]
    run(monkeypatch, "--output_dir", tmp_path / "out", *flags)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert set(config.label2id) == {"1", "one"}


def test_a_head_for_other_classes(tmp_path, monkeypatch):
    train = write_table(tmp_path / "train.csv")
    run(monkeypatch, "--output_dir", tmp_path / "two", "--train_file", train, *TINY, "--skip_baselines")
    flags = [
        "--train_file",
        write_table(tmp_path / "three.csv", labels=("a", "b", "c")),
        "--use_cpu",
        "--max_steps",
        "1",
    ]
    flags += ["--output_dir", tmp_path / "three", "--skip_baselines", "--model_name_or_path", tmp_path / "two"]
    with pytest.raises(SystemExit, match="weights of other sizes .*--ignore_mismatched_sizes"):
        run(monkeypatch, *flags)
    run(monkeypatch, *flags, "--ignore_mismatched_sizes")


def test_flags_given(monkeypatch, tmp_path):
    from training.flags import given_flags, training_flags

    given = given_flags(["--do-train", "--seed=3", "--seeds", "1", "2", "--output_dir", "x"])
    assert given == {"do_train": [], "seed": ["3"], "seeds": ["1", "2"], "output_dir": ["x"]}
    assert training_flags(given) == {"do_train": [], "seed": ["3"], "seeds": ["1", "2"]}
    settings = {
        "output_dir": str(tmp_path / "out"),
        "train_file": str(write_table(tmp_path / "a.csv")),
        "use_cpu": True,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"skip_baselines": True, "max_steps": 1}))
    run(monkeypatch, tmp_path / "settings.json")
    assert (tmp_path / "out" / "run.json").exists()


def test_tokens_are_not_in_records(monkeypatch):
    from common import run_record

    for flags, told in (
        (["--token", "hf_secret", "--seed", "1"], ["--token", "***", "--seed", "1"]),
        (["--hub-token=hf_secret"], ["--hub-token=***"]),
        (["--tokenizer_name", "x"], ["--tokenizer_name", "x"]),
    ):
        monkeypatch.setattr("sys.argv", ["/somewhere/run_clm.py", *flags])
        assert run_record.command() == ["scripts/run_clm.py", *told]


def test_the_commit_is_that_of_the_start(monkeypatch):
    from common import run_record

    before = run_record.provenance()["commit"]
    monkeypatch.setattr(run_record, "_commit", lambda: "another")
    assert before and run_record.provenance()["commit"] == before


def bad_inputs(folder: Path) -> dict[str, tuple[list, str]]:
    """Flags by name of what is wrong, and the words of the error."""
    good = write_table(folder / "good.csv")
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("text,label\n")
    (folder / "latin1.csv").write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
    (folder / "semicolons.csv").write_text("text;label\ncats;pets\n")
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
        "test file of a dataset": (["--dataset_name", "imdb", "--test_file", good], "need a --train_file"),
        "length 0": (["--train_file", good, "--max_seq_length", "0"], "--max_seq_length must be 1 or more"),
        "no rows wanted": (
            ["--train_file", good, "--max_train_samples", "0"],
            "--max_train_samples must be 1 or more",
        ),
        "misspelt flag": (
            ["--leraning_rate", "1"],
            "not understood: --leraning_rate 1. Did you mean --learning_rate?",
        ),
        "misspelt field": (
            ["--train_file", good, "--config_overrides", "num_hiden_layers=2"],
            "no field 'num_hiden_layers'. Did you mean num_hidden_layers?",
        ),
        "classes as a field": (
            ["--train_file", good, "--config_overrides", "num_labels=5"],
            "num_labels follows from the data",
        ),
        "small vocabulary": (
            ["--train_file", good, "--config_overrides", "vocab_size=9"],
            "vocab_size must be .* or more",
        ),
        "no such model": (["--train_file", good, "--model_name_or_path", folder / "x"], "there is no folder .*x"),
        "semicolons": (["--train_file", folder / "semicolons.csv"], "have another delimiter"),
    }


BAD_INPUTS = (
    "no such file, empty file, no rows, not UTF-8, no text column, no label column, one class, rows without a label, "
    "unseen label, no numbers, full folder, block size 0, not an override, no such split, two sources, test file of a dataset, length 0, "
    "no rows wanted, misspelt flag, misspelt field, classes as a field, small vocabulary, no such model, semicolons"
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
