# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""How much of a pass the device is busy, launch by launch, and what compiling the model changes."""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarking.gpu.device import kernels_enabled, milliseconds
from benchmarking.models import FLOOR, FULL_ATTENTION, SINKHORN_SOFT, make_model
from benchmarking.passes import FORWARD, PASSES, prepare, run, single_row


UTILIZATION_CASES = {  # model of `benchmark.py`, and whether the kernels are used
    FLOOR: (FLOOR, True),
    "soft": (SINKHORN_SOFT, True),
    "soft, without kernels": (SINKHORN_SOFT, False),
    "hard": ("sinkhorn hard", True),
    "hard, without kernels": ("sinkhorn hard", False),
    "causal soft": ("causal sinkhorn soft", True),
    "causal soft, without kernels": ("causal sinkhorn soft", False),
    "causal full attention": ("causal full attention", True),
    "causal token": ("causal token", True),
    "causal token, balanced": ("causal token, balanced", True),
    "causal window of 7 blocks": ("causal window of 7 blocks", True),
    "local": ("local", True),
    "local, without kernels": ("local", False),
    FULL_ATTENTION: (FULL_ATTENTION, True),
}


def utilization(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Of a forward pass, and of a forward and backward pass, in bfloat16: milliseconds, milliseconds in which the GPU was
    busy, and the number of kernel launches.
    """
    return {str(length): _utilization_at(length, arguments.seconds) for length in arguments.lengths}


def _utilization_at(length: int, seconds: float) -> dict[str, Any]:
    batch, found = single_row(length).to("cuda"), {}
    for label, (name, enabled) in UTILIZATION_CASES.items():
        benchmark_model = make_model(name, length, "cuda", torch.bfloat16)
        with kernels_enabled(enabled):
            found[label] = {kind: _utilization_of(benchmark_model, batch, kind, seconds) for kind in PASSES}
    for kind in PASSES:
        for cells in found.values():
            cells[kind]["ratio_to_floor"] = cells[kind]["milliseconds"] / found[FLOOR][kind]["milliseconds"]
            cells[kind]["busy_ratio_to_floor"] = cells[kind]["busy"] / found[FLOOR][kind]["busy"]
    return found


def _utilization_of(benchmark_model, batch, kind: str, seconds: float) -> dict[str, float]:
    prepare(benchmark_model, kind)

    def one_pass() -> None:
        benchmark_model.model.zero_grad(set_to_none=True)
        run(benchmark_model, batch, kind)

    total = milliseconds(one_pass, seconds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one_pass()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e3
    slowest = sorted(profile.key_averages(), key=lambda row: row.self_device_time_total, reverse=True)[:8]
    return {
        "milliseconds": total,
        "busy": busy,
        "idle_share": max(0.0, 1 - busy / total),
        "launches": len(events),
        "slowest": {row.key[:60]: [row.count, row.self_device_time_total / 1e3] for row in slowest},
    }


def compiled(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Compares compiled with eager forward and backward passes of the soft encoder, the floor and full attention, at the
    two shortest lengths. `mode="reduce-overhead"` replays all launches at once.
    """
    # Before 2.13, torch reports an export whenever it compiles.
    torch.compiler.is_exporting = lambda: False
    return {
        str(length): {
            name: _compiled_at(name, length, arguments.seconds) for name in (FLOOR, SINKHORN_SOFT, FULL_ATTENTION)
        }
        for length in sorted(arguments.lengths)[:2]
    }


def _compiled_at(name: str, length: int, seconds: float) -> dict[str, float]:
    torch._dynamo.reset()
    batch = single_row(length).to("cuda")
    benchmark_model = make_model(name, length, "cuda", torch.bfloat16)
    prepare(benchmark_model, FORWARD)  # no noise, so that both compute the same
    compiled_model = torch.compile(benchmark_model.model, fullgraph=True, mode="reduce-overhead")

    def pass_of(model) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        benchmark_model.model.zero_grad(set_to_none=True)
        output = model(batch.input_ids).last_hidden_state
        output.float().square().mean().backward()
        return output.detach().clone()

    expected, actual = pass_of(benchmark_model.model), pass_of(compiled_model)
    return {
        "error": ((actual - expected).float().norm() / expected.float().norm()).item(),
        "eager_milliseconds": milliseconds(lambda: pass_of(benchmark_model.model), seconds),
        "compiled_milliseconds": milliseconds(lambda: pass_of(compiled_model), seconds),
    }
