# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`maintain.py encoders`: windows, the average over them, and runs that are there already."""

import json
import math
import subprocess
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from common.errors import UserError
from maintenance import encoder_data, encoders
from maintenance.windows import document_scores, windows_of


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "state", "of", "union", "##s", ",", "peace"]


@pytest.fixture
def tokenizer():
    pieces = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=512, **special)


def test_windows_end_with_words_and_leave_nothing_out(tokenizer):
    text = "  The state, of\n the Unions  peace"  # eight tokens, of which the sixth and seventh are one word
    assert windows_of(text, tokenizer, 5) == ["The state,", "of\n the", "Unions  peace"]
    assert windows_of(text, tokenizer, 8) == ["The state, of\n the", "Unions  peace"]
    assert windows_of(text, tokenizer, 100) == [text.strip()]
    assert windows_of("unions", tokenizer, 3) == ["union", "s"]
    assert windows_of(" ", tokenizer, 5) == [" "]
    ids = [tokenizer(window, add_special_tokens=False)["input_ids"] for window in windows_of(text, tokenizer, 5)]
    assert sum(ids, []) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_average_over_windows_is_that_by_hand(tmp_path):
    # By document: 0: (.9 + .4 + .4) / 3 for a, though most windows say b; 1: b, wrongly; 2: c; 10: a, wrongly.
    rows = [
        ("0", "b", "a", 0.9, 0.1, 0.0),
        ("0", "b", "a", 0.4, 0.6, 0.0),
        ("1", "a", "a", 0.0, 1.0, 0.0),
        ("0", "b", "a", 0.4, 0.6, 0.0),
        ("2", "c", "c", 0.3, 0.1, 0.6),
        ("2", "a", "c", 0.5, 0.1, 0.4),
        ("10", "a", "b", 0.8, 0.1, 0.1),
    ]
    lines = ["index\tid\tprediction\tlabel\tp(a)\tp(b)\tp(c)"]
    lines += ["\t".join(map(str, (number, *row))) for number, row in enumerate(rows)]
    (tmp_path / "predict_results.tsv").write_text("\n".join(lines) + "\n")
    scores = document_scores(tmp_path / "predict_results.tsv")
    assert scores["accuracy"] == 2 / 4
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 0 + 1) / 3)  # a: one of two right, one of two found


def test_all_seeds_have_the_same_unbalanced_periods():
    for seed in (0, 1):
        drawn = encoder_data.draw_addresses(seed)
        counts = [drawn["train"]["period"][:].count(period) for period in encoder_data.PERIOD_SIZES]
        assert counts == list(encoder_data.PERIOD_SIZES.values())
        assert not set(drawn["train"]["text"][:]) & set(drawn["test"]["text"][:])


def test_long_reviews_are_long_and_the_test_is_the_same_for_every_seed(tokenizer, tmp_path, monkeypatch):
    for part in ("train", "test"):
        rows = [
            {"text": f"the {part} {row}<br />" + "peace " * (600 if row % 3 else 100), "label": row % 2}
            for row in range(40)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / f"{part}.parquet")
    monkeypatch.setattr(encoder_data, "TRAINING_REVIEWS", {encoder_data.REVIEWS: 10, encoder_data.ALL_REVIEWS: 20})
    monkeypatch.setattr(encoder_data, "VALIDATION_ROWS", slice(10, 14))
    monkeypatch.setattr(encoder_data, "TEST_REVIEWS", 6)
    parts = {
        (task, seed): encoder_data.draw_reviews(task, seed, tokenizer, str(tmp_path))
        for task, seed in ((encoder_data.REVIEWS, 0), (encoder_data.REVIEWS, 1), (encoder_data.ALL_REVIEWS, 0))
    }
    for (task, _), drawn in parts.items():
        num_train = encoder_data.TRAINING_REVIEWS[task]
        assert {name: len(rows) for name, rows in drawn.items()} == {"train": num_train, "validation": 4, "test": 6}
        texts = [*drawn["train"]["text"][:], *drawn["validation"]["text"][:]]
        assert len(set(texts)) == num_train + 4 and not any("<br" in text for text in texts)
        lengths = {name: {text.count("peace") for text in rows["text"][:]} for name, rows in drawn.items()}
        assert lengths["validation"] == lengths["test"] == {600}
        assert lengths["train"] == ({600} if task == encoder_data.REVIEWS else {100, 600})
        assert all(text.startswith("the test") for text in drawn["test"]["text"][:])
    of_0, of_1, of_any_length = parts.values()
    assert of_0["test"][:] == of_1["test"][:] and of_0["train"][:] != of_1["train"][:]
    assert of_0["validation"][:] == of_any_length["validation"][:]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = encoder_data.data_flags(tmp_path / "data", str(tmp_path / "tokenizer"), str(tmp_path))(
        encoder_data.REVIEWS, False, 0
    )
    files = dict(zip(flags[::2], flags[1::2]))
    assert list(files) == ["--train_file", "--validation_file", "--test_file"]
    assert Dataset.from_csv(files["--train_file"], cache_dir=tmp_path)["label"][:] == of_0["train"]["label"][:]


