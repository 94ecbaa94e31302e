# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The benchmark commands run, and give no speed for code that computes something else."""

import argparse
import json
import math
import sys

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

import benchmark
import benchmark_decoding
import benchmark_interface
import inputs_sinkhorn
import interface_sinkhorn
import sort_net_sinkhorn
import sorted_blocks_sinkhorn
from balancing_sinkhorn import sinkhorn_balance
from benchmarking import memory, models
from benchmarking import parity as parity_gate
from benchmarking.gpu import token_routing
from benchmarking.gpu.operators import other_blocks_at_random
from benchmarking.models import (
    BLOCK,
    FLOOR,
    FULL_ATTENTION,
    PEERS,
    SINKHORN_SOFT,
    SINKHORN_VARIANTS,
    VOCAB,
    make_model,
    model_names,
)
from benchmarking.passes import packed_batch, ragged_batch
from benchmarking.report import by_length, crossover
from benchmarking.timing import Timings, predict, time_rounds
from helpers import run_script
from modeling_sinkhorn import SinkhornModel
from sorting_sinkhorn import from_blocks, hard_sort, soft_sort


@pytest.fixture(autouse=True, scope="module")
def keep_verbosity():
    """The command makes the library silent, and here it runs in a process with other tests."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


# Decoding ------------------------------------------------------------------------------------------------------------


def test_decoding(tmp_path, monkeypatch, capsys):
    """With a network that is an eighth as wide, as nothing here depends on its size."""
    small = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "block_size": 16}
    for setting, value in small.items():
        monkeypatch.setitem(benchmark_decoding.MODEL, setting, value)
    flags = ["--results", str(tmp_path / "decoding.json"), "--contexts", "64", "256", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_decoding.py", *flags])
    benchmark_decoding.main()
    record = json.loads((tmp_path / "decoding.json").read_text())
    assert all(error <= 1e-4 for error in record["parity"].values())
    printed = capsys.readouterr().out
    for name, row in record["rows"].items():
        assert f"| {name}" in printed
        assert row["64"]["milliseconds_per_token"] > 0 and row["64"]["ratio_to_first_context"] == 1
        assert row["256"]["cache_megabytes"] > row["64"]["cache_megabytes"]
    assert record["rounds"] == 1
    # Keys and values alone, in float32: two heads of 8 in four layers.
    assert record["rows"]["full attention"]["256"]["cache_megabytes"] == pytest.approx(256 * 2 * 2 * 8 * 4 * 4 / 2**20)


def test_time_limits_and_quick_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark_decoding.MODEL, "num_hidden_layers", 1)
    monkeypatch.setattr(
        benchmark_decoding, "VARIANTS", {benchmark_decoding.FULL_ATTENTION: {"layer_types": ["full_attention"]}}
    )
    monkeypatch.setattr(benchmark_decoding, "QUICK", {"contexts": [64], "rounds": 1})
    file = tmp_path / "decoding.json"
    run_script_of(
        monkeypatch, benchmark_decoding, "--results", file, "--contexts", 64, "--rounds", 99, "--minutes", 1e-6
    )
    assert json.loads(file.read_text())["rounds"] == 1  # the first is always made
    run_script_of(monkeypatch, benchmark_decoding, "--results", file, "--quick")
    assert list(json.loads(file.read_text())["rows"][benchmark_decoding.FULL_ATTENTION]) == ["64"]
    monkeypatch.setattr(sys, "argv", ["benchmark_interface.py", "--results", "x.json", "--quick"])
    assert benchmark_interface.parse_arguments().lengths == benchmark_interface.QUICK["lengths"]


# Models of other types -------------------------------------------------------------------------------------------------


def test_interface(tmp_path, monkeypatch, capsys):
    """With narrow networks; parity stays as it is."""
    for name, shape in benchmark_interface.SHAPES.items():
        heads = 2 if name != "Llama" else 6
        small = {"hidden_size": 16 * heads, "intermediate_size": 32, "num_attention_heads": heads}
        monkeypatch.setitem(benchmark_interface.SHAPES, name, shape | small)
    path = tmp_path / "interface.json"
    run_script_of(monkeypatch, benchmark_interface, "--results", path, "--lengths", 400, 500, "--rounds", 1,
                  "--dropout", 0.1, "--dtype", "bfloat16")  # fmt: skip
    record = json.loads(path.read_text())
    assert all(error <= 1e-4 for error in record["parity"].values())
    assert (record["dtype"], record["dropout"]) == ("bfloat16", 0.1)
    printed = capsys.readouterr().out
    for name, rows in record["rows"].items():
        assert f"| {name}" in printed and set(rows) == {"400", "500"}
        for cell in (rows["400"]["forward"], rows["500"]["forward_backward"]):
            assert cell["times_faster"] == pytest.approx(cell["sdpa"]["seconds"] / cell["sinkhorn"]["seconds"])


def test_models_of_other_types_are_trained_as_the_flags_say():
    """Dropout in passes with a backward only; every model has the fields that are named for it."""
    for name in benchmark_interface.SHAPES:
        plain, dropping = (
            benchmark_interface.make_model(name, "sinkhorn", 400, dropout, num_hidden_layers=1)
            for dropout in (0.0, 0.5)
        )
        kept, dropped = (model.config.to_dict() for model in (plain, dropping))
        changed = {key for key in kept if kept[key] != dropped[key]}
        assert changed == set(benchmark_interface.DROPOUTS[name])
    ids = torch.randint(5, 2000, (1, 400))
    outputs = [dropping.bfloat16().train(mode)(ids).last_hidden_state for mode in (False, False, True)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    for kind, mode in ((benchmark_interface.FORWARD, False), (benchmark_interface.FORWARD_BACKWARD, True)):
        assert benchmark_interface.seconds(dropping, ids, kind) > 0 and dropping.training is mode


def test_no_speed_of_an_interface_that_is_wrong(monkeypatch):
    monkeypatch.setattr(interface_sinkhorn, "from_blocks", lambda *args: from_blocks(*args) * 1.01)
    monkeypatch.setitem(benchmark_interface.SMALL, "vocab_size", 8000)
    with pytest.raises(SystemExit, match="BERT: sparse attention differs from SDPA.*no speed is given"):
        benchmark_interface.check_parity("BERT")


def test_where_sparse_attention_becomes_faster():
    rows = {str(n): {"forward": {"times_faster": x}} for n, x in ((512, 1.1), (1024, 0.9), (2048, 1.2), (4096, 2.0))}
    assert benchmark_interface.first_faster(rows, "forward") == 2048
    assert benchmark_interface.first_faster(rows, "forward_backward") is None
    times = {"1024": {kind: {"sdpa": {"seconds": 2.0}} for kind in benchmark_interface.PASSES}}
    assert benchmark_interface.affordable(times, 4096, 100.0) == ["forward", "forward_backward"]
    assert benchmark_interface.affordable(times, 16384, 100.0) == []
    assert benchmark_interface.affordable({}, 16384, 100.0) == ["forward", "forward_backward"]
    # Of 4,096 tokens a pass of each kind takes 8 to 32 seconds, so that six of them take 48 to 192.
    assert benchmark_interface.affordable(times, 4096, 100.0, rounds=2, left=200.0) == ["forward"]
    assert benchmark_interface.affordable(times, 4096, 100.0, rounds=2, left=20.0) == []
    assert benchmark_interface.affordable({}, 1024, 100.0, left=-1.0) == []


def run_script_of(monkeypatch, module, *flags):
    """Its `main`, so that what a test changed in the module is in effect."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    module.main()


