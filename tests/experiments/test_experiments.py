# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
`scripts/experiments`: the tasks ask what they say, the driver skips finished runs and resumes interrupted ones, and
`docs/experiments.md` says what the JSON files say.
"""

import concurrent.futures
import itertools
import json
import pickle
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    TrainerCallback,
)

import run_experiments
import sort_net_sinkhorn
from experiments import descriptors, evenness, plan, report, results, routing, tables
from experiments.models import PEERS, SINKHORN_VARIANTS, make_model, parameters
from experiments.tasks import GeneratedRows, byte_lm, listops, needle, pad, sorting, sotu_qa
from experiments.tasks.text import SPECIALS, Encoder
from helpers import SCRIPTS


ROOT = SCRIPTS.parent


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_generated_rows_depend_on_seed_and_place_alone():
    rows = GeneratedRows(5, lambda generator: {"x": int(generator.integers(10**9))}, 0, 1)
    again = GeneratedRows(9, lambda generator: {"x": int(generator.integers(10**9))}, 0, 1)
    assert [row["x"] for row in rows] == [again[index]["x"] for index in range(5)]
    other = GeneratedRows(5, lambda generator: {"x": int(generator.integers(10**9))}, 1, 1)
    assert not {row["x"] for row in rows} & {row["x"] for row in other}


def test_sorting_labels_are_the_sorted_input(generator):
    row = sorting.draw(generator, length=32, integers=10)
    marks = np.arange(0, 32, 8)
    assert row["input_ids"][marks].tolist() == [11, 12, 13, 14] and (row["labels"][marks] == -100).all()
    values, labels = (np.delete(row[name], marks) for name in ("input_ids", "labels"))
    assert np.sort(values - sorting.FIRST_INTEGER).tolist() == labels.tolist() and len(labels) == 28
    scores = sorting.score(row["labels"][None].clip(min=0), row["labels"][None], None)
    assert scores == {"exact_match": 1.0, "token_accuracy": 1.0, "edit_distance": 0.0}


def test_edit_distance():
    words = [("kitten", "sitten"), ("sittin", "sittin"), ("abcdef", "bcdefg"), ("aaaaaa", "bbbbbb")]
    a, b = (np.array([[ord(letter) for letter in word] for word in column]) for column in zip(*words))
    assert sorting.edit_distances(a, b).tolist() == [1, 0, 2, 6]


@pytest.mark.parametrize("needles", [1, 3])
@pytest.mark.parametrize("written", ["over and over", "once"])
def test_the_first_page_points_to_the_answer(generator, needles, written):
    data = {"length": 128, "page_tokens": 16, "classes": 8, "needles": needles, "written": written}
    pages, answers = 8, 1 + needle.WORDS
    numbers, pointers = answers + 8, answers + 8 + 8
    for _ in range(20):
        row = needle.draw(generator, data)
        tokens = row["input_ids"].reshape(pages, 16)
        pointed = {int(token) - pointers for token in tokens[0] if token >= pointers}
        assert len(pointed) == needles and 0 not in pointed
        found = []
        for page in tokens[1:]:
            number = {int(token) - numbers for token in page if numbers <= token < pointers}
            answer = {int(token) - answers for token in page if answers <= token < numbers}
            assert len(number) == len(answer) == 1
            if number <= pointed:
                found += answer
        assert len(found) == needles and max(found) == row["labels"]
        assert needle.target_pages(row["input_ids"], data) == sorted(pointed)


def test_the_last_page_points_for_decoders():
    data = {"length": 128, "page_tokens": 16, "classes": 8, "needles": 1, "written": "over and over"}
    first, last = (needle.draw(np.random.default_rng(3), data | {"causal": causal}) for causal in (False, True))
    assert first["labels"] == last["labels"]
    assert np.roll(last["input_ids"], 16).tolist() == first["input_ids"].tolist()


@pytest.mark.parametrize("written, needles, asks", [("over and over", 1, 8), ("over and over", 2, 8), ("once", 2, 2)])
@pytest.mark.parametrize("question", ["end", "anywhere"])
def test_a_question_does_not_begin_its_page(generator, question, written, needles, asks):
    data = {"length": 128, "page_tokens": 16, "classes": 8, "needles": needles, "written": written, "causal": True}
    pages, answers = 8, 1 + needle.WORDS
    numbers, pointers = answers + 8, answers + 8 + 8
    starts = set()
    for _ in range(60):
        row = needle.draw(generator, data | {"question": question})
        tokens = row["input_ids"].reshape(pages, 16)
        places = np.flatnonzero(tokens[-1] >= pointers)
        assert len(places) == asks and np.ptp(places) == asks - 1 and places[0] > 0
        assert (np.delete(tokens[-1], places) < answers).all()
        starts.add(int(places[0]))
        pages_asked = np.unique(tokens[-1][places] - pointers) - 1  # the last page is number 0 and comes last
        given = [page[(page >= answers) & (page < numbers)][0] - answers for page in tokens[pages_asked]]
        assert len(given) == needles and max(given) == row["labels"]
    assert starts == ({16 - asks} if question == "end" else set(range(1, 17 - asks)))


def evaluate_listops(words: list[str]) -> int:
    """By a stack, as other people write it."""
    stack: list = []
    for word in words:
        if word == "]":
            values = []
            while not isinstance(stack[-1], str):
                values.append(stack.pop())
            values.sort()
            middle = len(values) // 2
            median = values[middle] if len(values) % 2 else int((values[middle - 1] + values[middle]) / 2)
            results = {"[MIN": values[0], "[MAX": values[-1], "[MED": median, "[SM": sum(values) % 10}
            stack.append(results[stack.pop()])
        else:
            stack.append(word if word.startswith("[") else int(word))
    assert len(stack) == 1
    return stack[0]


def test_listops_values_and_lengths(generator):
    data = {"min_length": 16, "max_length": 100, "max_depth": 4, "max_args": 5}
    for _ in range(50):
        row = listops.draw(generator, data)
        words = [listops.VOCABULARY[token] for token in row["input_ids"]]
        assert words[0] == "<s>" and evaluate_listops(words[1:]) == row["labels"]
        assert 16 < len(words) - 1 < 100
        depths = np.cumsum([word.startswith("[") - (word == "]") for word in words])
        assert depths.max() < 4  # digits are the deepest


def test_bytes_are_cut_and_shifted():
    rows = Encoder((), vocabulary=None, max_tokens=4)(["é", "abcdef"])
    assert [row.tolist() for row in rows] == [[1, *(value + SPECIALS for value in "é".encode())], [1, 102, 103, 104]]


def test_padding_masks_and_ignores():
    batch = pad([{"input_ids": np.array([5, 6]), "labels": np.array([1, 2])}, {"input_ids": [7], "labels": [3]}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]] and batch["labels"].tolist() == [[1, 2], [3, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert "attention_mask" not in pad([{"input_ids": [5, 6], "labels": 0}])


def test_bits_by_position():
    rows = byte_lm.chunks_of(["x" * 600], 256)
    assert [row["begins"] for row in rows] == [0, 256 / 600]  # the last, short chunk is left out
    positions = np.tile(np.arange(1, 256), (2, 1))
    scores = byte_lm.score(positions.astype(float), None, rows)
    assert scores["bits_per_byte"] == 128
    assert scores["by_position_in_block"] == [64 * 2 + place for place in range(64)]  # of blocks 1, 2 and 3
    assert scores["first_8_of_block"] == 128 + 3.5 and scores["second_half_of_block"] == 128 + 47.5
    assert scores["by_position_in_row"][1] == np.arange(16, 32).mean()
    assert scores["by_position_in_document"][15] is None  # in the part that was left out


def test_bits_are_of_the_next_byte():
    labels = torch.tensor([[3, 1, 2]])
    logits = torch.full((1, 3, 4), -torch.inf)
    logits[0, 0, [1, 0]] = 0  # even odds for the second byte, certainty for the third
    logits[0, 1, 2] = 0
    logits[0, 2, 0] = 0
    assert byte_lm.bits(logits, labels).tolist() == [[1.0, 0.0]]


def test_questions_have_their_answers_in_the_text(tiny_tokenizer):
    passage = (
        "The debt in the year 1861 was larger than in the year before. In March 1862 it rose by $1,250,000.50 in all, and "
        "again in the year 1863 by a little. By the end of 1861-62 we paid $30. In all that time, 1864 was the worst."
    )
    questions = sotu_qa.questions_on(passage, cue_words=2)
    answers = {(kind, cue): passage[begin:end] for kind, cue, begin, end in questions}
    assert answers == {
        ("year", "In March"): "1862",
        ("year", "end of"): "1861",
        ("year", "that time,"): "1864",
        ("amount", "rose by"): "$1,250,000.50",
        ("amount", "we paid"): "$30",
    }  # "the year" stands there three times: no one could say which
    data = {"passage_words": 100, "cue_words": 2, "max_tokens": 512}
    passages = sotu_qa.Passages([passage], tiny_tokenizer, data)
    assert passages.guess() == pytest.approx((3 / 5 + 2 / 2) / 5)  # of five years and two amounts
    generator = np.random.default_rng(0)
    drawn = [sotu_qa.next_word(generator, passage, 2) for _ in range(20)]
    for question in [*questions, *filter(None, drawn)]:
        kind, cue, begin, end = question
        row = passages.row(0, question)
        span = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
        assert tiny_tokenizer.decode(span).strip() == passage[begin:end]
        assert passage[:begin].rstrip().endswith(cue) and row["by_word"] == (kind == "next")
        assert passage.count(cue) == 1
    assert passages.draw(generator, by_word=False)["by_word"] == 0
    passages.data["max_tokens"] = 32
    assert passages.row(0, questions[-1]) is None


def test_best_span_is_allowed_and_scored():
    starts, ends = torch.full((1, 40), -9.0), torch.full((1, 40), -9.0)
    starts[0, 20], ends[0, 10], ends[0, 22], ends[0, 39] = 5, 9, 4, 8  # 10 is before it, 39 too far
    spans = sotu_qa.best_spans((starts, ends), None)
    assert spans.tolist() == [[20, 22]]
    predictions, truth = np.array([[20, 22], [7, 7]]), (np.array([20, 7]), np.array([23, 7]))
    assert sotu_qa.score(predictions, truth, [{"by_word": 0}, {"by_word": 1}]) == {
        "exact_match": 0.5,
        "f1": pytest.approx((6 / 7 + 1) / 2),
        "exact_match_next_word": 1.0,
        "exact_match_year_or_amount": 0.0,
    }


# Models --------------------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "block_size": 8,
    "key_piece_size": 4,
    "num_labels": 3,
    "pad_token_id": 0,
}
HEADS = [AutoModelForTokenClassification, AutoModelForSequenceClassification, AutoModelForQuestionAnswering]


# Each of ours with one of the heads, in turn; the others, whose heads are their own, with all.
@pytest.mark.parametrize(
    "name, auto_class",
    [*zip(SINKHORN_VARIANTS, itertools.cycle(HEADS)), *itertools.product(PEERS, HEADS)],
)
def test_models_have_equal_parameters(name, auto_class):
    """To half the parameters of one more unit in the feed-forward networks."""
    expected = parameters(make_model("soft", SMALL, 128, auto_class, 0))
    found = make_model(name, SMALL, 128, auto_class, 0)
    slack = 5000 if name == "longformer" else 300  # Longformer's projections for global attention and its pooler
    assert abs(parameters(found) - expected) <= min(slack, 2 * 3 * 32 + 2)


def test_loads_of_blocks():
    matrix = torch.tensor([[0.6, 0.3, 0.1]] * 4 + [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]])[None, None]
    even = torch.tensor([4 / 3 + 1 / 2, 4 / 3, 4 / 3 + 1 / 2])
    assert torch.allclose(evenness.loads(matrix[:, :, :4], 1), torch.tensor([3.0, 0, 0]))
    assert torch.allclose(evenness.loads(matrix, 2)[0, 0], torch.tensor([5, 4, 1]) / torch.tensor([11, 8, 11]) * 3)
    assert evenness.loads(matrix, 1)[0, 0, 1] == 0 and torch.allclose(
        evenness.loads(matrix, 1) @ even, torch.tensor(5.0)
    )
    assert evenness.loads(matrix[:, :, 4:], 1)[0, 0, 1].isnan()


def test_another_causal_descriptor_reads_what_it_says():
    """The descriptor of block 2 depends on its first token and the block before, and on no other."""
    tokens = torch.randn(1, 32, 4, requires_grad=True)
    blocks = tokens.unflatten(1, (4, 8))
    own = sort_net_sinkhorn.causal_block_descriptors
    with descriptors.causal_descriptor("recent"):
        assert sort_net_sinkhorn.causal_block_descriptors is not own
        found, _ = sort_net_sinkhorn.causal_block_descriptors(blocks[:, :, 0], blocks.sum(2), 8, "mean", None, None)
    assert sort_net_sinkhorn.causal_block_descriptors is own
    (grad,) = torch.autograd.grad(found[0, 2].sum(), tokens)
    assert grad[0].abs().sum(-1).nonzero().flatten().tolist() == [*range(8, 17)]


def test_causal_models_and_sort_nets_have_equal_parameters():
    settings = SMALL | {"is_decoder": True}
    expected = parameters(make_model("soft", settings, 128, AutoModelForCausalLM, 0))
    for name, changes in (
        ("local", {}),
        ("full", {}),
        ("soft", {"sort_net": "linear"}),
        ("soft", {"sort_net": "mlp"}),
    ):
        found = make_model(name, settings | changes, 128, AutoModelForCausalLM, 0)
        assert abs(parameters(found) - expected) <= 2 * 3 * 32 / 2


# Config files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", plan.experiments())
def test_config_files_hold(experiment):
    config = plan.load_config(experiment)
    assert set(config["budgets"]) == set(plan.BUDGETS)
    assert config["about"] and all(better in ("higher", "lower") for better in config["report"].values())
    for budget in plan.BUDGETS:
        runs = list(plan.runs_of(experiment, budget))
        assert runs and len({run.name for run in runs}) == len(runs)
        for one in runs:
            assert one.settings["training"]["max_steps"] > 0
            choice = {"seeds": [one.seed], "models": [one.model], "conditions": [one.condition]}
            (same,) = plan.runs_of(experiment, budget, config, **choice)
            assert same == one and same.settings == one.settings  # the command of a record makes that run


def test_conditions_that_come_first():
    runs = plan.all_runs(["needle"], "full", ["256_two", "512"], models=["soft"], conditions=["256", "512", "256_two"])
    assert [(run.condition, run.seed) for run in runs] == [
        *[(condition, seed) for seed in (0, 1, 2) for condition in ("512", "256_two")],
        *[("256", seed) for seed in (0, 1, 2)],
    ]


def test_later_settings_win():
    config = {
        "task": "t",
        "model": {"a": 1, "b": 1},
        "training": {"max_steps": 9},
        "conditions": {"c": {"model": {"b": 2}}, "d": {}},
        "variants": {"default": {}, "v": {"model": {"a": 5}, "serve": {"x": 1}}},
        "budgets": {"full": {"seeds": [0, 1], "training": {"max_steps": 3}, "conditions": {"d": {"seeds": [4]}}}},
    }
    runs = list(plan.runs_of("e", "full", config))
    assert [(r.condition, r.model, r.seed) for r in runs] == [
        *[("c", model, seed) for seed in (0, 1) for model in ("default", "v")],
        *[("d", model, 4) for model in ("default", "v")],
    ]
    assert runs[1].settings["model"] == {"a": 5, "b": 2} and runs[1].settings["serve"] == {"x": 1}
    assert runs[0].settings == {
        "task": "t",
        "model": {"a": 1, "b": 2},
        "training": {"max_steps": 3},
        "as": "soft",
        "serve": {},
    }


# Driver --------------------------------------------------------------------------------------------------------------

TINY = """
task: sorting
about: Words.
data: {length: 16, integers: 5, validation_rows: 4, test_rows: 8}
model: {hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, block_size: 4}
training: {learning_rate: 1.0e-3, per_device_train_batch_size: 4, max_steps: 12}
models: [local, soft]
conditions: {only: {}}
report: {test.exact_match: higher, test.edit_distance: lower}
figures: [curve, by_condition]
budgets: {full: {seeds: [0, 1]}, smoke: {seeds: [0]}}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An experiment `tiny`, and a function that runs it with more flags."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(plan, "CONFIGS", tmp_path / "configs")

    def call(*flags) -> int:
        folders = ["--results_dir", str(tmp_path / "results"), "--work_dir", str(tmp_path / "work")]
        return run_experiments.main(["tiny", *folders, *flags])

    return call


