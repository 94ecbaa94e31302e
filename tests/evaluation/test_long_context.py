# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`evaluate_long_context.py`: prompts are what they say, scores are those of a full pass, runs resume."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from common.errors import UserError
from configuration_sinkhorn import SinkhornConfig
from evaluation import results, scoring
from evaluation.models import keys_read, parse_candidate
from evaluation.tasks import TASKS, make_prompt
from helpers import SCRIPTS, run_script
from modeling_sinkhorn import SinkhornForCausalLM


PROSE = "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea. " * 60
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}
BY_TOKEN = {
    "sort_granularity": "token",
    "sort_net": "keys",
    "sort_assignment": "hard",
    "block_size": 16,
    "num_sink_blocks": 1,
    "is_decoder": True,
}


@pytest.fixture
def folders(tmp_path, tiny_tokenizer) -> tuple[Path, Path]:
    """A Llama model, and one of ours with the same tokenizer."""
    torch.manual_seed(0)
    size = SIZES | {"vocab_size": len(tiny_tokenizer)}
    models = {
        "llama": AutoModelForCausalLM.from_config(LlamaConfig(**size)),
        "ours": SinkhornForCausalLM(SinkhornConfig(**size, **BY_TOKEN)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "llama", tmp_path / "ours"


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_quote_goes_on_as_the_text_does(tiny_tokenizer, depth):
    text = " ".join(f"{word} of {number}" for number, word in enumerate(PROSE.split()[:400]))
    prompt = make_prompt("quote", tiny_tokenizer, 900, depth, 0, text)
    assert len(prompt.tokens) + len(prompt.answer) == 900
    read, _, given = tiny_tokenizer.decode(prompt.tokens).rpartition('\n\nThe text above says: "')
    assert read.count(given) == 1 and len(given.split()) == 8
    answer = tiny_tokenizer.decode(prompt.answer)
    place = read.index(given)
    assert read[place + len(given) :].lstrip().startswith(answer.strip()) and len(answer.split()) == 4
    assert abs(place / len(read) - depth) < 0.25
    assert prompt != make_prompt("quote", tiny_tokenizer, 900, depth, 1, text)


def test_a_quote_needs_words_that_stand_there_once(tiny_tokenizer):
    with pytest.raises(UserError, match="no 8 words stand in the text once"):
        make_prompt("quote", tiny_tokenizer, 300, 0.5, 0, "peace " * 2000)
    with pytest.raises(UserError, match="'quote' needs at least 193 tokens"):
        make_prompt("quote", tiny_tokenizer, 100, 0.5, 0, PROSE)


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("depth", [0, 0.5, 1])
def test_prompts_have_the_length_and_depth_asked_for(task, depth, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    prompt = make_prompt(task, tiny_tokenizer, 900, depth, 0, PROSE)
    assert len(prompt.tokens) + len(prompt.answer) == 900
    text, answer = (tiny_tokenizer.decode(tokens) for tokens in prompt)
    first = answer.strip().split(",")[0]
    place = text.index(first) / text.index("\n\nWh")
    assert abs(place - depth) < 0.25
    for part in answer.strip().split(", "):
        assert part in text
    assert prompt == make_prompt(task, tiny_tokenizer, 900, depth, 0, PROSE)
    assert prompt != make_prompt(task, tiny_tokenizer, 900, depth, 1, PROSE)


def test_the_asked_key_is_one_of_several(tiny_tokenizer):
    text = tiny_tokenizer.decode(make_prompt("keys", tiny_tokenizer, 900, 0.5, 0, PROSE).tokens)
    assert text.count("The special number of") == 5


def test_a_chat_asks_for_the_same_through_the_template(tiny_tokenizer, monkeypatch):
    with pytest.raises(UserError, match="chat: the tokenizer has no chat template"):
        make_prompt("chat", tiny_tokenizer, 900, 0.5, 0, PROSE)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    prompt = make_prompt("chat", tiny_tokenizer, 900, 0.5, 0, PROSE)
    text, answer = (tiny_tokenizer.decode(tokens) for tokens in prompt)
    before, asked = text.split("\n\nWhat is the special number of ")
    name, begin = asked.split("?</><me>")
    assert before.startswith("<user>Call me Ishmael.") and begin.strip() == f"The special number of {name} is"
    assert f"The special number of {name} is {answer.strip()}." in before


def test_too_short_prompts_are_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="'values' needs at least"):
        make_prompt("values", tiny_tokenizer, 64, 0.5, 0, PROSE)
    with pytest.raises(UserError, match="give longer texts"):
        make_prompt("keys", tiny_tokenizer, 900, 0.5, 0, "short")


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_answers_are_scored_as_by_a_full_pass(folders, which, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folders[which]).eval()
    prompt = make_prompt("keys", tiny_tokenizer, 400, 0.5, 0, PROSE)
    ids = torch.tensor([prompt.tokens + prompt.answer])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1]
    answer = torch.tensor(prompt.answer)
    found = scoring.answer_scores(model, prompt)
    assert found["nats"] == pytest.approx(torch.nn.functional.cross_entropy(logits, answer).item(), abs=1e-4)
    assert found["given"] == (logits.argmax(-1) == answer).double().mean().item()
    written = model.generate(
        ids[:, : len(prompt.tokens)], max_new_tokens=len(answer), do_sample=False, eos_token_id=None
    )
    # What the model writes is its own answer.
    own = prompt._replace(answer=written[0, len(prompt.tokens) :].tolist())
    assert scoring.answer_scores(model, own)["written"] == scoring.answer_scores(model, own)["given"] == 1
    assert found["written"] == float(own.answer == prompt.answer)


def test_perplexity_by_position(folders, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
    tokens = tiny_tokenizer(PROSE)["input_ids"][:600]
    found = scoring.nats_by_position(model, tokens, [0, 100, 600])
    with torch.no_grad():
        loss = model(torch.tensor([tokens]), labels=torch.tensor([tokens])).loss.item()
    assert found["tokens"] == [99, 500]
    assert results.perplexity([found]) == pytest.approx(math.exp(loss), rel=1e-4)


def test_keys_read():
    config = SinkhornConfig(num_hidden_layers=2, num_sorted_blocks=8, num_local_blocks=2, **BY_TOKEN)
    assert keys_read(config, 100) == 100
    assert keys_read(config, 1600) == 11 * 16
    assert keys_read(config, 1601) == 10 * 16 + 1
    config.layer_types = ["local_attention", "full_attention"]
    assert keys_read(config, 1600) == (3 * 16 + 1600) / 2
    assert keys_read(LlamaConfig(num_hidden_layers=2), 1600) == 1600


def test_names_of_candidates():
    assert parse_candidate("runs/a") == ("a", "runs/a", "")
    assert parse_candidate("w=runs/a?layer_types=local_attention,b=2") == (
        "w",
        "runs/a",
        "layer_types=local_attention,b=2",
    )
    assert parse_candidate("runs/a?b=2").label == "a, b=2"
    with pytest.raises(UserError, match="names no model"):
        parse_candidate("a=")


# The program ----------------------------------------------------------------------------------------------------------


def test_it_compares_and_resumes(folders, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{word} {number}" for number, word in enumerate(PROSE.split())), encoding="utf-8")
    llama, ours = folders
    flags = ["--results", tmp_path / "long.json", "--texts_file", text, "--lengths", 300, 500, "--depths", 0.2, 0.8]
    flags += ["--seeds", 1, "--rounds", 1, "--plot", tmp_path / "long.png", "--models", f"source={llama}", ours]
    run_script(monkeypatch, "evaluate_long_context.py", *flags)
    first = json.loads((tmp_path / "long.json").read_text(encoding="utf-8"))
    table = capsys.readouterr().out
    assert "ours is not asked by chat" in table and "chat/300" not in first["summary"]["ours"]
    assert "| | source | ours |" in table and "keys read, 500 tokens | 500 | 36 |" in table
    found = first["summary"]["ours"]
    assert set(found["perplexity"]) == {"300", "500", "all"} and found["texts"] == 1
    assert found["passkey/300"]["number"] == 2 and set(found["passkey/300"]["depths"]) == {"0.2", "0.8"}
    assert found["cost/500"]["token_milliseconds"] > 0 and found["cost/500"]["prefill_megabytes"] >= 0
    assert first["models"]["source"]["description"]["model"] == "llama"
    assert str(tmp_path) not in json.dumps(first)
    assert (tmp_path / "long.png").stat().st_size > 1000

    def not_again(*arguments):
        raise AssertionError("measured again")

    for name in ("answer_scores", "nats_by_position"):
        monkeypatch.setattr(f"evaluation.scoring.{name}", not_again)
    run_script(
        monkeypatch,
        "evaluate_long_context.py",
        *flags,
        f"window={ours}?layer_types=local_attention",
        "--tasks",
        "cost",
    )
    again = json.loads((tmp_path / "long.json").read_text(encoding="utf-8"))
    assert [run["command"] for run in again["earlier_runs"]] == [first["command"]] != [again["command"]]
    assert again["models"]["ours"] == first["models"]["ours"] and again["labels"] == ["source", "ours", "window"]
    assert again["summary"]["source"]["worst_text"] == 1  # still the one that others are compared with
    assert again["summary"]["window"]["cost/500"]["keys_read"] == 20
    with pytest.raises(SystemExit, match="results of another model by the label 'source'"):
        run_script(monkeypatch, "evaluate_long_context.py", *flags[:-2], f"source={ours}", "--tasks", "cost")


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--tasks", "magic"), "--tasks: magic is none of"),
        (("--depths", 2), "--depths must be from 0 to 1"),
        (("--lengths", 10), "--lengths must be at least 64"),
        (("--models", "a=x", "a=y"), "two have one label"),
        (("--models", "a=absent/x?b=1"), "--models a:"),
    ],
    ids=str,
)
def test_refusals(flags, words, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=words):
        run_script(monkeypatch, "evaluate_long_context.py", "--models", "x", "--results", tmp_path / "a.json", *flags)


@pytest.mark.slow  # processes of their own: a quarter of a minute
def test_several_at_a_time_give_what_one_gives(folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{word} {number}" for number, word in enumerate(PROSE.split())), encoding="utf-8")
    flags = ["--texts_file", text, "--lengths", 300, "--depths", 0.5, "--seeds", 1, "--tasks", "passkey", "perplexity"]
    flags += ["--models", f"source={folders[0]}", folders[1], f"absent={tmp_path / 'absent'}"]
    for models, jobs in ((2, 1), (2, 2), (3, 2)):
        command = [sys.executable, SCRIPTS / "evaluate_long_context.py", "--results", tmp_path / f"{jobs}.json"]
        command += [*flags[: len(flags) - 3 + models], "--jobs", jobs]
        status = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert (status.returncode == 0) == (models == 2), status.stderr
    assert "the measurement of absent failed" in status.stderr
    one, two = (json.loads((tmp_path / f"{jobs}.json").read_text(encoding="utf-8")) for jobs in (1, 2))
    assert two["labels"] == one["labels"] == ["source", "ours"]
    assert two["models"] == one["models"] and two["summary"] == one["summary"]
    # What failed is tried again, without what is there.
    assert {path.name for path in (tmp_path / "2.parts").iterdir()} == {"0.json", "1.json"}


def test_times_need_no_text_of_that_length(folders, tmp_path, monkeypatch):
    flags = ["--results", tmp_path / "long.json", "--tasks", "cost", "--rounds", 1, "--models", folders[1]]
    text = tmp_path / "short.txt"
    text.write_text("Call me Ishmael.", encoding="utf-8")
    run_script(monkeypatch, "evaluate_long_context.py", *flags, "--lengths", 600, "--texts_file", text)
    found = json.loads((tmp_path / "long.json").read_text(encoding="utf-8"))["summary"]["ours"]
    assert found["cost/600"]["prefill_seconds"] > 0


def test_times_are_measured_alone(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="leave 'cost' out of --tasks"):
        run_script(
            monkeypatch, "evaluate_long_context.py", "--results", tmp_path / "x", "--models", "a", "b", "--jobs", 2
        )