def test_no_speed_without_parity(tmp_path, monkeypatch):
    def leaky(logits, allowed, iterations, *rest):
        matrix = sinkhorn_balance(logits, allowed, iterations)
        return matrix, torch.zeros(*matrix.shape[:2], iterations, matrix.shape[-1])

    monkeypatch.setattr(sort_net_sinkhorn, "causal_sinkhorn_balance", leaky)
    with pytest.raises(SystemExit, match="decoding differs from the full forward.*no speed is given"):
        run_script(monkeypatch, "benchmark_decoding.py", "--results", tmp_path / "decoding.json")
    assert not (tmp_path / "decoding.json").exists()


# Training ------------------------------------------------------------------------------------------------------------


def measured(test):
    """What needs a record: that takes a third of a minute, most of it processes whose memory is measured."""
    return pytest.mark.ci(pytest.mark.slow(test))


TINY = [
    "--lengths",
    "64",
    "128",
    "--models",
    SINKHORN_SOFT,
    FULL_ATTENTION,
    "BigBird",
    "--seconds_per_length",
    "0",
    "--minutes",
    "0",
]
TINY += ["--ragged_longest", "64", "--checkpointing_lengths", "128", "--long_length", "512"]


def narrow_networks(patch: pytest.MonkeyPatch) -> None:
    """A quarter of the width, as no test depends on it. Memory is measured in other processes, of the whole width."""
    patch.setitem(models.SIZES, models.SMALL, models.Size(64, 4, 4, 172, 256))