def records_in(folder: Path) -> dict[str, dict]:
    """By path below the folder."""
    paths = sorted(folder.glob("*/*/*.json"))
    return {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in paths}


def test_runs_are_recorded_and_not_repeated(tiny, tmp_path, capsys):
    assert tiny("--list") == 0
    assert capsys.readouterr().out.split() == [
        f"tiny.only.{model}.seed{seed}" for seed in (0, 1) for model in ("local", "soft")
    ]
    assert tiny("--seeds", "0") == 0
    records = records_in(tmp_path / "results")
    assert list(records) == ["tiny/only/local.seed0.json", "tiny/only/soft.seed0.json"]
    local, soft = records.values()
    assert soft["commit"] and soft["versions"]["torch"] and soft["machine"]["cpu_cores"]
    assert soft["steps"] == 12 and soft["seed"] == 0 and soft["budget"] == "full" and soft["seconds"] > 0
    assert soft["parameters"] == pytest.approx(local["parameters"], abs=3 * 16)
    assert soft["scores"].keys() == {"test", "twice"} and 0 <= soft["scores"]["test"]["edit_distance"] <= 1
    assert soft["curve"]["train"][-1][0] == 12 and soft["curve"]["validation"][-1]["step"] == 12
    assert local["config"]["attention_types"] == ["local_attention"]
    assert str(tmp_path) not in json.dumps(records) and str(ROOT) not in json.dumps(records)
    assert not list((tmp_path / "work").iterdir())

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert tiny("--seeds", "0,1", "--only", "soft") == 0
    assert "2 runs, of which 1 are done" in capsys.readouterr().out
    assert len(records_in(tmp_path / "results")) == 3
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def test_an_interrupted_run_goes_on_to_the_same_end(tiny, tmp_path, monkeypatch, capsys):
    assert tiny("--only", "soft", "--seeds", "0") == 0
    (name,) = records_in(tmp_path / "results")
    whole = records_in(tmp_path / "results")[name]
    (tmp_path / "results" / name).unlink()

    from experiments.training import TrainingTimer

    def pull_the_plug(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt
        return on_step_end(self, args, state, control, **kwargs)

    on_step_end = TrainingTimer.on_step_end
    monkeypatch.setattr(TrainingTimer, "on_step_end", pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        tiny("--only", "soft", "--seeds", "0")
    monkeypatch.setattr(TrainingTimer, "on_step_end", on_step_end)
    assert not records_in(tmp_path / "results") and list((tmp_path / "work").rglob("checkpoint-6"))

    seen = []
    monkeypatch.setattr(
        TrainerCallback, "on_step_begin", lambda self, a, state, c, **k: seen.append(state.global_step)
    )
    assert tiny("--only", "soft", "--seeds", "0") == 0
    assert min(seen) == 6
    resumed = records_in(tmp_path / "results")[name]
    assert resumed["scores"] == whole["scores"]
    assert [step for step, _ in resumed["curve"]["train"]] == [step for step, _ in whole["curve"]["train"]]


def test_checkpoints_of_other_settings_are_left_alone(tiny, tmp_path):
    assert tiny("--only", "soft", "--seeds", "0", "--time_limit_minutes", "0.0001") == run_experiments.TIME_IS_UP
    before = plan.all_runs(["tiny"], "full", models=["soft"], seeds=[0])[0]
    path = tmp_path / "configs" / "tiny.yaml"
    path.write_text(path.read_text().replace("hidden_size: 16", "hidden_size: 32"))
    after = plan.all_runs(["tiny"], "full", models=["soft"], seeds=[0])[0]
    assert before.name == after.name and before.work_folder != after.work_folder
    assert tiny("--only", "soft", "--seeds", "0") == 0


def test_results_of_other_settings_are_not_taken_for_these(tiny, tmp_path):
    assert tiny("--only", "soft", "--seeds", "0") == 0
    path = tmp_path / "configs" / "tiny.yaml"
    path.write_text(path.read_text().replace("max_steps: 12", "max_steps: 13"))
    for flags in ([], ["--list"]):
        with pytest.raises(SystemExit, match="seed0.json has other settings .*--results_dir"):
            tiny("--only", "soft", "--seeds", "0", *flags)


def test_a_model_served_otherwise_is_scored_in_the_same_type(tiny, tmp_path, monkeypatch):
    text = TINY.replace("max_steps: 12", "max_steps: 2, bf16: true").replace("models: [local, soft]", "")
    variants = "variants: {default: {}, served: {serve: {sort_assignment: hard}}}\n"
    (tmp_path / "configs" / "tiny.yaml").write_text(text + variants)
    from experiments import training

    score, types = training.score, {}

    def watched(trainer, task, rows):
        linear = trainer.model.model.layers[0].mlp.down_proj
        handle = linear.register_forward_hook(
            lambda module, inputs, output: types.update({trainer.model.config.sort_assignment: output.dtype})
        )
        scores = score(trainer, task, rows)
        handle.remove()
        return scores

    monkeypatch.setattr(training, "score", watched)
    assert tiny("--seeds", "0") == 0
    assert types == {"soft": torch.bfloat16, "hard": torch.bfloat16}


def test_the_time_limit_leaves_a_checkpoint(tiny, tmp_path, capsys):
    assert tiny("--only", "soft", "--seeds", "0,1", "--time_limit_minutes", "0.0001") == run_experiments.TIME_IS_UP
    assert "Time is up: 2 runs are left" in capsys.readouterr().out
    assert not records_in(tmp_path / "results")
    assert tiny("--only", "soft", "--seeds", "0,1") == 0
    assert len(records_in(tmp_path / "results")) == 2


def test_one_failure_does_not_stop_the_rest(tiny, tmp_path, monkeypatch, capsys):
    text = TINY.replace("models: [local, soft]", "models: [nonsense, soft]")
    (tmp_path / "configs" / "tiny.yaml").write_text(text)
    assert tiny("--seeds", "0") == 1
    assert "there is no model 'nonsense'" in capsys.readouterr().err
    assert list(records_in(tmp_path / "results")) == ["tiny/only/soft.seed0.json"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["nothing"], "there is no experiment 'nothing'"),
        (["sorting", "--only", "softly"], "--only: softly is not among"),
        (["sorting", "--conditions", "never"], "--conditions: never is not among"),
        (["sorting", "--first", "never"], "--first: never is not among"),
    ],
)
def test_wrong_names_are_refused(flags, words):
    with pytest.raises(SystemExit, match=words):
        run_experiments.main(flags)


