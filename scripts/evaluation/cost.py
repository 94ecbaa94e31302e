# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Seconds and memory of reading a text into a cache, and of each token after it."""

import statistics
import time

import torch
from transformers import DynamicCache, PreTrainedModel

from common.peak_memory import peak_since, reset_peak
from compatibility_sinkhorn import CACHE_NAME


MEGABYTE = 2**20
TOKENS = 16  # that are timed one by one; their median is given


@torch.no_grad()
def measure(model: PreTrainedModel, length: int, rounds: int) -> dict[str, float]:
    """The tokens are random: what is measured does not depend on them. The first round is not counted."""
    on_gpu = model.device.type == "cuda"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, length + TOKENS), generator=generator).to(model.device)
    prefills, steps, peaks = [], [], []
    for _ in range(rounds + 1):
        before = _start(on_gpu)
        cache = DynamicCache(config=model.config)
        prefills.append(_seconds(model, ids[:, :length], cache, on_gpu))
        peaks.append(_peak(before, on_gpu))
        steps.append([_seconds(model, ids[:, at : at + 1], cache, on_gpu) for at in range(length, length + TOKENS)])
        size = cache_bytes(cache)
        del cache
    return {
        "prefill_seconds": statistics.median(prefills[1:]),
        "prefill_megabytes": statistics.median(peaks[1:]) / MEGABYTE,
        "token_milliseconds": 1000 * statistics.median(statistics.median(times) for times in steps[1:]),
        "cache_megabytes": size / MEGABYTE,
    }


def _seconds(model: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache, on_gpu: bool) -> float:
    start = time.perf_counter()
    model(ids, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _start(on_gpu: bool) -> int:
    if not on_gpu:
        return reset_peak()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(before: int, on_gpu: bool) -> int:
    return torch.cuda.max_memory_allocated() - before if on_gpu else peak_since(before)


def cache_bytes(cache: DynamicCache) -> int:
    """Of every tensor that the layers hold."""
    tensors = (value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())