@pytest.fixture(scope="module")
def training_record(tmp_path_factory):
    """The file of a run at tiny sizes."""
    results = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    with pytest.MonkeyPatch.context() as patch:
        narrow_networks(patch)
        run_script(patch, "benchmark.py", "--results", results, *TINY)
    return results


@measured
def test_training(training_record):
    record = json.loads(training_record.read_text())
    assert record["complete"] and record["left_out"] == {}
    assert record["rows"].keys() == {FLOOR, SINKHORN_SOFT, FULL_ATTENTION, "BigBird"} == record["models"].keys()
    assert set(record["parity"]) == {SINKHORN_SOFT, FULL_ATTENTION}
    for name, cells in record["rows"].items():
        for length in (64, 128):
            cell, floor = cells[str(length)], record["rows"][FLOOR][str(length)]
            assert cell["rounds"] == (1 if name == "BigBird" else 3)
            for kind in ("forward", "forward_backward"):
                part = cell[kind]
                assert part["spread"][0] <= part["seconds"] <= part["spread"][1] and part["spread"][0] > 0
                assert part["tokens_per_second"] == pytest.approx(length / part["seconds"])
                assert part["ratio_of_medians"] == pytest.approx(part["seconds"] / floor[kind]["seconds"])
                assert part["megabytes"] > 0
                assert part["memory_ratio_to_floor"] == pytest.approx(part["megabytes"] / floor[kind]["megabytes"])
                if name == FLOOR:
                    assert part["ratio_to_floor"] == part["ratio_of_medians"] == part["memory_ratio_to_floor"] == 1
            # A pass backward keeps what the forward alone throws away, and twice as much for twice the tokens.
            assert cell["forward_backward"]["megabytes"] > cell["forward"]["megabytes"]
        assert cells["128"]["forward_backward"]["megabytes"] > cells["64"]["forward_backward"]["megabytes"]
        assert record["growth"][name]["forward_backward_megabytes"]["per_1000_tokens"] > 0
    assert record["ran_as"] == {"BigBird": {"64": "original_full", "128": "original_full"}}
    ratios = {n: by_length(record["rows"][n], "ratio_to_floor") for n in (SINKHORN_SOFT, FULL_ATTENTION)}
    assert ratios[SINKHORN_SOFT].keys() == {64, 128}
    assert record["crossover"][FULL_ATTENTION] == crossover(ratios[SINKHORN_SOFT], ratios[FULL_ATTENTION])
    assert record["crossover"].keys() == {FULL_ATTENTION, "BigBird"}