def run_all_to_the_page(tmp_path, *flags) -> None:
    """Every experiment, from its command to the page, with a few made-up reviews in place of IMDb's."""
    for part in ("train", "test", "unsupervised"):
        texts = [f"Review {i}: " + "it was " * 200 + ("good." if i % 2 else "bad.<br />") for i in range(120)]
        Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(120)]}).to_parquet(
            tmp_path / f"{part}.parquet"
        )
    folders = ["--results_dir", str(tmp_path / "results"), "--work_dir", str(tmp_path / "work")]
    assert run_experiments.main(["all", "--smoke", *folders, "--imdb_folder", str(tmp_path), *flags]) == 0
    page = tmp_path / "page.md"
    report.main(["--results_dir", str(tmp_path / "results"), "--output", str(page)])
    for experiment in plan.experiments():
        assert f"## {report.TITLES[experiment]}" in page.read_text()


@pytest.mark.ci
@pytest.mark.slow  # a third of a minute of training
def test_every_experiment_runs_at_reduced_scale(tmp_path, monkeypatch):
    # Figures are made, and not painted, which is a third of the time; the tables' test paints some.
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path, **settings: Path(path).touch())
    run_all_to_the_page(tmp_path, "--only", "soft,descriptor_recent,token_keys,index")


@pytest.mark.slow  # a minute: twice the models, in two processes, each with its own import of everything
def test_the_whole_set_runs_at_reduced_scale_in_parallel(tmp_path):
    run_all_to_the_page(tmp_path, "--jobs", "2")


