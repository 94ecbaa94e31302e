# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Peak memory of a pass, in addition to the parameters and their gradients, and its growth with the length. On a CPU each
measurement runs in a new process with a fresh heap.
"""

import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarking.models import SMALL, BenchmarkModel, make_model
from benchmarking.passes import FORWARD, PASSES, enable_checkpointing, prepare, run, single_row
from common.peak_memory import peak_since, reset_peak, return_freed_memory_at_once


PRELOAD = ["torch", "transformers", "benchmarking.memory"]  # what children need, imported once
WARM_UP_LENGTH = 64
MEGABYTE = 2**20


class Task(NamedTuple):
    """What to measure. Picklable: a child builds the model itself."""

    name: str
    length: int
    device: str = "cpu"
    dtype: str = "float32"
    checkpointing: bool = False
    kinds: tuple[str, ...] = PASSES
    size: str = SMALL
    compiled: bool = False

    def make_model(self, length: int) -> BenchmarkModel:
        return make_model(self.name, length, self.device, getattr(torch, self.dtype), self.size, self.compiled)


def peak_memory(task: Task, timeout: float = 600) -> dict[str, Any]:
    """
    `{pass: {"megabytes": peak, "seconds": of that one pass}}`. Where the process ends or runs out of memory, or takes
    more than `timeout` seconds: `{pass: {"megabytes": None, "seconds": None}, "reason": why}`.
    """
    if task.device != "cpu":
        return _complete(task, _failure_as_reason(_on_cuda, task))
    return _complete(task, _in_child(task, timeout))


def _complete(task: Task, answer: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"megabytes": None, "seconds": None} for kind in task.kinds} | answer


def _failure_as_reason(measure, task: Task) -> dict[str, Any]:
    """A model that cannot run at this length is a result too."""
    try:
        return measure(task)
    except (RuntimeError, MemoryError, ValueError, AssertionError, TypeError, NotImplementedError) as error:
        return {"reason": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}


# CPU -----------------------------------------------------------------------------------------------------------------


def _in_child(task: Task, timeout: float) -> dict[str, Any]:
    context = multiprocessing.get_context("forkserver")
    _start_server(context)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, task, torch.get_num_threads()), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        return {"reason": f"took more than {timeout:.0f} s"}
    except EOFError:
        process.join()
        return {"reason": f"the process ended with code {process.exitcode} (-9: killed, perhaps out of memory)"}
    finally:
        process.kill()
        process.join()


def _start_server(context) -> None:
    """Starts the process that the children are forked from. It finds modules only through `PYTHONPATH`."""
    from multiprocessing import forkserver

    context.set_forkserver_preload(PRELOAD)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _child(sender: Connection, task: Task, threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    if Path("/proc/self/oom_score_adj").exists():  # if memory runs out, kill this process, not the benchmark
        Path("/proc/self/oom_score_adj").write_text("1000")
    sender.send(_failure_as_reason(_on_cpu, task))


def _on_cpu(task: Task) -> dict[str, Any]:
    return_freed_memory_at_once()
    # Warms up thread pools and library buffers, on another model: some adapt to the length of their first row.
    small = task.make_model(WARM_UP_LENGTH)
    for kind in PASSES:
        prepare(small, kind)
        run(small, single_row(WARM_UP_LENGTH), kind)
    del small
    benchmark_model, batch = _set_up(task)
    measured = {}
    for kind in task.kinds:
        benchmark_model.model.train(kind != FORWARD)
        before = reset_peak()
        start = time.perf_counter()
        run(benchmark_model, batch, kind)
        measured[kind] = {"seconds": time.perf_counter() - start, "megabytes": peak_since(before) / MEGABYTE}
    return measured


def _set_up(task: Task):
    benchmark_model = task.make_model(task.length)
    if task.checkpointing:
        enable_checkpointing(benchmark_model.model)
    for parameter in benchmark_model.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return benchmark_model, single_row(task.length).to(task.device)


# CUDA ----------------------------------------------------------------------------------------------------------------


def _on_cuda(task: Task) -> dict[str, Any]:
    benchmark_model, batch = _set_up(task)
    measured = {}
    for kind in task.kinds:
        benchmark_model.model.train(kind != FORWARD)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        run(benchmark_model, batch, kind)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        measured[kind] = {"seconds": time.perf_counter() - start, "megabytes": peak / MEGABYTE}
    return measured


# Growth --------------------------------------------------------------------------------------------------------------


def fit_growth(lengths: Sequence[int], values: Sequence[float | None]) -> dict[str, float] | None:
    """
    How megabytes (or seconds) grow with the length.

    Returns:
        `per_1000_tokens`, `intercept` and `r_squared` of a straight line, and `exponent`: the slope of a straight line
        through the logarithms of the longer half of the lengths (1 is linear, 2 quadratic). `None` for fewer than two
        values above 0.
    """
    points = [
        (length, value) for length, value in zip(lengths, values, strict=True) if value is not None and value > 0
    ]
    if len(points) < 2:
        return None
    x, y = zip(*points)
    slope, intercept = statistics.linear_regression(x, y)
    spread = statistics.pvariance(y)
    residuals = statistics.fmean((value - slope * length - intercept) ** 2 for length, value in points)
    longer = points[-max(2, math.ceil(len(points) / 2)) :]
    logarithms = zip(*((math.log(length), math.log(value)) for length, value in longer))
    return {
        "per_1000_tokens": slope * 1000,
        "intercept": intercept,
        "r_squared": 1 - residuals / spread if spread > 0 else 1.0,
        "exponent": statistics.linear_regression(*logarithms).slope,
    }
