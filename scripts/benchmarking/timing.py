# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Interleaved rounds: whatever slows the machine down for a while slows down all models."""

import math
import operator
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarking.models import FLOOR, BenchmarkModel
from benchmarking.passes import FORWARD_BACKWARD, PASSES, Batch, seconds


MAXIMUM_ROUNDS = 25
MODELS_PER_BASE = 4  # so that the base was measured only seconds earlier
SLOW_PASS_SECONDS = 3.0  # above this, a warm-up does not pay


class Timings(NamedTuple):
    seconds: dict[str, dict[str, list[float]]]  # model, pass: one entry per round
    base: dict[str, dict[str, list[float]]]  # the same of the base, measured shortly before
    failures: dict[str, str]  # model: why it failed

    def ratio(self, name: str, kind: str) -> float:
        """The median over rounds of a model's time as a multiple of the base's shortly before."""
        return statistics.median(map(operator.truediv, self.seconds[name][kind], self.base[name][kind]))


def time_rounds(
    benchmark_models: Mapping[str, BenchmarkModel],
    batch: Batch,
    budget: float,
    minimum_rounds: Callable[[str], int],
    expected: Callable[[str], float] = lambda name: 0.0,
    kinds: tuple[str, ...] = PASSES,
    base: str = FLOOR,
) -> Timings:
    """
    Each round runs a forward pass and then a forward and backward pass of each model, and of the base again before
    every few models. The order rotates by one in each round.

    Args:
        budget: seconds after which models with their `minimum_rounds` get no more rounds.
        expected: seconds of a pass, if known; slow models get no warm-up.
        base: the model that the others are compared with.
    """
    times: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in benchmark_models}
    bases: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in benchmark_models}
    failures: dict[str, str] = {}

    def measure(name: str) -> dict[str, float] | None:
        try:
            return {kind: seconds(benchmark_models[name], batch, kind) for kind in kinds}
        except (RuntimeError, MemoryError, ValueError, AssertionError, TypeError) as error:
            if name == base:
                raise
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return None

    def record(name: str, measured: dict[str, float], base_seconds: dict[str, float]) -> None:
        for kind in kinds:
            times[name][kind].append(measured[kind])
            bases[name][kind].append(base_seconds[kind])

    for name in benchmark_models:
        if expected(name) < SLOW_PASS_SECONDS:
            measure(name)
    others, start = [name for name in benchmark_models if name != base], time.perf_counter()
    for number in tqdm(range(MAXIMUM_ROUNDS), desc=f"{batch.input_ids.numel():,} tokens: rounds"):
        within_budget = time.perf_counter() - start < budget
        rotated = others[number % max(len(others), 1) :] + others[: number % max(len(others), 1)]
        to_measure = [
            name for name in rotated if (within_budget or number < minimum_rounds(name)) and name not in failures
        ]
        if not to_measure and not within_budget and number >= minimum_rounds(base):
            break
        for first in range(0, max(len(to_measure), 1), MODELS_PER_BASE):
            base_seconds = measure(base)
            record(base, base_seconds, base_seconds)
            for name in to_measure[first : first + MODELS_PER_BASE]:
                measured = measure(name)
                if measured is not None:
                    record(name, measured, base_seconds)
    return Timings({name: times[name] for name in benchmark_models if name not in failures}, bases, failures)


def summarize(timings: Timings, name: str, num_tokens: int) -> dict[str, Any]:
    """
    Of one model, per pass: the median and the range of its seconds, tokens per second, the median over rounds of its
    ratio to the floor's time shortly before, and the ratio of the medians.
    """
    summary: dict[str, Any] = {"rounds": len(timings.seconds[name][FORWARD_BACKWARD])}
    for kind in PASSES:
        values = timings.seconds[name][kind]
        median = statistics.median(values)
        summary[kind] = {
            "seconds": median,
            "spread": [min(values), max(values)],
            "tokens_per_second": num_tokens / median,
            "ratio_to_floor": timings.ratio(name, kind),
            "ratio_of_medians": median / statistics.median(timings.seconds[FLOOR][kind]),
        }
    return summary


def predict(history: Mapping[int, float], length: int) -> float:
    """
    Predicts the seconds at `length` from shorter lengths: from the growth between the last two, at least linear and at
    most quadratic; quadratic from one length; 0 from none.
    """
    if not history:
        return 0.0
    *others, last = sorted(history)
    exponent = 2.0
    if others:
        exponent = math.log(history[last] / history[others[-1]]) / math.log(last / others[-1])
    return history[last] * (length / last) ** min(max(exponent, 1.0), 2.0)
