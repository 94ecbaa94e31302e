# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Dropout of attention weights that are made a few at a time and not kept: what is dropped is not kept either."""

import torch
from torch import Tensor


BITS = 16  # of randomness for each weight; four weights share a random number


def draw_seed() -> int:
    """Of the default generator, which activation checkpointing sets back before it computes a pass again."""
    return int(torch.randint(2**62, ()))


class DroppedWeights:
    """
    Which weights are dropped, tensor by tensor. From the same seed the same ones are drawn again, so that backward
    knows them. On a CPU this takes a fraction of the time of the library's dropout.

    Args:
        probability: at least 0 and less than 1, in steps of `2**-16`.
    """

    def __init__(self, probability: float, seed: int, device: torch.device):
        self.threshold = round(probability * 2**BITS)
        self.scale = 1 / (1 - self.threshold / 2**BITS)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.numbers = torch.empty(0, dtype=torch.int64, device=device)
        self.buffer = torch.empty(0, device=device)

    def factors(self, weights: Tensor) -> Tensor:
        """0, or what keeps the mean, for each weight; until the next call."""
        count = weights.numel()
        if self.buffer.numel() < count or self.buffer.dtype != weights.dtype:
            self.buffer = weights.new_empty(count)
            self.numbers = self.numbers.new_empty(-(-count * BITS // 64))
        numbers = self.numbers[: -(-count * BITS // 64)].random_(-(2**63), None, generator=self.generator)
        bits = numbers.view(torch.int16)[:count].view(weights.shape)
        factors = self.buffer[:count].view(weights.shape)
        return torch.ge(bits, self.threshold - 2 ** (BITS - 1), out=factors).mul_(self.scale)