@measured
def test_training_beside_single_rows(training_record):
    record = json.loads(training_record.read_text())
    assert record["ragged"]["rows"].keys() == {FLOOR, SINKHORN_SOFT, FULL_ATTENTION}
    assert record["packed"]["rows"].keys() == {FLOOR, SINKHORN_SOFT} == record["packed"]["gain_over_padding"].keys()
    speeds = [
        record[batch]["rows"][SINKHORN_SOFT]["forward_backward"]["tokens_per_second"] for batch in ("packed", "ragged")
    ]
    assert record["packed"]["gain_over_padding"][SINKHORN_SOFT] == pytest.approx(speeds[0] / speeds[1])
    assert sorted(record["ragged"]["lengths"]) == [8, 16, 24, 32, 40, 48, 56, 64]
    for part in (record["ragged"], record["packed"]):
        row = part["rows"][SINKHORN_SOFT]["forward_backward"]
        assert row["tokens_per_second"] == pytest.approx(sum(part["lengths"]) / row["seconds"])
    assert record["long"]["plain"]["megabytes"] > record["long"]["checkpointing"]["megabytes"]
    for part in (record["long"], record["checkpointing"]["128"]):
        assert part["checkpointing"]["megabytes"] > 0
        assert part["memory_ratio"] == pytest.approx(part["checkpointing"]["megabytes"] / part["plain"]["megabytes"])
        assert part["time_ratio"] > 0


@measured
def test_training_resumes(training_record, tmp_path, monkeypatch, capsys):
    """Lengths that the file has are kept, others measured; a run of other settings is refused."""
    record = json.loads(training_record.read_text())
    for cells in record["rows"].values():
        cells["64"]["forward"]["ratio_to_floor"] = 7.0
        del cells["128"]
    results = tmp_path / "benchmark.json"
    results.write_text(json.dumps(record | {"complete": False}))
    narrow_networks(monkeypatch)
    monkeypatch.setattr(benchmark, "extras", lambda *arguments: {})
    monkeypatch.setattr(benchmark, "check_all", lambda names, device: record["parity"])
    memory = {kind: {"megabytes": 1.0, "seconds": 0.01} for kind in benchmark.PASSES}
    monkeypatch.setattr(benchmark, "peak_memory", lambda task, timeout: memory)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--results", str(results), "--resume", *TINY, "--quick"])
    with pytest.raises(SystemExit, match="has another settings; run without --resume"):
        benchmark.main()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--results", str(results), "--resume", *TINY])
    benchmark.main()
    resumed = json.loads(results.read_text())
    assert resumed["complete"]
    assert resumed["rows"][SINKHORN_SOFT]["64"] == record["rows"][SINKHORN_SOFT]["64"]
    assert resumed["rows"][SINKHORN_SOFT]["128"]["rounds"] == 3
    assert "7.00 (" in capsys.readouterr().out


@measured
def test_report(training_record, tmp_path, monkeypatch, capsys):
    record = json.loads(training_record.read_text())
    copy = tmp_path / "benchmark.json"
    copy.write_text(json.dumps(record | {"crossover": {}}))
    run_script(monkeypatch, "maintain.py", "report", copy, "--update")
    assert json.loads(copy.read_text()) == record
    printed = capsys.readouterr().out
    ratio = record["rows"][SINKHORN_SOFT]["128"]["forward_backward"]["ratio_to_floor"]
    assert f"\n| {SINKHORN_SOFT} | " in printed and f"| {ratio:.2f} |\n" in printed


@measured
def test_plot(training_record, tmp_path, monkeypatch):
    run_script(monkeypatch, "maintain.py", "plots", training_record, "--output", tmp_path / "a" / "plot.png")
    plot = (tmp_path / "a" / "plot.png").read_bytes()
    assert plot.startswith(b"\x89PNG") and 10_000 < len(plot) < 150_000
    with pytest.raises(SystemExit):
        run_script(
            monkeypatch, "maintain.py", "plots", training_record, "--output", tmp_path / "b.png", "--models", "x"
        )


# The parity gate -----------------------------------------------------------------------------------------------------

SDPA, FORWARD = ALL_ATTENTION_FUNCTIONS["sdpa"], SinkhornModel.forward


