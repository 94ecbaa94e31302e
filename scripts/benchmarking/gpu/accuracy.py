# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""How far half precision and the kernels are from float64 on the CPU."""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarking.gpu.device import kernels_enabled
from benchmarking.models import SINKHORN_VARIANTS, SIZES, SMALL, sinkhorn_config
from benchmarking.passes import ragged_batch
from modeling_sinkhorn import SinkhornModel


SINGLE_LIMIT = 1e-4  # of float32, relative to float64, in the norm

HALF_LIMIT = 1.5  # of bfloat16 by the kernels, as a multiple of torch's own error


def parity(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Relative errors `|actual - expected| / |expected|` of hidden states and of the gradients of all parameters, against
    float64 on the CPU, in a padded batch, for each variant, with the kernels and without.
    """
    batch, found = ragged_batch(3, 1000), {}
    for name in SINKHORN_VARIANTS:
        expected = _outputs(name, batch, torch.float64, "cpu")
        found[name] = {
            f"{dtype}, {'kernels' if enabled else 'torch'}": _errors(name, batch, dtype, enabled, expected)
            for dtype in ("float32", "bfloat16")
            for enabled in (True, False)
        }
    return {"errors": found, "wrong": _wrong(found)}


def _outputs(name: str, batch, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    config = sinkhorn_config(name, max_position_embeddings=1024, initializer_range=0.05)
    model = SinkhornModel(config).to(device, dtype).eval()
    placed = batch.to(device)
    hidden_states = model(**placed.inputs()).last_hidden_state
    real = placed.attention_mask.unsqueeze(-1)
    weights = torch.linspace(
        -1, 1, SIZES[SMALL].hidden_size, dtype=dtype, device=device
    )  # the norm's gradient alone would be 0
    weighted = (hidden_states * real * weights).to(torch.promote_types(dtype, torch.float32))
    weighted.square().sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return (hidden_states * real).detach().double().cpu(), torch.cat(gradients).double().cpu()


def _errors(name: str, batch, dtype: str, enabled: bool, expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    with kernels_enabled(enabled):
        actual = _outputs(name, batch, getattr(torch, dtype), "cuda")
    pairs = zip(("hidden_states", "gradients"), actual, expected)
    return {kind: ((a - e).norm() / e.norm()).item() for kind, a, e in pairs}


def _wrong(found: dict[str, Any]) -> list[str]:
    """Everything above its limit; NaN counts as above."""
    wrong = []
    for name, errors in found.items():
        for kind in ("hidden_states", "gradients"):
            if not errors["float32, kernels"][kind] <= SINGLE_LIMIT:
                wrong.append(f"{name}: {kind} in float32")
            if not errors["bfloat16, kernels"][kind] <= HALF_LIMIT * errors["bfloat16, torch"][kind]:
                wrong.append(f"{name}: {kind} in bfloat16")
    return wrong