@pytest.mark.parametrize("code, words", [(-9, "signal 9, perhaps too little memory"), (1, "out of luck")])
def test_a_run_that_failed_keeps_what_it_trained(code, words, tmp_path, monkeypatch):
    weights = tmp_path / "run" / "checkpoint-7" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()

    def fail(command, stdout, **kwargs):
        stdout.write("out of luck\n")
        stdout.flush()
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match=words):
        encoders.run_job(tmp_path / "run", [], math.inf)
    assert weights.exists()


@pytest.mark.slow  # processes of their own: half a minute
@pytest.mark.ci
def test_runs_end_to_end_and_are_kept(tokenizer, tmp_path, monkeypatch, capsys):
    for name, positions in (("short", 512), ("long", 600)):
        config = BertConfig(
            vocab_size=len(PIECES), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            max_position_embeddings=positions
        )  # fmt: skip
        BertModel(config).save_pretrained(tmp_path / name)
        tokenizer.model_max_length = positions
        tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    flags = [
        *("--model_name_or_path", "short", "--long_model_name_or_path", "long", "--long_length", "600"),
        *("--runs", "runs", "--results", "results.json", "--seeds", "1", "--tasks", "period", "--conditions"),
    ]
    few = ["--", "--max_steps", "1", "--max_train_samples", "8", "--max_eval_samples", "2", "--use_cpu"]
    few += ["--max_predict_samples", "9"]
    encoders.main([*flags, *encoders.ON_WINDOWS, encoders.WINDOWS, "--jobs", "2", "--epochs_after_windows", "2", *few])
    found = json.loads((tmp_path / "results.json").read_text())["tasks"]["period"]
    after = found[encoders.AFTER_WINDOWS]["runs"][0]
    assert after["config"]["max_position_embeddings"] == 600 and after["config"]["sinkhorn_attention"]
    assert after["command"][after["command"].index("--num_train_epochs") + 1] == "2.0"
    folder = tmp_path / "runs" / "period-windows_of_512_averaged-1"
    for name in encoders.AS_IT_IS:
        length = 512 if name == encoders.FIRST_AS_IT_IS else 600
        run = found[name]["runs"][0]
        assert run["config"]["max_position_embeddings"] == length and run["scores"]["this model"]
        assert "--do_train" not in run["command"] and "--do_predict" in run["command"]
    assert "TF-IDF, whole text" in found[encoders.FIRST_AS_IT_IS]["runs"][0]["scores"]
    weights = [
        load_file(path) for path in (folder / "model.safetensors", *tmp_path.glob("runs/*-longer/model.safetensors"))
    ]
    assert len(weights) == 2 and all(
        torch.equal(x, weights[1][name]) for name, x in weights[0].items() if "position" not in name
    )
    (tmp_path / "runs" / "period-windows_of_512_averaged-1-longer" / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    done = json.loads((tmp_path / "results.json").read_text())["tasks"]["period"][encoders.WINDOWS]
    assert done["seeds"] == [1] and done["runs"][0]["scores"].keys() == {"this model", "by window"}
    assert done["runs"][0]["scores"]["this model"] == document_scores(folder / "predict_results.tsv")
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
    assert not list(folder.rglob("*.safetensors"))

    called = []
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: called.append(args))
    encoders.main([*flags, encoders.WINDOWS, *few])
    assert not called
    assert json.loads((tmp_path / "results.json").read_text())["tasks"]["period"][encoders.WINDOWS] == done
    with pytest.raises(SystemExit, match="has other flags"):
        encoders.main([*flags, encoders.WINDOWS, *few, "--learning_rate", "1"])
    encoders.main(["--minutes", "0", *flags, encoders.FIRST, *few])
    assert not called and "1 runs are left" in capsys.readouterr().out
    (tmp_path / "runs" / "period-windows_of_512_then_whole_sinkhorn-1" / "run.json").unlink()
    with pytest.raises(SystemExit, match="has no weights to go on from"):
        encoders.main([*flags, encoders.AFTER_WINDOWS, "--epochs_after_windows", "2", *few])
