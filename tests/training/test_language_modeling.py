# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/run_clm.py`, `run_mlm.py` and `run_generation.py` as a user calls them, on small files."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainerCallback, pipeline

import modeling_sinkhorn  # noqa: F401  registers the classes
from helpers import run_script, tiny_config


TINY = [
    "--config_overrides",
    "hidden_size=16,intermediate_size=24,num_hidden_layers=2,num_attention_heads=2,block_size=8",
    "--train_tokenizer_vocab_size",
    "300",
    "--num_train_epochs",
    "2",
    "--use_cpu",
]
SENTENCES = ["cats and dogs at home", "sails and masts at sea", "peace and friendship with all mankind"]


def write_documents(path: Path, documents: int = 12) -> Path:
    texts = [" ".join(SENTENCES[(row + word) % 3] for word in range(4 + row % 5)) for row in range(documents)]
    Dataset.from_dict({"text": texts}).to_json(path)
    return path


def scores(folder: Path, name: str = "this model") -> dict:
    return json.loads((folder / "run.json").read_text())["models"][name]["scores"]


def test_causal_from_a_file_to_text(tmp_path, monkeypatch, capsys):
    out, test = tmp_path / "out", write_documents(tmp_path / "test.jsonl", 3)
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 60), "--test_file", test, "--block_size", "32"]
    run_script(monkeypatch, "run_clm.py", "--output_dir", out, *flags, *TINY, "--learning_rate", "0.02")
    printed = capsys.readouterr().out
    assert "3 of 60 training documents are held out" in printed
    assert "are left out" in printed and "| sinkhorn_attention |" in printed
    assert scores(out)["test"]["perplexity"] < 10

    # The figures again, by hand.
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    texts = [json.loads(line)["text"] for line in test.read_text().splitlines()]
    tokens = sum((tokenizer(text, add_special_tokens=False)["input_ids"] + [2] for text in texts), [])
    rows = torch.tensor(tokens[: len(tokens) // 32 * 32]).view(-1, 32)
    loss = model(rows, labels=rows).loss.item()
    assert scores(out)["test"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
    bits = loss / math.log(2) * len(tokens) / sum(len(text.encode()) for text in texts)
    assert scores(out)["test"]["bits_per_byte"] == pytest.approx(bits, rel=1e-3)

    run_script(
        monkeypatch, "run_generation.py", "--model_name_or_path", out, "--prompt", "cats and", "--do_sample", "false"
    )
    text = capsys.readouterr().out
    assert text.startswith("cats and") and len(text) > 100
    assert text.strip().startswith(
        pipeline("text-generation", model=str(out))("cats and", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    )


def test_comparison_at_equal_parameters(tmp_path, monkeypatch, capsys):
    train = write_documents(tmp_path / "train.jsonl", 30)
    flags = ["--train_file", train, *TINY, "--block_size", "32", "--compare_with", "local_attention,full_attention"]
    run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "out", *flags)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    models = record["models"]
    assert list(models) == ["full_attention", "local_attention", "this model"]
    sizes = [model["parameters"] for model in models.values()]
    assert max(sizes) - min(sizes) <= 3 * 16 * 2  # one unit of the feed-forward network in each layer
    assert models["full_attention"]["config"]["attention_types"] == ["full_attention"] * 2
    printed = capsys.readouterr().out
    assert all(f"| {kind}_attention " in printed for kind in ("sinkhorn", "local", "full"))
    assert (tmp_path / "out" / "compare" / "local_attention" / "model.safetensors").exists()


def test_whole_documents(tmp_path, monkeypatch, capsys):
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 30), *TINY, "--keep_documents"]
    run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "out", *flags)
    assert "left out" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["data"]["train"] == 28


def test_extra_documents_are_for_training_alone(tmp_path, monkeypatch, capsys):
    train, extra = write_documents(tmp_path / "train.jsonl", 30), tmp_path / "extra.txt"
    extra.write_text("birds " * 2000)
    flags = ["--train_file", train, "--extra_train_file", extra, *TINY, "--keep_documents"]
    run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "out", *flags)
    assert "2 of 30 training documents are held out" in capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "run.json").read_text())["data"]
    assert (data["train"], data["validation"]) == (29, 2)
    words = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert "\u0120birds" in words, "the tokenizer is trained on it too"


