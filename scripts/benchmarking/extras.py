# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `benchmark.py` measures beside single rows: padded and packed batches, and activation checkpointing."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarking.memory import Task, peak_memory
from benchmarking.models import FLOOR, FULL, MAIN, OURS, make
from benchmarking.passes import BOTH, Batch, enable_checkpointing, packed_batch, ragged_batch, single_row
from benchmarking.timing import summarize, time_rounds


RAGGED_ROWS = 8
RAGGED_MODELS = (FLOOR, MAIN, "sinkhorn hard", "sortcut", "local", "causal sinkhorn soft", FULL, "BERT", "ModernBERT")
PACKED_MODELS = (FLOOR, MAIN, "sinkhorn hard", "local", "causal sinkhorn soft")
LEAST_ROUNDS = 3


def least_rounds(name: str) -> int:
    return LEAST_ROUNDS if name == FLOOR or name in OURS else 1


def measure_ragged(names: list[str], longest: int, budget: float, place: Mapping[str, Any]) -> dict[str, Any]:
    """
    Right-padded rows, of which each model gets the mask; tokens per second are of real ones.

    Args:
        place: `device` and `dtype`.
    """
    batch = ragged_batch(RAGGED_ROWS, longest)
    lengths = batch.attention_mask.sum(-1).tolist()
    chosen = [name for name in names if name in RAGGED_MODELS]
    return {"lengths": lengths, "rows": _rows(chosen, longest, batch, budget, place)}


def measure_packed(names: list[str], longest: int, budget: float, place: Mapping[str, Any]) -> dict[str, Any]:
    """The same documents without padding, one after another in a single row with positions that restart."""
    lengths = ragged_batch(RAGGED_ROWS, longest).attention_mask.sum(-1).tolist()
    chosen = [name for name in names if name in PACKED_MODELS]
    return {"lengths": lengths, "rows": _rows(chosen, sum(lengths), packed_batch(lengths), budget, place)}


def packing_gain(padded: Mapping[str, Any], packed: Mapping[str, Any]) -> dict[str, Any]:
    """How many times as many real tokens per second a model reads in a packed row as in a padded batch."""
    speeds = [
        {name: row[BOTH]["tokens_per_second"] for name, row in batch.get("rows", {}).items() if BOTH in row}
        for batch in (padded, packed)
    ]
    return {
        "gain_over_padding": {name: speed / speeds[0][name] for name, speed in speeds[1].items() if name in speeds[0]}
    }


def _rows(names: list[str], length: int, batch: Batch, budget: float, place: Mapping[str, Any]) -> dict[str, Any]:
    batch = batch.to(place["device"])
    contestants = {name: make(name, length, **place) for name in names}
    timings = time_rounds(contestants, batch, budget, least_rounds)
    rows = {name: summarize(timings, name, batch.num_tokens) for name in timings.seconds}
    return rows | {name: {"skipped": reason} for name, reason in timings.failures.items()}


def measure_checkpointing(length: int, budget: float, place: Mapping[str, Any]) -> dict[str, Any]:
    """What activation checkpointing costs the soft encoder in time and saves it in memory, rounds interleaved."""
    contestants = {name: make(MAIN, length, **place) for name in ("plain", "checkpointing")}
    enable_checkpointing(contestants["checkpointing"].model)
    batch = single_row(length).to(place["device"])
    timings = time_rounds(contestants, batch, budget, lambda name: LEAST_ROUNDS, kinds=(BOTH,), base="plain")
    if timings.failures:
        return {"skipped": timings.failures["checkpointing"]}
    result = {
        name: {
            "seconds": statistics.median(timings.seconds[name][BOTH]),
            "megabytes": _peak(length, place, name == "checkpointing")["megabytes"],
        }
        for name in contestants
    }
    return _with_ratios(result) | {"time_ratio": timings.ratio("checkpointing", BOTH)}


def measure_long(length: int, place: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """One forward and backward of the soft encoder over a long row, with activation checkpointing and without."""
    result = {name: _peak(length, place, name == "checkpointing", timeout) for name in ("checkpointing", "plain")}
    return _with_ratios({"length": length, "model": MAIN, **result})


def _peak(length: int, place: Mapping[str, Any], enabled: bool, timeout: float = 600) -> dict[str, Any]:
    dtype = str(place["dtype"]).removeprefix("torch.")
    answer = peak_memory(Task(MAIN, length, place["device"], dtype, enabled, kinds=(BOTH,)), timeout)
    return answer[BOTH] | {key: answer[key] for key in ("reason",) if key in answer}


def _with_ratios(result: dict[str, Any]) -> dict[str, Any]:
    plain, other = result["plain"], result["checkpointing"]
    for ratio, figure in (("time_ratio", "seconds"), ("memory_ratio", "megabytes")):
        result[ratio] = other[figure] / plain[figure] if plain[figure] and other[figure] else None
    return result


def in_time(expected: float, left: float, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` gives, if the seconds that it is expected to take are left."""
    if expected > left:
        return {"skipped": f"would take about {expected:.0f} s, and {max(left, 0):.0f} s are left"}
    return measure()
