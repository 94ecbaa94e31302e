# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The benchmark commands run, and give no speed for code that computes something else."""

import json

import pytest
import torch
from helpers import run_script

import attention_sinkhorn
from sorting_sinkhorn import sinkhorn_balance


def test_decoding(tmp_path, monkeypatch, capsys):
    flags = ["--contexts", "64", "256", "--rounds", "1"]
    run_script(monkeypatch, "benchmark_decoding.py", "--results", tmp_path / "decoding.json", *flags)
    record = json.loads((tmp_path / "decoding.json").read_text())
    assert all(error <= 1e-4 for error in record["parity"].values())
    printed = capsys.readouterr().out
    for name, row in record["rows"].items():
        assert f"| {name}" in printed
        assert row["64"]["milliseconds_per_token"] > 0 and row["64"]["ratio_to_first_context"] == 1
        assert row["256"]["cache_megabytes"] > row["64"]["cache_megabytes"]
    # Keys and values alone, in float32: two heads of 64 in four layers.
    assert record["rows"]["full attention"]["256"]["cache_megabytes"] == pytest.approx(
        256 * 2 * 2 * 64 * 4 * 4 / 2**20
    )


def test_no_speed_without_parity(tmp_path, monkeypatch):
    def leaky(logits, allowed, iterations, columns=None):
        matrix = sinkhorn_balance(logits, allowed, iterations)
        return matrix, torch.zeros(*matrix.shape[:2], iterations, matrix.shape[-1])

    monkeypatch.setattr(attention_sinkhorn, "causal_sinkhorn_balance", leaky)
    with pytest.raises(SystemExit, match="decoding differs from the full forward.*no speed is given"):
        run_script(monkeypatch, "benchmark_decoding.py", "--results", tmp_path / "decoding.json")
    assert not (tmp_path / "decoding.json").exists()