def test_masked_from_a_text_file_to_fillings(tmp_path, monkeypatch, capsys):
    train, other = tmp_path / "train.txt", tmp_path / "other.txt"
    train.write_text("\n".join(SENTENCES * 60))
    other.write_text("\n".join(SENTENCES * 9))
    flags = ["--train_file", train, "--validation_file", other, *TINY, "--max_seq_length", "32"]
    run_script(monkeypatch, "run_mlm.py", "--output_dir", tmp_path / "out", *flags, "--learning_rate", "0.02")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    final, log = (record["models"]["this model"][part] for part in ("scores", "log"))
    best = min(entry["eval_perplexity"] for entry in log if "eval_perplexity" in entry)  # whose weights are kept
    perplexity = final["validation"]["perplexity"]
    assert perplexity == pytest.approx(best), "the masks are the same in every evaluation"
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "out")).__name__ == "SinkhornForMaskedLM"
    assert len(pipeline("fill-mask", model=str(tmp_path / "out"))("cats and <mask> at home")) == 5
    with pytest.raises(SystemExit, match="reads in both directions and cannot write"):
        run_script(monkeypatch, "run_generation.py", "--model_name_or_path", tmp_path / "out", "--prompt", "cats")


def test_a_text_alone_holds_out_its_tail(tmp_path, monkeypatch, capsys):
    train = tmp_path / "run [v2]" / "a::b.txt"
    train.parent.mkdir()
    train.write_text("\n".join(SENTENCES * 100) + "\n the very end", encoding="utf-8")
    flags = ["--train_file", train, *TINY, "--block_size", "32", "--num_train_epochs", "1"]
    run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "out", *flags)
    assert "the last 80 of 1603 words of the one document are held out" in capsys.readouterr().out

    from training.language_data import LanguageModelingDataArguments, load_documents

    parts = load_documents(LanguageModelingDataArguments(train_file=str(train)))
    kept, tail = parts["train"][0]["text"], parts["validation"][0]["text"]
    assert tail.endswith("the very end") and len(tail.split()) == 80
    assert (kept.split() + tail.split()) == train.read_text().split()


def test_empty_texts_are_left_out_and_told(tmp_path, capsys):
    from training.language_data import LanguageModelingDataArguments, load_documents

    train = tmp_path / "train.csv"
    train.write_text('text,other\ncats,\n"",1\nNone,2\n"  ",3\n007,4\n')
    parts = load_documents(LanguageModelingDataArguments(train_file=str(train), validation_file=str(train)))
    assert list(parts["train"]["text"]) == ["cats", "None", "007"]
    assert "the train data: 2 of 5 texts are empty and left out (rows 1, 3, counted from 0)" in capsys.readouterr().out


def test_an_interrupted_comparison_goes_on(tmp_path, monkeypatch):
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 30), *TINY, "--block_size", "32"]
    flags += ["--compare_with", "local_attention"]
    run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "whole", *flags)

    class PullThePlug(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if "compare" in args.output_dir and state.epoch == 1:
                raise KeyboardInterrupt

    plain = Trainer.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.add_callback(PullThePlug())

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "__init__", init)
        with pytest.raises(KeyboardInterrupt):
            run_script(broken, "run_clm.py", "--output_dir", tmp_path / "broken", *flags)
    assert not (tmp_path / "broken" / "run.json").exists()
    run_script(
        monkeypatch, "run_clm.py", "--output_dir", tmp_path / "broken", *flags, "--resume_from_checkpoint", "last"
    )
    for name in ("this model", "local_attention"):
        assert scores(tmp_path / "broken", name) == scores(tmp_path / "whole", name)


def test_a_run_that_ended_is_not_taken_for_one_of_other_flags(tmp_path, monkeypatch):
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 30), *TINY, "--block_size", "32"]
    flags += ["--output_dir", tmp_path / "out"]
    run_script(monkeypatch, "run_clm.py", *flags)
    first = scores(tmp_path / "out")
    run_script(monkeypatch, "run_clm.py", *flags, "--resume_from_checkpoint", "last")
    assert scores(tmp_path / "out") == first
    with pytest.raises(SystemExit, match="with the flags .*'2'.*; now they are .*'3'.*--output_dir"):
        run_script(monkeypatch, "run_clm.py", *flags, "--num_train_epochs", "3", "--resume_from_checkpoint", "last")
    assert scores(tmp_path / "out") == first