class Inline(concurrent.futures.Executor):
    """Stands in for a pool of processes: what would be sent to one goes through pickle, and runs here."""

    def __init__(self, jobs, context, initializer, initargs):
        assert jobs == 2 and context.get_start_method() == "spawn"
        pickle.loads(pickle.dumps((initializer, initargs)))

    def submit(self, *call):
        future = concurrent.futures.Future()
        function, *arguments = pickle.loads(pickle.dumps(call))
        future.set_result(function(*arguments))
        return future


def test_parallel_runs_are_recorded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Inline)
    assert tiny("--seeds", "0", "--jobs", "2") == 0
    assert list(records_in(tmp_path / "results")) == ["tiny/only/local.seed0.json", "tiny/only/soft.seed0.json"]


def test_routing_is_watched_without_changing_it(tmp_path):
    file = tmp_path / "routing.json"
    routing.main(["--budget", "smoke", "--every", "2", "--results_file", str(file)])
    seen = json.loads(file.read_text())
    folders = ["--results_dir", str(tmp_path / "results"), "--work_dir", str(tmp_path / "work")]
    assert (
        run_experiments.main(["needle", "--smoke", "--only", "soft", "--conditions", "256", "--seeds", "0", *folders])
        == 0
    )
    (record,) = records_in(tmp_path / "results").values()
    assert seen["curve"] == record["curve"]["train"] and seen["settings"] == record["settings"]
    assert [point["step"] for point in seen["points"]] == [0, 2, 4]
    assert np.array([point["weights"] for point in seen["points"]]).shape == (3, 2, 4)  # layers, heads
    shown = seen["shown"]
    assert list(shown["matrices"]) == ["0", "2", "4"] and 1 <= shown["page"] < seen["pages"] == 16
    for matrix in shown["matrices"].values():
        assert np.array(matrix).shape == (16, 16) and np.allclose(np.sum(matrix, axis=1), 1, atol=0.01)


