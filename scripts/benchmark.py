# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Measures time and peak memory of a forward pass, and of a forward and backward pass, at several lengths. It compares
our models, peers, and the floor: the same network without attention. All run in one process with interleaved rounds,
after a check that our models compute what they should.

    python scripts/benchmark.py --results results/benchmarks/cpu.json          # 15 minutes on two CPU cores
    python scripts/benchmark.py --results runs/quick.json --quick         # short texts, few rounds
    python scripts/maintain.py plots results/benchmarks/cpu.json --output results/benchmarks/cpu.png

Weights and tokens are random: the cost does not depend on them. The results are written after each length, and give
the reason for whatever was not measured. `--resume` continues from them.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from benchmarking.extras import (
    MINIMUM_ROUNDS,
    RAGGED_MODELS,
    RAGGED_ROWS,
    if_time_is_left,
    measure_checkpointing,
    measure_long,
    measure_packed,
    measure_ragged,
    minimum_rounds,
    packing_gain,
)
from benchmarking.limits import limits, limits_tables
from benchmarking.memory import Task, peak_memory
from benchmarking.models import (
    FLOOR,
    FULL_ATTENTION,
    PEERS,
    SINKHORN_SOFT,
    SINKHORN_VARIANTS,
    SIZES,
    SMALL,
    make_model,
    model_names,
)
from benchmarking.parity import check_all
from benchmarking.passes import FORWARD_BACKWARD, PASSES, single_row
from benchmarking.report import conclusions, seconds_by_length, table
from benchmarking.timing import predict, summarize, time_rounds
from common.command_line import make_parser
from common.run_record import provenance, write_json


CPU_LENGTHS = [2**power for power in range(8, 15)]
CUDA_LENGTHS = [2**power for power in range(8, 18)]
QUICK = {
    "lengths": [256, 512, 1024],
    "seconds_per_length": 3.0,
    "ragged_longest": 256,
    "checkpointing_lengths": [1024],
    "long_length": 0,
    "minutes": 0.8,
}
EXTRAS_SHARE = 0.33  # of the minutes


def main() -> None:
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()  # BigBird and Reformer log their choice for every model
    chosen = [name for name in model_names() if name == FLOOR or name in arguments.models]
    deadline = time.perf_counter() + arguments.minutes * 60 if arguments.minutes else math.inf
    parity = check_all([name for name in chosen if name in SINKHORN_VARIANTS], arguments.device)
    models, left_out = describe(chosen, max(arguments.lengths), arguments.size)
    record = {
        **provenance(),
        "command": ["scripts/benchmark.py", *sys.argv[1:]],
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("results", "resume")},
        "models": models,
        "left_out": left_out,
        "dtype": arguments.dtype,
        "seeds": {"weights": 0, "tokens": 0},
        "parity": parity,
        "rows": {name: {} for name in models},
        "complete": False,
    }
    if arguments.resume:
        record["rows"] = rows_so_far(arguments.results, record)
    for length in sorted(arguments.lengths):
        if str(length) not in record["rows"][FLOOR]:
            for name, cell in measure_length(length, arguments, record["rows"], deadline).items():
                record["rows"][name][str(length)] = cell
            write_json(arguments.results, record)
    if arguments.device == "cpu":
        dtype = getattr(torch, arguments.dtype)
        record["limits"] = limits(record["rows"], sorted(arguments.lengths), arguments.size, dtype)
    record |= extras(arguments, record["rows"], deadline) | conclusions(record["rows"]) | {"complete": True}
    write_json(arguments.results, record)
    report(record, sorted(arguments.lengths))


