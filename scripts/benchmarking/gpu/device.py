# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Times on a GPU, with the kernels and without, and what the device can do at most."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import attention_sinkhorn
import balancing_sinkhorn


@contextlib.contextmanager
def kernels_enabled(enabled: bool) -> Iterator[None]:
    """Switches the Triton kernels on, or off in favour of torch operations."""
    before = attention_sinkhorn.is_block_attention_supported, balancing_sinkhorn.is_triton_supported
    if not enabled:
        attention_sinkhorn.is_block_attention_supported = balancing_sinkhorn.is_triton_supported = lambda x: False
    try:
        yield
    finally:
        attention_sinkhorn.is_block_attention_supported, balancing_sinkhorn.is_triton_supported = before


def milliseconds(call: Callable[[], Any], seconds: float) -> float:
    """The median over rounds, each timed by events on the device."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start, times = time.perf_counter(), []
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 100):
        events = [torch.cuda.Event(enable_timing=True) for _ in "se"]
        events[0].record()
        call()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    return statistics.median(times)


def ceilings(arguments: argparse.Namespace) -> dict[str, float]:
    """
    Limits of the GPU: bytes per second of a large copy (read and written), operations of a large bfloat16 matmul.
    """
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), arguments.seconds)
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in "lr")
    multiplied = milliseconds(lambda: left @ right, arguments.seconds)
    return {
        "bytes_per_second": 2 * source.numel() * source.element_size() / copied * 1e3,
        "flops_per_second": 2 * size**3 / multiplied * 1e3,
    }