# Report --------------------------------------------------------------------------------------------------------------


def test_tables_and_figures_come_from_the_records(tiny, tmp_path, monkeypatch):
    assert tiny() == 0
    monkeypatch.setattr(report, "TITLES", {"tiny": "Tiny"})
    page = tmp_path / "page" / "experiments.md"
    report.main(["--results_dir", str(tmp_path / "results"), "--output", str(page)])
    text = page.read_text()
    records = list(records_in(tmp_path / "results").values())
    values = [record["scores"]["test"]["edit_distance"] for record in records if record["model"] == "soft"]
    assert len(values) == 2 and f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in text
    assert "## Tiny\n\nWords." in text and "12 steps of 4 rows" in text
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())["tiny"]["only"]["soft"]["test"][
        "edit_distance"
    ]
    assert summary == {
        "mean": pytest.approx(np.mean(values)),
        "std": pytest.approx(np.std(values, ddof=1)),
        "seeds": [0, 1],
    }
    for figure in ("tiny-full-curve.png", "tiny-full-by_condition.png"):
        assert f"(figures/{figure})" in text
        assert (page.parent / "figures" / figure).read_bytes().startswith(b"\x89PNG")


def test_best_and_seeds_in_a_table():
    config = {"conditions": {"c": {}}, "models": ["a", "b"], "report": {"test.loss": "lower"}}
    runs = [("a", 0, 2.0), ("a", 1, 3.0), ("b", 0, 1.0)]  # one seed does not compare with two
    records = [
        {"condition": "c", "model": m, "seed": s, "parameters": 1000, "seconds": 1, "scores": {"test": {"loss": v}}}
        for m, s, v in runs
    ]
    lines = tables.table(records, config).splitlines()
    assert lines[2:] == ["| a | 1,000 | 2.500 ± 0.707 | 2 | 1 |", "| b | 1,000 | 1.000 | 1 | 1 |"]
    records.append(records[2] | {"seed": 1, "scores": {"test": {"loss": 2.0}}})
    lines = tables.table(records, config).splitlines()
    assert lines[2:] == ["| a | 1,000 | 2.500 ± 0.707 | 2 | 1 |", "| b | 1,000 | **1.500 ± 0.707** | 2 | 1 |"]