def parse_arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument(
        "--resume", action="store_true", help="Continue from that file, if commit and settings are the same."
    )
    parser.add_argument("--quick", action="store_true", help="Short lengths, few rounds.")
    parser.add_argument(
        "--models",
        nargs="+",
        default=model_names(),
        choices=model_names(),
        metavar="NAME",
        help="; ".join(model_names()),
    )
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="cpu or cuda.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on CUDA.")
    parser.add_argument(
        "--size", choices=tuple(SIZES), default=SMALL, help="Of all models: 4 layers 256 wide, or 12 layers 768 wide."
    )
    parser.add_argument("--compile", action="store_true", help="Compile every model.")
    parser.add_argument("--lengths", type=int, nargs="+", help="In tokens; to 16,384 on a CPU, to 131,072 on CUDA.")
    parser.add_argument(
        "--seconds_per_length", type=float, default=20.0, help="Time for more rounds than the minimum."
    )
    parser.add_argument("--max_seconds_per_pass", type=float, default=25.0, help="Slower models are left out.")
    parser.add_argument(
        "--minutes", type=float, default=14.0, help="Total time; what would take longer is left out. 0: no limit."
    )
    parser.add_argument(
        "--ragged_longest", type=int, default=1024, help="Longest row of the padded and of the packed batch; 0: none."
    )
    parser.add_argument("--checkpointing_lengths", type=int, nargs="*", default=[4096, 16384], help="In tokens.")
    parser.add_argument("--long_length", type=int, default=65536, help="Of the long row, in tokens; 0: none.")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    arguments.lengths = arguments.lengths or (CPU_LENGTHS if on_cpu else CUDA_LENGTHS)
    return arguments


def placement_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `make_model` is told of every model."""
    return {
        "device": arguments.device,
        "dtype": getattr(torch, arguments.dtype),
        "size": arguments.size,
        "compiled": arguments.compile,
    }


def describe(chosen: list[str], length: int, size: str = SMALL) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration and size of each model, and the reason for each peer that cannot be made."""
    models, left_out = {}, {}
    for name in chosen:
        try:
            benchmark_model = make_model(name, length, size=size)
        except (ImportError, ValueError, TypeError, AttributeError) as error:
            if name not in PEERS:
                raise
            left_out[name] = f"{type(error).__name__}: {error}"
            continue
        models[name] = {"config": benchmark_model.config, "parameters": benchmark_model.parameters()}
    return models, left_out


