# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The passes that `benchmark.py` measures, and batches of random tokens for them."""

import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarking.models import FIRST_TOKEN, VOCAB, BenchmarkModel


FORWARD, FORWARD_BACKWARD = "forward", "forward_backward"
PASSES = (FORWARD, FORWARD_BACKWARD)


class Batch(NamedTuple):
    input_ids: Tensor  # (B, L)
    attention_mask: Tensor | None = None  # (B, L)
    position_ids: Tensor | None = None  # (B, L)

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: str) -> "Batch":
        return Batch(*(None if part is None else part.to(device) for part in self))

    def inputs(self) -> dict[str, Tensor]:
        return {name: part for name, part in self._asdict().items() if part is not None}


def _random_tokens(*shape: int, seed: int) -> Tensor:
    return torch.randint(FIRST_TOKEN, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def single_row(length: int, seed: int = 0) -> Batch:
    return Batch(_random_tokens(1, length, seed=seed))


def ragged_batch(num_rows: int, longest: int, seed: int = 0) -> Batch:
    """Right-padded rows, their lengths spread evenly from an eighth of `longest` to `longest`, in shuffled order."""
    shortest = max(longest // 8, 1)
    steps = torch.linspace(shortest, longest, num_rows).round().long()
    lengths = steps[torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))]
    mask = (torch.arange(longest) < lengths.unsqueeze(-1)).long()
    return Batch(_random_tokens(num_rows, longest, seed=seed) * mask, mask)


def packed_batch(lengths: list[int], seed: int = 0) -> Batch:
    """Documents of those lengths one after another in a single row, with positions that restart in each."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Batch(_random_tokens(1, sum(lengths), seed=seed), position_ids=positions.unsqueeze(0))


def enable_checkpointing(model: nn.Module) -> None:
    """Activation checkpointing, under the name that this version of the library uses."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def prepare(benchmark_model: BenchmarkModel, kind: str) -> None:
    """Evaluation mode for a forward pass, training mode (with noise) for both; clears the gradients."""
    benchmark_model.model.train(kind == FORWARD_BACKWARD)
    benchmark_model.model.zero_grad(set_to_none=True)


def run(benchmark_model: BenchmarkModel, batch: Batch, kind: str) -> None:
    """One pass. A forward pass alone keeps no activations; the loss is the mean square over tokens."""
    if kind == FORWARD:
        with torch.no_grad():
            benchmark_model(**batch.inputs())
        return
    squares = benchmark_model(**batch.inputs()).float().square().mean(-1)
    if batch.attention_mask is not None:
        squares = squares * batch.attention_mask
    (squares.sum() / batch.num_tokens).backward()


def seconds(benchmark_model: BenchmarkModel, batch: Batch, kind: str) -> float:
    """Seconds of one pass; on a GPU, until its work is done."""
    prepare(benchmark_model, kind)
    _wait(batch)
    start = time.perf_counter()
    run(benchmark_model, batch, kind)
    _wait(batch)
    return time.perf_counter() - start


def _wait(batch: Batch) -> None:
    if batch.input_ids.is_cuda:
        torch.cuda.synchronize()
