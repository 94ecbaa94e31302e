# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`convert_checkpoint.py`: a folder in, a complete folder out, which works where this package is not installed."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config, pipeline

from conversion.card import base_model_of
from evaluation.scoring import nats_by_position
from evaluation.texts import long_texts
from helpers import SCRIPTS, assert_close, run_script
from hub.card_checks import check_card
from hub_server import MARY
from hub_users import Users


CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
CARD = "---\nlicense: llama3.1\nlanguage:\n- en\n---\n# A small model\n"
QUESTION = [{"role": "user", "content": "the state of the union"}]
SMALL = ("--calibration_rows", 2, "--calibration_length", 128, "--evaluation_length", 0)

# What a process without this package does.
PROGRAM = """
def answer(folder, question):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer.apply_chat_template(question, return_tensors="pt", return_dict=True)
    written = model.generate(**batch, max_new_tokens=12, do_sample=False)
    return {"module": type(model).__module__, "tokens": written.tolist()}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_tokenizer) -> Path:
    """A small Llama model in several files, with a card, a chat template and a token more."""
    folder = tmp_path_factory.mktemp("base") / "small-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.update(temperature=0.6, do_sample=True, max_new_tokens=7)
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, **tiny_tokenizer.special_tokens_map)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "small-llama-sinkhorn"
    with pytest.MonkeyPatch.context() as patch:
        run_script(
            patch,
            "convert_checkpoint.py",
            *("--model_name_or_path", source, "--output_dir", folder, "--base_model", "someone/small-llama"),
            *("--config_overrides", "block_size=8", "num_sorted_blocks=2", *SMALL),
        )
    return folder


def test_the_folder_is_complete(converted, source):
    names = {path.name for path in converted.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert {"chat_template.jinja", "modeling_sinkhorn.py", "token_attention_sinkhorn.py"} <= names
    assert "conversion_sinkhorn.py" not in names
    generation = json.loads((converted / "generation_config.json").read_text(encoding="utf-8"))
    assert (generation["temperature"], generation["do_sample"], generation["max_new_tokens"]) == (0.6, True, 7)
    config = json.loads((converted / "config.json").read_text(encoding="utf-8"))
    assert config["block_size"] == 8 and config["sort_granularity"] == "token" and config["is_decoder"]
    assert config["pad_token_id"] is None  # not the default of a model of ours
    assert not any(str(source.parent) in path.read_text(encoding="utf-8") for path in converted.glob("*.json"))


def test_the_card(converted):
    assert check_card(converted / "README.md") == []
    data = yaml.safe_load((converted / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert data["license"] == "llama3.1" and data["base_model"] == "someone/small-llama" and data["language"] == ["en"]
    assert data["pipeline_tag"] == "text-generation"
    assert "Texts shorter than 40 tokens are read whole" in (converted / "README.md").read_text(encoding="utf-8")


def test_the_tokenizer(converted, source):
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (converted, source))
    for tokenizer in (ours, theirs):
        assert tokenizer.convert_tokens_to_ids("<tool>") == len(tokenizer) - 1
    assert ours.apply_chat_template(QUESTION) == theirs.apply_chat_template(QUESTION)


def test_it_loads_and_saves_again(converted, source, tmp_path):
    tokens = torch.randint(5, 200, (2, 40))
    model = AutoModelForCausalLM.from_pretrained(converted)
    expected = AutoModelForCausalLM.from_pretrained(source)(tokens).logits
    assert_close(model(tokens).logits, expected)  # five blocks: all are read
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    long = torch.randint(5, 200, (1, 150))
    assert torch.equal(again(long).logits, model(long).logits)
    assert again.config.pad_token_id is None
    full = AutoModelForCausalLM.from_pretrained(converted, layer_types=["full_attention"] * 2)
    assert_close(full(long).logits, AutoModelForCausalLM.from_pretrained(source)(long).logits)


def test_a_converted_folder_is_converted_again(converted, tmp_path, monkeypatch, capsys):
    """As after training: the same settings, and the licence and the base model of the first."""
    folder = tmp_path / "again"
    run_script(monkeypatch, "convert_checkpoint.py", "--model_name_or_path", converted, "--output_dir", folder, *SMALL)
    assert "With full attention its logits are those of" in capsys.readouterr().out
    configs = [json.loads((x / "config.json").read_text(encoding="utf-8")) for x in (converted, folder)]
    assert configs[0] == configs[1]
    assert check_card(folder / "README.md") == []
    data = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert data["license"] == "llama3.1" and data["base_model"] == "someone/small-llama"


def test_it_works_without_the_package(converted, elsewhere):
    arguments = {"folder": str(converted), "question": QUESTION}
    report = elsewhere.do("answer", PROGRAM, arguments, offline=True).checked()
    assert report["module"].startswith("transformers_modules.")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(converted), AutoTokenizer.from_pretrained(converted)
    batch = tokenizer.apply_chat_template(QUESTION, return_tensors="pt", return_dict=True)
    assert report["tokens"] == model.generate(**batch, max_new_tokens=12, do_sample=False).tolist()


def test_weights_are_stored_in_the_type_that_they_had(source, tmp_path, monkeypatch):
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "half")
    for flags, dtype in (((), torch.bfloat16), (("--dtype", "float16"), torch.float16)):
        folder = tmp_path / str(dtype)
        flags = ("--model_name_or_path", tmp_path / "half", "--output_dir", folder, *SMALL, *flags)
        run_script(monkeypatch, "convert_checkpoint.py", *flags)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_it_is_pushed_and_opened_by_its_name(converted, hub, elsewhere):
    users, text, options = Users(elsewhere), "the state of the union", {"max_new_tokens": 12, "do_sample": False}
    users.push(SCRIPTS / "push_to_hub.py", "--model_folder", converted, "--repo_id", "mary/small").checked()
    revision = hub.repos["mary/small"].head.oid
    report = users.pull(
        "pipe", token=MARY, task="text-generation", repo="mary/small", revision=revision, text=text, options=options
    ).checked()
    assert report["module"].startswith("transformers_modules.mary")
    assert report["answer"] == pipeline("text-generation", model=str(converted))(text, **options)


def test_one_name_stands_for_all_layers_and_a_file_calibrates(source, tmp_path, monkeypatch, capsys):
    flags = ("--model_name_or_path", source, "--output_dir", tmp_path / "full")
    flags = (*flags, "--config_overrides", "layer_types=full_attention", *SMALL)
    run_script(monkeypatch, "convert_checkpoint.py", *flags)
    assert "its logits are those of" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "full").config.layer_types == ["full_attention"] * 2
    text = tmp_path / "text.txt"
    text.write_text("peace and friendship with all mankind. " * 60, encoding="utf-8")
    flags = ("--model_name_or_path", source, "--output_dir", tmp_path / "mine", "--calibration_file", text)
    run_script(monkeypatch, "convert_checkpoint.py", *flags, *SMALL)
    assert "Calibrating the index on 256 tokens" in capsys.readouterr().out


def test_it_ends_with_a_comparison(source, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "compared"
    blocks = ("--config_overrides", "block_size=8", "num_sorted_blocks=2")
    flags = ("--model_name_or_path", source, "--output_dir", folder, *blocks, *SMALL, "--evaluation_length", 512)
    run_script(monkeypatch, "convert_checkpoint.py", *flags)
    table = capsys.readouterr().out.split("\n| | ")[1]
    assert table.startswith("source | converted | window of as many keys |")
    for row in (
        "perplexity up to 512",
        "passkey, 512 tokens: given / written",
        "keys read, 512 tokens | 512 | 40 | 40 |",
    ):
        assert row in table
    models = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
    tokens = AutoTokenizer.from_pretrained(folder)(long_texts(None, "text", 1, 4096)[0])["input_ids"][:512]
    for label, changes in (("source", {"layer_types": ["full_attention"] * 2}), ("converted", {})):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changes)
        expected = nats_by_position(model, tokens, [0, 256, 512])["nats"]
        assert models[label]["measured"]["perplexity/512/0"]["nats"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--config_overrides", "hidden_size=8"), "cannot be converted so. `hidden_size` cannot be chosen"),
        (("--config_overrides", "block_size=0"), "`block_size` must be at least 1"),
        (("--calibration_file", "absent.txt"), "there is no file absent.txt"),
        (("--evaluation_length", "8"), "--evaluation_length must be at least 512, or 0"),
        (("--dtype", "int8"), "--dtype must be float32"),
        (("--base_model", "/a/b"), "--base_model must be an id on the Hub"),
    ],
    ids=str,
)
def test_refusals_write_nothing(source, tmp_path, monkeypatch, flags, words):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit, match=words):
        run_script(
            monkeypatch,
            "convert_checkpoint.py",
            "--model_name_or_path",
            source,
            "--output_dir",
            folder,
            *SMALL,
            *flags,
        )
    assert not folder.exists()


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(tmp_path, monkeypatch):
    Qwen3Config(use_sliding_window=True, sliding_window=8, max_window_layers=0).save_pretrained(tmp_path / "qwen3")
    for folder, words in (("qwen3", "`sliding_window` is 8"), ("absent", "there is no folder")):
        flags = ("--model_name_or_path", tmp_path / folder, "--output_dir", tmp_path / "out")
        with pytest.raises(SystemExit, match=words):
            run_script(monkeypatch, "convert_checkpoint.py", *flags)


def test_a_full_folder_is_kept(source, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="is not empty.*--overwrite_output_dir"):
        run_script(monkeypatch, "convert_checkpoint.py", "--model_name_or_path", source, "--output_dir", tmp_path)


def test_the_base_model_of_a_hub_id_is_itself():
    assert base_model_of("HuggingFaceTB/SmolLM2-135M-Instruct", None, None) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_model_of(str(SCRIPTS), None, None) is None
