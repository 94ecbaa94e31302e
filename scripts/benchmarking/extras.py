# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `benchmark.py` measures in addition to single rows: padded and packed batches, activation checkpointing."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarking.memory import Task, peak_memory
from benchmarking.models import FLOOR, FULL_ATTENTION, SINKHORN_SOFT, SINKHORN_VARIANTS, make_model
from benchmarking.passes import FORWARD_BACKWARD, Batch, enable_checkpointing, packed_batch, ragged_batch, single_row
from benchmarking.timing import summarize, time_rounds


RAGGED_ROWS = 8
RAGGED_MODELS = (
    FLOOR,
    SINKHORN_SOFT,
    "sinkhorn hard",
    "sortcut",
    "local",
    "causal sinkhorn soft",
    FULL_ATTENTION,
    "BERT",
    "ModernBERT",
)
PACKED_MODELS = (FLOOR, SINKHORN_SOFT, "sinkhorn hard", "local", "causal sinkhorn soft")
MINIMUM_ROUNDS = 3


def minimum_rounds(name: str) -> int:
    return MINIMUM_ROUNDS if name == FLOOR or name in SINKHORN_VARIANTS else 1


def measure_ragged(names: list[str], longest: int, budget: float, placement: Mapping[str, Any]) -> dict[str, Any]:
    """
    Right-padded rows with an attention mask. Tokens per second do not count padding.

    Args:
        place: `device` and `dtype`.
    """
    batch = ragged_batch(RAGGED_ROWS, longest)
    lengths = batch.attention_mask.sum(-1).tolist()
    chosen = [name for name in names if name in RAGGED_MODELS]
    return {"lengths": lengths, "rows": _rows(chosen, longest, batch, budget, placement)}


def measure_packed(names: list[str], longest: int, budget: float, placement: Mapping[str, Any]) -> dict[str, Any]:
    """The same documents without padding: one after another in a single row, with positions that restart."""
    lengths = ragged_batch(RAGGED_ROWS, longest).attention_mask.sum(-1).tolist()
    chosen = [name for name in names if name in PACKED_MODELS]
    return {"lengths": lengths, "rows": _rows(chosen, sum(lengths), packed_batch(lengths), budget, placement)}


def packing_gain(padded: Mapping[str, Any], packed: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens per second in a packed row, as a multiple of those in a padded batch."""
    speeds = [
        {
            name: row[FORWARD_BACKWARD]["tokens_per_second"]
            for name, row in batch.get("rows", {}).items()
            if FORWARD_BACKWARD in row
        }
        for batch in (padded, packed)
    ]
    return {
        "gain_over_padding": {name: speed / speeds[0][name] for name, speed in speeds[1].items() if name in speeds[0]}
    }


def _rows(names: list[str], length: int, batch: Batch, budget: float, placement: Mapping[str, Any]) -> dict[str, Any]:
    batch = batch.to(placement["device"])
    benchmark_models = {name: make_model(name, length, **placement) for name in names}
    timings = time_rounds(benchmark_models, batch, budget, minimum_rounds)
    rows = {name: summarize(timings, name, batch.num_tokens) for name in timings.seconds}
    return rows | {name: {"skipped": reason} for name, reason in timings.failures.items()}


def measure_checkpointing(length: int, budget: float, placement: Mapping[str, Any]) -> dict[str, Any]:
    """The time that activation checkpointing costs the soft encoder and the memory that it saves."""
    benchmark_models = {name: make_model(SINKHORN_SOFT, length, **placement) for name in ("plain", "checkpointing")}
    enable_checkpointing(benchmark_models["checkpointing"].model)
    batch = single_row(length).to(placement["device"])
    timings = time_rounds(
        benchmark_models, batch, budget, lambda name: MINIMUM_ROUNDS, kinds=(FORWARD_BACKWARD,), base="plain"
    )
    if timings.failures:
        return {"skipped": timings.failures["checkpointing"]}
    result = {
        name: {
            "seconds": statistics.median(timings.seconds[name][FORWARD_BACKWARD]),
            "megabytes": _peak(length, placement, name == "checkpointing")["megabytes"],
        }
        for name in benchmark_models
    }
    return _with_ratios(result) | {"time_ratio": timings.ratio("checkpointing", FORWARD_BACKWARD)}


def measure_long(length: int, placement: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """One forward and backward pass of the soft encoder over a long row, with and without checkpointing."""
    result = {name: _peak(length, placement, name == "checkpointing", timeout) for name in ("checkpointing", "plain")}
    return _with_ratios({"length": length, "model": SINKHORN_SOFT, **result})


def _peak(length: int, placement: Mapping[str, Any], enabled: bool, timeout: float = 600) -> dict[str, Any]:
    settings = {**placement, "dtype": str(placement["dtype"]).removeprefix("torch.")}
    answer = peak_memory(
        Task(SINKHORN_SOFT, length, checkpointing=enabled, kinds=(FORWARD_BACKWARD,), **settings), timeout
    )
    return answer[FORWARD_BACKWARD] | {key: answer[key] for key in ("reason",) if key in answer}


def _with_ratios(result: dict[str, Any]) -> dict[str, Any]:
    plain, other = result["plain"], result["checkpointing"]
    for ratio, figure in (("time_ratio", "seconds"), ("memory_ratio", "megabytes")):
        result[ratio] = other[figure] / plain[figure] if plain[figure] and other[figure] else None
    return result


def if_time_is_left(expected: float, left: float, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `measure`, if there is enough time left for it."""
    if expected > left:
        return {"skipped": f"would take about {expected:.0f} s, and {max(left, 0):.0f} s are left"}
    return measure()