def test_a_tokenizer_without_padding(tmp_path, monkeypatch):
    """GPT-2's kind; the end of a text is to be predicted too."""
    from training.language_modeling import PadWithLabels
    from training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(SENTENCES * 20, 300, show_progress=False)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    batch = PadWithLabels(tokenizer)([{"input_ids": [5, 2, 7]}, {"input_ids": [6, 2]}])
    assert batch["labels"].tolist() == [[5, 2, 7], [6, 2, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 30), "--block_size", "32", "--use_cpu"]
    flags += ["--model_type", "gpt2", "--config_overrides", "n_embd=16,n_layer=1,n_head=2,n_positions=64"]
    flags += ["--tokenizer_name", tmp_path / "tokenizer", "--output_dir", tmp_path / "out", "--max_steps", "2"]
    run_script(monkeypatch, "run_clm.py", *flags)
    assert scores(tmp_path / "out")["validation"]["perplexity"] > 1


def test_weights_are_held_in_the_type_asked_for_and_one_layer_type_stands_for_all(tmp_path, monkeypatch):
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 30), *TINY, "--block_size", "32"]
    flags += ["--max_steps", "1", "--dtype", "bfloat16"]
    run_script(monkeypatch, "run_clm.py", *flags, "--output_dir", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    flags = ["--train_file", tmp_path / "train.jsonl", "--block_size", "32", "--use_cpu", "--max_steps", "1"]
    flags += ["--model_name_or_path", tmp_path / "out", "--config_overrides", "layer_types=local_attention"]
    run_script(monkeypatch, "run_clm.py", *flags, "--output_dir", tmp_path / "local")
    record = json.loads((tmp_path / "local" / "run.json").read_text())
    assert record["models"]["this model"]["config"]["attention_types"] == ["local_attention"] * 2


def test_generation_settings_are_the_models_own(monkeypatch):
    from generation.sampling import settings
    from run_generation import GenerationArguments

    model = AutoModelForCausalLM.from_config(tiny_config(is_decoder=True))
    ours = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.0}
    assert settings(GenerationArguments("x", prompt="a"), model) == ours
    model.generation_config.repetition_penalty, model.generation_config.top_k = 1.1, 7
    assert settings(GenerationArguments("x", prompt="a"), model) == {"temperature": 0.8, "top_p": 0.95}
    assert settings(GenerationArguments("x", prompt="a", top_k=3), model)["top_k"] == 3
    assert settings(GenerationArguments("x", prompt="a", do_sample=False), model) == {}


