# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Reads the JSON files of runs, and takes mean and spread over seeds."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cell:
    """One score of several runs that differ by seed alone."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """Of the sample; `None` for one run, which has no spread."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.3f}"
        return f"{self.mean:.3f}{spread}"


def load_records(folder: Path) -> list[dict[str, Any]]:
    """All runs in `folder`, `experiment/condition/model.seedN.json`, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/*.json"))]


def select(records: Iterable[dict], **fields: Any) -> list[dict]:
    return [record for record in records if all(record[name] == value for name, value in fields.items())]


def value_at(record: dict, path: str) -> float | None:
    """`test.accuracy` of its scores; `None` where it has none of that name."""
    part, _, metric = path.partition(".")
    return record["scores"].get(part, {}).get(metric)


def cell(records: Iterable[dict], path: str) -> Cell | None:
    values = tuple(value for value in (value_at(record, path) for record in records) if value is not None)
    return Cell(values) if values else None


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """
    For documents to quote: `experiment -> condition -> model -> part -> score -> {mean, std, seeds}` of full runs.
    `std` needs two seeds.
    """
    nested: dict[str, Any] = {}
    groups: dict[tuple, list[dict]] = {}
    for record in select(records, budget="full"):
        groups.setdefault((record["experiment"], record["condition"], record["model"]), []).append(record)
    for (experiment, condition, model), runs in sorted(groups.items()):
        parts = nested.setdefault(experiment, {}).setdefault(condition, {}).setdefault(model, {})
        for part, scores in runs[0]["scores"].items():
            for name, value in scores.items():
                if isinstance(value, list):  # by position: in the files of the runs alone
                    continue
                found = cell(runs, f"{part}.{name}")
                spread = {"mean": found.mean} | ({} if found.std is None else {"std": found.std})
                parts.setdefault(part, {})[name] = spread | {"seeds": sorted(run["seed"] for run in runs)}
    return nested


def mean_list(records: list[dict], path: str) -> np.ndarray | None:
    """Mean over runs of a list of numbers, such as the loss by position; a place without a number is NaN."""
    lists = [value_at(record, path) for record in records]
    lists = [np.array(values, dtype=float) for values in lists if values is not None]
    return np.mean(lists, axis=0) if lists else None


def in_order(found: Iterable[str], order: Iterable[str]) -> list[str]:
    """What is in `found`, in the order of a config file, and then what that file no longer has."""
    found, order = list(dict.fromkeys(found)), list(order)
    return [name for name in order if name in found] + [name for name in found if name not in order]