def no_matrix(matrix, blocks, *others):
    return blocks[:, :, : matrix.shape[2]]


class KeysAsValues:
    """Keys and values are sorted by turns: every second time, it gives what it gave before."""

    def __init__(self):
        self.keys = None

    def __call__(self, *arguments):
        if self.keys is None:
            self.keys = soft_sort(*arguments)
            return self.keys
        keys, self.keys = self.keys, None
        return keys


def other_blocks(choice, blocks):
    return hard_sort(choice._replace(index=choice.index.flip(2)), blocks)


def leaky_balance(logits, allowed, iterations, *others):
    return sinkhorn_balance(logits, allowed, iterations), None


def half_scaling(*arguments, scaling, **options):
    return SDPA(*arguments, scaling=scaling / 2, **options)


def no_value_gradient(module, query, key, value, *arguments, **options):
    return SDPA(module, query, key, value.detach(), *arguments, **options)


def not_a_number(*arguments, **options):
    output, weights = SDPA(*arguments, **options)
    return output * math.nan, weights


def no_mask(self, *arguments, attention_mask=None, **inputs):
    return FORWARD(self, *arguments, **inputs)


def more_than_dense(self, *arguments, **inputs):
    outputs = FORWARD(self, *arguments, **inputs)
    if "full_attention" not in self.config.layer_types:
        outputs.last_hidden_state = outputs.last_hidden_state * 1.01
    return outputs


def no_gradient(*arguments):
    return sinkhorn_balance(*arguments).detach()


def no_sum(*arguments):
    return sinkhorn_balance(*arguments) * 0.99


def other_weights(model):
    model.layers[0].mlp.down_proj.weight.data.mul_(1.001)