BAD_INPUTS = {
    "no such file": (["--train_file", "nothing.txt"], "there is no file nothing.txt"),
    "no column": (
        ["--train_file", "good.jsonl", "--text_column_name", "body"],
        "no column 'body'.*--text_column_name",
    ),
    "too short": (
        ["--train_file", "good.jsonl", "--block_size", "100000"],
        "shorter than one chunk.*--keep_documents",
    ),
    "one word": (["--train_file", "one.txt"], "one document of one word; give --validation_file"),
    "a short text": (
        ["--train_file", "short.txt"],
        "validation data is shorter than one chunk.*--validation_split_percentage",
    ),
    "objects as texts": (["--train_file", "chats.jsonl"], "the text of row 0, counted from 0, is no text"),
    "no text": (["--train_file", "blank.jsonl"], "has no text"),
    "unknown layers": (["--train_file", "good.jsonl", "--compare_with", "local"], "`layer_types` holds"),
    "sortcut": (["--train_file", "good.jsonl", "--compare_with", "sortcut_attention"], "in a decoder"),
    "comparison with weights": (
        ["--train_file", "good.jsonl", "--compare_with", "local_attention", "--model_name_or_path", "x"],
        "trains each model from scratch.*--config_name",
    ),
    "comparison from one checkpoint": (
        ["--train_file", "good.jsonl", "--compare_with", "local_attention", "--resume_from_checkpoint", "full"],
        "--resume_from_checkpoint last finds each one's",
    ),
    "chunks of 0": (["--train_file", "good.jsonl", "--block_size", "0"], "--block_size must be 2 or more"),
    "chunks longer than the model": (
        ["--train_file", "good.jsonl", "--model_type", "gpt2", "--config_overrides", "n_positions=64"],
        "chunks of 1024 tokens are longer than the 64 that the model accepts",
    ),
    "two sources": (["--train_file", "good.jsonl", "--dataset_name", "imdb"], "not both"),
    "no such extra file": (["--train_file", "good.jsonl", "--extra_train_file", "no.txt"], "there is no file no.txt"),
    "extra file without text": (
        ["--train_file", "good.jsonl", "--extra_train_file", "blank.jsonl"],
        "the extra training data has no text",
    ),
    "full folder": (["--train_file", "good.jsonl", "--output_dir", "full"], "not empty.*--resume_from_checkpoint"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line_and_writes_nothing(case, tmp_path, monkeypatch):
    flags, words = BAD_INPUTS[case]
    monkeypatch.chdir(tmp_path)
    write_documents(Path("good.jsonl"))
    Path("one.txt").write_text(" cats ")
    Path("short.txt").write_text("cats and dogs " * 2000)
    Path("chats.jsonl").write_text('{"text": [{"role": "user", "content": "cats"}]}')
    Dataset.from_dict({"text": ["", " "]}).to_json("blank.jsonl")
    Path("full").mkdir()
    Path("full", "work").write_text("hours of it")
    before = sorted(tmp_path.rglob("*"))
    flags = [*TINY, *flags] if "--output_dir" in flags else [*TINY, *flags, "--output_dir", "out"]
    with pytest.raises(SystemExit, match=f"(?s)error: .*{words}"):
        run_script(monkeypatch, "run_clm.py", *flags)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_prompts(tmp_path, monkeypatch):
    for flags, words in (
        ([], "give a --prompt or a --prompt_file"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt_file", tmp_path / "nothing.txt"], "there is no file"),
    ):
        with pytest.raises(SystemExit, match=words):
            run_script(monkeypatch, "run_generation.py", "--model_name_or_path", tmp_path, *flags)


# Adapters -------------------------------------------------------------------------------------------------------------


INDEX = ",sort_granularity=token,sort_net=index,sort_assignment=hard,index_head_dim=4,num_local_blocks=2"


def test_adapters_are_trained_and_merged_and_an_index_stays(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    data = ["--train_file", write_documents(tmp_path / "train.jsonl", 40), "--block_size", "64"]
    base, out = tmp_path / "base", tmp_path / "out"
    tiny = [flag + INDEX if "hidden_size" in flag else flag for flag in TINY]
    run_script(monkeypatch, "run_clm.py", "--output_dir", base, *data, *tiny, "--max_steps", "1")
    flags = [*data, "--model_name_or_path", base, "--use_cpu", "--use_peft", "--lora_r", "2", "--learning_rate", "0.1"]
    flags += ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"]
    capsys.readouterr()
    run_script(monkeypatch, "run_clm.py", "--output_dir", out, *flags, "--save_steps", "2")
    # Two layers: four projections of 16 x 16 and three of 16 x 24 with adapters.
    assert f"Training {2 * (4 * 2 * 32 + 3 * 2 * 40):,} parameters" in capsys.readouterr().out

    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, out))
    weights = dict(before.named_parameters())
    for name, weight in after.named_parameters():
        changed = not torch.equal(weight, weights[name])
        assert changed == ("_proj." in name), name
    assert any("index_proj" in name for name in weights)
    # The folder has the complete model; its adapters, on the old one, give the same.
    import peft

    adapted = peft.PeftModel.from_pretrained(before, out / "adapter")
    tokens = torch.arange(5, 105).unsqueeze(0)
    torch.testing.assert_close(adapted(input_ids=tokens).logits, after(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not (out / "adapter_config.json").exists()
    loss = json.loads((out / "run.json").read_text())["models"]["this model"]["log"][-1]["eval_loss"]
    assert scores(out, "this model")["validation"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)


def test_adapters_of_a_masked_model(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    data = ["--train_file", write_documents(tmp_path / "train.jsonl", 40), "--max_seq_length", "64"]
    run_script(
        monkeypatch, "run_mlm.py", "--output_dir", tmp_path / "out", *data, *TINY, "--use_peft", "--max_steps", "2"
    )
    adapters = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    trained = {name for name, weight in adapters.items() if "lora_B" in name and weight.any()}  # 0 where it is not
    assert any("sort_net.row_proj" in name for name in trained) and any("mlp.up_proj" in name for name in trained)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--lora_r", 0), "--lora_r must be at least 1"),
        (("--lora_dropout", 1), "--lora_dropout must be from 0 to below 1"),
        (("--use_peft", "--lora_target_modules", "magic"), "--lora_target_modules: .*magic"),
    ],
    ids=str,
)
def test_adapters_that_cannot_be(flags, words, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    data = ["--train_file", write_documents(tmp_path / "train.jsonl", 20), "--block_size", "32"]
    with pytest.raises(SystemExit, match=words):
        run_script(monkeypatch, "run_clm.py", "--output_dir", tmp_path / "out", *data, *TINY, *flags)
