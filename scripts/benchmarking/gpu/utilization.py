# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""How much of a pass the device is busy, launch by launch, and what compiling the model changes."""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarking.gpu.device import kernels, milliseconds
from benchmarking.models import FLOOR, FULL, MAIN, make
from benchmarking.passes import FORWARD, PASSES, prepare, run, single_row


WORKED = {  # model of `benchmark.py`, and whether the kernels are used
    FLOOR: (FLOOR, True),
    "soft": (MAIN, True),
    "soft, without kernels": (MAIN, False),
    "hard": ("sinkhorn hard", True),
    "hard, without kernels": ("sinkhorn hard", False),
    "causal soft": ("causal sinkhorn soft", True),
    "causal soft, without kernels": ("causal sinkhorn soft", False),
    "causal full attention": ("causal full attention", True),
    "local": ("local", True),
    "local, without kernels": ("local", False),
    FULL: (FULL, True),
}


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Of a forward and of a forward and backward in bfloat16: milliseconds, those in which the card worked, and how many
    kernels were launched.
    """
    return {str(length): _work_at(length, arguments.seconds) for length in arguments.lengths}


def _work_at(length: int, seconds: float) -> dict[str, Any]:
    batch, found = single_row(length).to("cuda"), {}
    for label, (name, used) in WORKED.items():
        contestant = make(name, length, "cuda", torch.bfloat16)
        with kernels(used):
            found[label] = {kind: _work_of(contestant, batch, kind, seconds) for kind in PASSES}
    for kind in PASSES:
        for cells in found.values():
            cells[kind]["ratio_to_floor"] = cells[kind]["milliseconds"] / found[FLOOR][kind]["milliseconds"]
            cells[kind]["busy_ratio_to_floor"] = cells[kind]["busy"] / found[FLOOR][kind]["busy"]
    return found


def _work_of(contestant, batch, kind: str, seconds: float) -> dict[str, float]:
    prepare(contestant, kind)

    def once() -> None:
        contestant.model.zero_grad(set_to_none=True)
        run(contestant, batch, kind)

    total = milliseconds(once, seconds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        once()
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
    `torch.compile(fullgraph=True, mode="reduce-overhead")`, which replays all launches at once, of the soft encoder, the
    floor and full attention: forward and backward against eager ones, at the two shortest lengths.
    """
    # Before 2.13, torch says that it exports whenever it compiles.
    torch.compiler.is_exporting = lambda: False
    return {
        str(length): {name: _compiled_at(name, length, arguments.seconds) for name in (FLOOR, MAIN, FULL)}
        for length in sorted(arguments.lengths)[:2]
    }


def _compiled_at(name: str, length: int, seconds: float) -> dict[str, float]:
    torch._dynamo.reset()
    batch = single_row(length).to("cuda")
    contestant = make(name, length, "cuda", torch.bfloat16)
    prepare(contestant, FORWARD)  # no noise, so that both compute the same
    together = torch.compile(contestant.model, fullgraph=True, mode="reduce-overhead")

    def pass_of(model) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        contestant.model.zero_grad(set_to_none=True)
        output = model(batch.input_ids).last_hidden_state
        output.float().square().mean().backward()
        return output.detach().clone()

    expected, actual = pass_of(contestant.model), pass_of(together)
    return {
        "error": ((actual - expected).float().norm() / expected.float().norm()).item(),
        "eager_milliseconds": milliseconds(lambda: pass_of(contestant.model), seconds),
        "compiled_milliseconds": milliseconds(lambda: pass_of(together), seconds),
    }