def rows_so_far(results: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run with the same code and settings."""
    if not results.exists():
        return record["rows"]
    earlier = json.loads(results.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(record))
    different = [
        key for key in ("commit", "settings", "models", "versions", "machine") if earlier.get(key) != now[key]
    ]
    if different:
        raise SystemExit(
            f"error: {results} has another {' and '.join(different)}; run without --resume to start again."
        )
    return earlier["rows"]


# One length ----------------------------------------------------------------------------------------------------------


def expected_seconds(rows: dict[str, Any], name: str, length: int) -> dict[str, float]:
    """Of each pass, predicted from shorter lengths."""
    return {kind: predict(seconds_by_length(rows[name], kind), length) for kind in PASSES}


def measure_length(
    length: int, arguments: argparse.Namespace, rows: dict[str, Any], deadline: float
) -> dict[str, Any]:
    """`{model: cell}` at one length. A cell holds the measurements, or the reason under `skipped`."""
    placement = placement_of(arguments)
    expected = {name: expected_seconds(rows, name, length) for name in rows}
    skipped = too_slow(expected, arguments.max_seconds_per_pass)
    costs = {n: sum(expected[n].values()) * (1 + minimum_rounds(n)) for n in rows if n not in skipped}
    skipped |= too_costly(costs, time_for(length, arguments, deadline))
    memory = {}
    for name in tqdm([name for name in rows if name not in skipped], desc=f"{length:,} tokens: memory"):
        task = Task(name, length, **placement | {"dtype": arguments.dtype})
        memory[name] = peak_memory(task, timeout=4 * arguments.max_seconds_per_pass)
        if "reason" in memory[name]:
            skipped[name] = memory[name]["reason"]
        elif (took := memory[name][FORWARD_BACKWARD]["seconds"]) > arguments.max_seconds_per_pass and name != FLOOR:
            skipped[name] = f"a pass took {took:.0f} s"
    benchmark_models = {name: make_model(name, length, **placement) for name in rows if name not in skipped}
    timings = time_rounds(
        benchmark_models,
        single_row(length).to(arguments.device),
        arguments.seconds_per_length,
        minimum_rounds,
        expected=lambda name: memory[name][FORWARD_BACKWARD]["seconds"],
    )
    skipped |= timings.failures
    cells = {name: {"skipped": reason} for name, reason in skipped.items()}
    for name in timings.seconds:
        cells[name] = summarize(timings, name, length)
        if benchmark_models[name].ran_as is not None:
            cells[name]["ran_as"] = benchmark_models[name].ran_as
    add_memory(cells, memory)
    return cells


def too_slow(expected: dict[str, dict[str, float]], limit: float) -> dict[str, str]:
    return {
        name: f"a pass would take about {passes[FORWARD_BACKWARD]:.0f} s"
        for name, passes in expected.items()
        if passes[FORWARD_BACKWARD] > limit and name != FLOOR
    }


def time_for(length: int, arguments: argparse.Namespace, deadline: float) -> float:
    """Seconds that a length may take: half of the time left, to leave some for longer ones; the last one gets all."""
    left = deadline - time.perf_counter() - EXTRAS_SHARE * arguments.minutes * 60
    return left if length == max(arguments.lengths) else left / 2


def too_costly(costs: dict[str, float], left: float) -> dict[str, str]:
    """The slowest models, as many as must be left out for the others to finish in the seconds left."""
    skipped: dict[str, str] = {}
    for name in sorted(costs, key=costs.get, reverse=True):
        if sum(costs.values()) - sum(costs[other] for other in skipped) <= left:
            break
        if name not in (FLOOR, SINKHORN_SOFT, FULL_ATTENTION):
            skipped[name] = f"would take about {costs[name]:.0f} s, more than --minutes leaves room for"
    return skipped


def add_memory(cells: dict[str, Any], memory: dict[str, Any]) -> None:
    for name, measured in memory.items():
        for kind in PASSES:
            megabytes, floor = measured[kind]["megabytes"], memory[FLOOR][kind]["megabytes"]
            cell = cells[name].setdefault(kind, {})
            cell["megabytes"] = megabytes
            cell["memory_ratio_to_floor"] = megabytes / floor if megabytes and floor else None
        if "reason" in measured:
            cells[name]["no_memory"] = measured["reason"]


# The rest ------------------------------------------------------------------------------------------------------------


def extras(arguments: argparse.Namespace, rows: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Long rows, activation checkpointing, padded and packed batches."""
    placement = placement_of(arguments)
    result: dict[str, Any] = {}

    def left() -> float:
        return deadline - time.perf_counter()

    def expected(name: str, length: int) -> float:
        return expected_seconds(rows, name, length)[FORWARD_BACKWARD] if name in rows else 0.0

    if SINKHORN_SOFT in rows and arguments.long_length:
        length = arguments.long_length
        needed = expected(SINKHORN_SOFT, length) * 2.5  # one pass as it is, and one that computes the forward twice
        print(f"A long row: {length:,} tokens")
        result["long"] = if_time_is_left(needed, left(), lambda: measure_long(length, placement, timeout=600))
    if SINKHORN_SOFT in rows and arguments.checkpointing_lengths:
        result["checkpointing"] = {}
        for length in tqdm(arguments.checkpointing_lengths, desc="Activation checkpointing"):
            needed = expected(SINKHORN_SOFT, length) * 2.5 * (1 + MINIMUM_ROUNDS)
            result["checkpointing"][str(length)] = if_time_is_left(
                needed,
                left(),
                lambda length=length: measure_checkpointing(length, arguments.seconds_per_length / 2, placement),
            )
    if arguments.ragged_longest:
        print("A padded batch")
        longest, budget = arguments.ragged_longest, arguments.seconds_per_length
        passes = sum(expected(name, longest) * minimum_rounds(name) for name in RAGGED_MODELS)
        needed = passes * RAGGED_ROWS * 1.4  # with the forward alone
        result["ragged"] = if_time_is_left(
            needed, left(), lambda: measure_ragged(list(rows), longest, budget, placement)
        )
        print("The same documents in one row")
        result["packed"] = if_time_is_left(
            needed, left(), lambda: measure_packed(list(rows), longest, budget, placement)
        )
        result["packed"] |= packing_gain(result["ragged"], result["packed"])
    return result


def report(record: dict[str, Any], lengths: list[int]) -> None:
    for kind in PASSES:
        print(f"\n{table(record['rows'], lengths, kind)}")
    if record.get("limits"):
        print(f"\n{limits_tables(record['limits'], record['rows'], lengths)}")
    print()
    for name, found in record["crossover"].items():
        if found["measured"] is None:
            print(f"{SINKHORN_SOFT} is not faster than {name} at {found['compared_up_to']} tokens")
        else:
            print(f"{SINKHORN_SOFT} is faster than {name} from {found['measured']:,} tokens on (measured)")
    for name, reason in record["left_out"].items():
        print(f"left out: {name}: {reason}")
    for name, cells in record["rows"].items():
        for length, cell in cells.items():
            if "skipped" in cell:
                print(f"not measured: {name} at {int(length):,}: {cell['skipped']}")


if __name__ == "__main__":
    main()