BUGS = {
    # Which check finds the first three depends on how a layer calls these functions.
    "no matrix": (sorted_blocks_sinkhorn, "soft_sort", no_matrix, SINKHORN_SOFT, ""),
    "keys as values": (sorted_blocks_sinkhorn, "soft_sort", KeysAsValues(), SINKHORN_SOFT, ""),
    "other blocks": (sorted_blocks_sinkhorn, "hard_sort", other_blocks, "sinkhorn hard", ""),
    "leak": (sort_net_sinkhorn, "causal_sinkhorn_balance", leaky_balance, "causal sinkhorn hard", "later tokens"),
    "no mask": (SinkhornModel, "forward", no_mask, "local", "a row of a padded batch differs"),
    "documents forgotten": (
        inputs_sinkhorn,
        "documents_of",
        lambda positions: None,
        "causal sinkhorn soft",
        "a packed",
    ),
    "more than dense": (SinkhornModel, "forward", more_than_dense, "sortcut", "one block differs from dense"),
    "no gradient": (sort_net_sinkhorn, "sinkhorn_balance", no_gradient, SINKHORN_SOFT, "SortNet gets no gradient"),
    "no sum": (sort_net_sinkhorn, "sinkhorn_balance", no_sum, "sinkhorn hard", "sort matrices do not sum to 1"),
    "other weights": (
        parity_gate,
        "enable_checkpointing",
        other_weights,
        FULL_ATTENTION,
        "checkpointing changes the gradients",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_parity_gate_fails(bug, monkeypatch):
    module, name, replacement, variant, message = BUGS[bug]
    monkeypatch.setattr(module, name, replacement)
    with pytest.raises(SystemExit, match=f"error: {variant}: .*{message}.*; no speed is given"):
        parity_gate.check_all([variant])


@pytest.mark.parametrize(
    "sdpa, message",
    [
        (half_scaling, "attention differ"),
        (not_a_number, "attention differ .by nan"),
        (no_value_gradient, "the gradients of"),
    ],
)
def test_parity_gate_compares_implementations(sdpa, message, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sdpa)
    with pytest.raises(SystemExit, match=f"error: {FULL_ATTENTION}: .*{message}.*; no speed is given"):
        parity_gate.check_all([FULL_ATTENTION])


def test_parity_gate_moves_blocks(monkeypatch):
    """The check of a forced permutation alone: others, before it, find the same mistakes."""
    assert all(parity_gate.forced_permutation(name, "cpu") == 0 for name in (SINKHORN_SOFT, "sinkhorn hard"))
    monkeypatch.setattr(sorted_blocks_sinkhorn, "soft_sort", no_matrix)
    monkeypatch.setattr(sorted_blocks_sinkhorn, "hard_sort", other_blocks)
    assert all(parity_gate.forced_permutation(name, "cpu") > 0.1 for name in (SINKHORN_SOFT, "sinkhorn hard"))


def test_no_training_speed_without_parity(tmp_path, monkeypatch):
    monkeypatch.setattr(sorted_blocks_sinkhorn, "soft_sort", no_matrix)
    with pytest.raises(SystemExit, match="no speed is given"):
        run_script(monkeypatch, "benchmark.py", "--results", tmp_path / "benchmark.json", *TINY)
    assert not (tmp_path / "benchmark.json").exists()


# What is compared ----------------------------------------------------------------------------------------------------


def test_names():
    assert model_names()[0] == FLOOR and sorted(model_names()) == sorted([FLOOR, *SINKHORN_VARIANTS, *PEERS])


@pytest.mark.parametrize("name", model_names())
def test_models_are_of_one_size(name):
    """Longformer has projections for global tokens beside the others, ours a SortNet."""
    try:
        benchmark_model = make_model(name, 192)
    except ImportError as error:
        pytest.skip(str(error))  # the PyPI package, which only the extra `benchmark` installs
    floor, parameters = make_model(FLOOR, 192).parameters()["without_embeddings"], benchmark_model.parameters()
    assert 0.9 * floor < parameters["without_embeddings"] < 1.3 * floor
    assert parameters["all"] - parameters["without_embeddings"] >= VOCAB * 256
    hidden_states = benchmark_model(torch.randint(5, VOCAB, (1, 192)))
    assert hidden_states.shape[:2] == (1, 192) and hidden_states.requires_grad


def test_floor_has_no_attention():
    floor = make_model(FLOOR, 64)
    tokens = torch.randint(5, VOCAB, (1, 64))
    before = floor(tokens)
    tokens[0, 10] = 5
    changed = (floor(tokens) != before).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [10]
    assert floor.parameters() == make_model(FULL_ATTENTION, 64).parameters()


def test_big_bird_is_sparse_again_after_a_short_row():
    for length, ran_as in ((64, "original_full"), (768, "block_sparse")):
        big_bird = make_model("BigBird", length)
        big_bird(torch.randint(5, VOCAB, (1, length)))
        assert big_bird.ran_as == ran_as


def test_missing_peer_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "sinkhorn_transformer", None)
    models, left_out = benchmark.describe([FLOOR, "PyPI sinkhorn"], 64)
    assert models.keys() == {FLOOR} and "pip install" in left_out["PyPI sinkhorn"]


def test_batches():
    ragged = ragged_batch(8, 64)
    lengths = ragged.attention_mask.sum(-1)
    assert sorted(lengths.tolist()) == [8, 16, 24, 32, 40, 48, 56, 64] and ragged.num_tokens == lengths.sum()
    assert ((torch.arange(64) < lengths.unsqueeze(-1)) == ragged.attention_mask.bool()).all()
    assert (ragged.input_ids == ragged_batch(8, 64).input_ids).all()
    packed = packed_batch([3, 1, 2])
    assert packed.input_ids.shape == (1, 6) and packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]


# What is made of the numbers -----------------------------------------------------------------------------------------


