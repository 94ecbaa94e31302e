# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables of an experiment: a row for each model, a column for each condition and score."""

from typing import Any

from experiments.results import Cell, cell, in_order, select


TEST_SET_TITLES = {"test": "", "twice": "twice as long, "}  # names of test sets in headings


def table(records: list[dict[str, Any]], config: dict[str, Any]) -> str:
    """Of one experiment at one budget. The best mean of each column is bold, among the models with the most seeds."""
    conditions = in_order((record["condition"] for record in records), config["conditions"])
    models = in_order((record["model"] for record in records), models_of(config))
    columns = []
    for condition in conditions:
        for path, better in config["report"].items():
            cells = {model: cell(select(records, condition=condition, model=model), path) for model in models}
            if any(cells.values()):
                columns.append((heading(condition, path, len(conditions) > 1), cells, _best(cells, better)))
    lines = [
        "| model | parameters | " + " | ".join(title for title, _, _ in columns) + " | seeds | seconds a run |",
        "|---|---|" + "---|" * len(columns) + "---|---|",
    ]
    for model in models:
        runs = select(records, model=model)
        texts = ["" if cells[model] is None else _text(cells[model], best) for _, cells, best in columns]
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        parameters = _range(run["parameters"] for run in runs)
        lines.append(f"| {model} | {parameters} | {' | '.join(texts)} | {_range(_seeds(runs))} | {seconds:.0f} |")
    return "\n".join(lines)


def models_of(config: dict[str, Any]) -> list[str]:
    return [*config.get("models", ()), *config.get("variants", ())]


def heading(condition: str, path: str, several: bool) -> str:
    part, _, metric = path.partition(".")
    title = TEST_SET_TITLES.get(part, f"{part} ") + metric.replace("_", " ")
    return f"{condition.replace('_', ' ')}: {title}" if several else title


def _best(cells: dict[str, Cell | None], better: str) -> float | None:
    found = [cell for cell in cells.values() if cell is not None]
    most = max(len(cell.values) for cell in found)
    # The mean of one seed and that of three are not to be compared.
    means = [cell.mean for cell in found if len(cell.values) == most]
    return None if len(set(means)) < 2 else (max if better == "higher" else min)(means)


def _text(found: Cell, best: float | None) -> str:
    return f"**{found}**" if best is not None and found.mean == best else str(found)


def _seeds(runs: list[dict]) -> list[int]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run["condition"]] = counts.get(run["condition"], 0) + 1
    return list(counts.values())


def _range(values) -> str:
    values = sorted(set(values))
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
