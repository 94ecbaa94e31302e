# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What several test files need: small configurations, masks of every kind, and one way to compare tensors."""

import itertools
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from configuration_sinkhorn import SinkhornConfig


ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
# Modules that use the model, and that no model needs.
BESIDE_THE_MODEL = {"conversion_sinkhorn", "index_calibration_sinkhorn", "interface_sinkhorn"}
SORTING_LAYERS = ("sinkhorn_attention", "sortcut_attention", "mixture_attention")
ALL_LAYERS = (*SORTING_LAYERS, "local_attention", "full_attention")
# What a tiny configuration needs so that every token, or every block, chooses by any scorer.
TOKEN = {"sort_granularity": "token", "sort_assignment": "hard", "key_piece_size": 2, "index_head_dim": 3}
BLOCK = TOKEN | {"sort_granularity": "block"}


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *flags) -> None:
    """A script in this process, as `python scripts/NAME *flags` would run it."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def layer_cases() -> list[tuple[str, str, bool]]:
    """Every (layer type, assignment, is_decoder) that a configuration accepts."""
    cases = itertools.product(ALL_LAYERS, ("soft", "hard"), (False, True))
    return [case for case in cases if not (case[0] == "sortcut_attention" and case[2])]


def in_pairs(*values: list) -> list:
    """
    All combinations of `values`, for `parametrize`. Every run has each pair of two values, if lists but the first have
    two; the other combinations are slow.
    """
    sizes = [range(len(options)) for options in values]
    return [
        pytest.param(
            *(options[place] for options, place in zip(values, places)),
            marks=() if (places[-1] - sum(places[:-1])) % len(values[-1]) == 0 else pytest.mark.slow,
        )
        for places in itertools.product(*sizes)
    ]


def tiny_config(layer_type: str = "sinkhorn_attention", **overrides) -> SinkhornConfig:
    """Two layers of one type, large enough weights that attention and sorting are far from uniform."""
    settings = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "block_size": 4,
        "initializer_range": 0.4,
        "num_labels": 3,
    }
    settings.update(overrides)
    return SinkhornConfig(layer_types=[layer_type] * settings["num_hidden_layers"], **settings)


def pairwise(**factors: Sequence) -> list[dict]:
    """Few of all combinations, so that any two values of two factors meet in one of them; the same at every call."""
    pairs = itertools.combinations(factors, 2)
    meetings = [(a, x, b, y) for a, b in pairs for x, y in itertools.product(factors[a], factors[b])]
    bit = {meeting: 1 << number for number, meeting in enumerate(meetings)}  # sets as integers: there are many rows
    rows = [dict(zip(factors, values)) for values in itertools.product(*factors.values())]
    covered = [sum(bit[a, row[a], b, row[b]] for a, b in itertools.combinations(factors, 2)) for row in rows]
    missing, chosen = sum(bit.values()), []
    while missing:
        best = max(range(len(rows)), key=lambda number: (covered[number] & missing).bit_count())
        chosen.append(rows[best])
        missing &= ~covered[best]
    return chosen


def padding_masks(num_tokens: int) -> torch.Tensor:
    """`(5, L)`: no padding, left padding, right padding, holes, and more than a block of padding on both sides."""
    mask = torch.ones(5, num_tokens, dtype=torch.long)
    cut = num_tokens // 3
    mask[1, :cut] = 0
    mask[2, num_tokens - cut :] = 0
    mask[3, 1::3] = 0
    mask[4, : num_tokens // 2] = 0
    mask[4, -1] = 0
    return mask


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference, relative to the largest expected entry (at least 1), is at most `tolerance`; NaN never is."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1)
    assert error <= tolerance, f"relative error {error:.3g} is above {tolerance:.3g}"