def test_sentences_are_filled_from_the_records():
    runs = [{"condition": "256_two", "model": "soft", "scores": {"test": {"accuracy": v}}} for v in (0.25, 0.75)]
    assert report.fill_in_scores("{256_two/soft/test.accuracy} of all", runs) == "0.500 ± 0.354 of all"
    with pytest.raises(SystemExit, match=r"no run gives \{1/soft/test.accuracy\}"):
        report.fill_in_scores("{1/soft/test.accuracy}", runs)


def test_the_page_says_what_the_records_say():
    records = results.load_records(ROOT / "results" / "experiments")
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    figures = report.figure_names(records, "figures")
    assert page == report.render(records, figures), "run scripts/maintain.py experiments"
    for path in {path for paths in figures.values() for path in paths}:
        assert (ROOT / "docs" / path).is_file(), f"{path} is missing: run scripts/maintain.py experiments"
    summary = json.loads((ROOT / "results" / "experiments" / "summary.json").read_text(encoding="utf-8"))
    assert summary == results.summary(records), "run scripts/maintain.py experiments"


def test_records_are_of_the_config_files():
    """No record of a run that the files no longer describe: its settings are those that its command would run."""
    for record in results.load_records(ROOT / "results" / "experiments"):
        (one,) = plan.all_runs(
            [record["experiment"]],
            record["budget"],
            seeds=[record["seed"]],
            models=[record["model"]],
            conditions=[record["condition"]],
        )
        assert one.settings == record["settings"], f"{one.name} was run with other settings: run it again"
        program, *flags = record["command"]
        assert program in (
            "scripts/run_experiments.py",
            "scripts/experiments/run.py",
        )  # the second is its earlier name
        assert flags == one.command[1:]