def test_fit_growth():
    line = memory.fit_growth([1000, 2000, 4000, 8000], [5.0, 7.0, 11.0, 19.0])
    assert line["per_1000_tokens"] == pytest.approx(2) and line["intercept"] == pytest.approx(3)
    assert line["r_squared"] == pytest.approx(1) and line["exponent"] == pytest.approx(math.log2(19 / 11))
    # The exponent is of the longer half: linear up to 400, quadratic from there.
    bent = memory.fit_growth([100, 200, 400, 800, 1600, 3200], [1, 2, 4, 16, 64, 256])
    assert bent["exponent"] == pytest.approx(2) and bent["r_squared"] < 0.99
    assert memory.fit_growth([100, 200, 400], [1.0, None, 4.0])["per_1000_tokens"] == pytest.approx(10)
    assert memory.fit_growth([100, 200], [1.0, None]) is None


@pytest.mark.parametrize(
    "ours, other, measured, interpolated",
    [
        ({100: 2, 200: 1}, {100: 1, 200: 2}, 200, 100 * 2**0.5),
        ({100: 2, 200: 2, 400: 2}, {100: 1, 200: 1.5, 400: 16}, 400, 200 * 2 ** (math.log(4 / 3) / math.log(32 / 3))),
        ({100: 1, 200: 3, 400: 3}, {100: 2, 200: 2, 400: 4}, 400, 200 * 2 ** (math.log(3 / 2) / math.log(2))),
        ({100: 1, 200: 1}, {100: 2, 200: 2}, 100, None),
        ({100: 1, 200: 2}, {100: 2, 200: 2}, None, None),
        ({100: 1, 200: 1, 400: 1}, {100: 2}, 100, None),
        ({100: 1}, {}, None, None),
    ],
)
def test_crossover(ours, other, measured, interpolated):
    found = crossover(ours, other)
    assert found["measured"] == measured
    assert found["interpolated"] == (None if interpolated is None else pytest.approx(interpolated))
    assert found["compared_up_to"] == max(ours.keys() & other.keys(), default=None)


def test_predictions():
    assert predict({}, 100) == 0
    assert predict({100: 1.0}, 300) == pytest.approx(9)  # quadratic, to be safe
    assert predict({50: 0.1, 100: 1.0, 200: 2.0}, 800) == pytest.approx(8)
    assert predict({100: 1.0, 200: 4.0}, 800) == pytest.approx(64)
    assert predict({100: 1.0, 200: 0.5}, 400) == pytest.approx(1)  # no less than linear


def test_ratios_are_to_the_base_shortly_before(monkeypatch):
    """A machine that becomes slower and slower, and two models that take twice and three times what the base takes."""
    factors = {"base": 1.0, **{f"other {number}": 2.0 + number % 2 for number in range(6)}}
    order: list[str] = []

    def seconds(name, batch, kind):
        order.append(name)
        return factors[name] * 1.1 ** order.count("base")

    monkeypatch.setattr("benchmarking.timing.seconds", seconds)
    timings = time_rounds(
        {name: name for name in factors}, ragged_batch(1, 8), 0, lambda name: 3, kinds=("forward",), base="base"
    )
    assert all(timings.ratio(name, "forward") == pytest.approx(factor) for name, factor in factors.items())
    assert [len(timings.seconds[name]["forward"]) for name in factors] == [6, 3, 3, 3, 3, 3, 3]
    rounds = order[len(factors) :]  # after the one that warms up
    assert rounds[:9] == ["base", *[f"other {n}" for n in (0, 1, 2, 3)], "base", "other 4", "other 5", "base"]
    assert rounds[9] == "other 1"
    assert (
        Timings({"a": {"forward": [2.0, 9.0, 3.0]}}, {"a": {"forward": [1.0, 3.0, 2.0]}}, {}).ratio("a", "forward")
        == 2
    )


def test_what_would_take_too_long_is_skipped():
    slow = {
        name: {"forward_backward": seconds}
        for name, seconds in ((FLOOR, 30), (FULL_ATTENTION, 26), (SINKHORN_SOFT, 24))
    }
    assert benchmark.too_slow(slow, 25).keys() == {FULL_ATTENTION}
    costs = {FLOOR: 10, SINKHORN_SOFT: 20, FULL_ATTENTION: 50, "BERT": 40, "local": 12, "BigBird": 30}
    assert benchmark.too_costly(costs, math.inf) == {}
    assert benchmark.too_costly(costs, 125).keys() == {"BERT"}
    assert benchmark.too_costly(costs, 121).keys() == {"BERT", "BigBird"}
    assert benchmark.too_costly(costs, 0).keys() == {"BERT", "BigBird", "local"}  # the others are what it is about


# Elsewhere the peak of a process cannot be set back, so there is no such measurement to test.
@pytest.mark.skipif(not memory.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_tensors():
    """Two tensors of 64 MB and 48 MB, gone at once, and one of 48 MB, whatever malloc keeps ready."""
    before = memory.reset_peak()
    torch.ones(16, 2**20), torch.ones(12, 2**20)
    assert memory.peak_since(before) / memory.MEGABYTE == pytest.approx(112, abs=2)
    before = memory.reset_peak()
    torch.ones(12, 2**20)
    assert memory.peak_since(before) / memory.MEGABYTE == pytest.approx(48, abs=2)


def test_a_process_that_fails_gives_a_reason():
    answer = memory.peak_memory(memory.Task("no such model", 64))
    assert answer["forward"] == {"megabytes": None, "seconds": None}
    assert "ended with code 1" in answer["reason"]
    assert "took more than 0 s" in memory.peak_memory(memory.Task(SINKHORN_SOFT, 64), timeout=0)["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="torch sees none"):
        run_script(monkeypatch, "benchmark_gpu.py", "--results", tmp_path / "results.json")


@pytest.mark.parametrize("blocks", [2, 7])
def test_a_block_reads_another(blocks):
    """The pattern that attention alone is timed on: each block once, and none beside itself."""
    others = other_blocks_at_random(blocks)
    assert sorted(others.tolist()) == list(range(blocks))
    assert (others != torch.arange(blocks)).all()


# On a GPU -------------------------------------------------------------------------------------------------------------


def test_token_routing_beside_flex_attention_reads_the_same():
    """Where all tokens of a block choose what the block has drawn, both read what the mask says. It has holes."""
    torch.manual_seed(0)
    inputs = token_routing.Inputs(8 * BLOCK, "cpu", torch.float32)
    inputs.of_tokens = tuple(x.repeat_interleave(BLOCK, dim=2) for x in inputs.of_blocks)
    mask = token_routing.flex_mask(inputs)
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 7]  # a sink, two local blocks, up to four others
    # Not FlexAttention itself, which leaves out the blocks' pattern where it is not compiled, as on this CPU.
    pattern = mask.to_dense().bool().repeat_interleave(BLOCK, dim=2).repeat_interleave(BLOCK, dim=3)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    expected = sdpa(*inputs.rows(), attn_mask=pattern.tril(), scale=inputs.scaling)
    assert (token_routing.by_token(inputs) - expected).abs().max() < 1e-5
    full = sdpa(*inputs.rows(), is_causal=True, scale=inputs.scaling)
    assert (full - expected)[:, :, -BLOCK:].abs().max() > 1e-2


def test_token_routing_is_timed(monkeypatch):
    monkeypatch.setattr(token_routing, "milliseconds", lambda call, seconds: call() is not None)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(token_routing, "flex_attention", lambda *rows, **settings: sdpa(*rows))  # has no backward here
    found = token_routing.token_routing(argparse.Namespace(lengths=[4 * BLOCK], seconds=0), "cpu")[str(4 * BLOCK)]
    assert all(set(times) == {"forward", "forward_backward"} for times in found.values()), found
    monkeypatch.setattr(token_routing, "by_token", lambda inputs: inputs.missing)
    found = token_routing.token_routing(argparse.Namespace(lengths=[4 * BLOCK], seconds=0), "cpu")[str(4 * BLOCK)]
    assert "AttributeError" in found["each token chooses"]["failed"] and "failed" not in found["all, SDPA"]
