# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Figures of an experiment: learning curves, scores by condition, loss by position, and factors."""

from pathlib import Path
from typing import Any

import numpy as np

from common.pyplot import plt
from experiments.results import cell, in_order, mean_list, select
from experiments.tables import heading, models_of


# Colours of Okabe and Ito, and of Tol, as in `benchmarking/plots.py`; a marker for each.
STYLES = {
    "full": ("#D55E00", "D"),
    "local": ("#009E73", "^"),
    "local2": ("#117733", "v"),
    "local3": ("#999933", "<"),
    "local4": ("#661100", "1"),
    "soft": ("#0072B2", "o"),
    "far": ("#000000", "d"),
    "quiet": ("#6699CC", "8"),
    "hard": ("#56B4E9", "s"),
    "soft0": ("#44AA99", "h"),
    "hard0": ("#AA4499", "H"),
    "hard2": ("#88CCEE", "p"),
    "sortcut": ("#332288", "P"),
    "mixture": ("#CC79A7", "X"),
    "longformer": ("#882255", ">"),
    "bigbird": ("#999999", "*"),
    "synthesizer_dense": ("#661100", "2"),
    "synthesizer_random": ("#999933", "3"),
    "token_bilinear": ("#0072B2", "o"),
    "token_bilinear_balanced": ("#0072B2", "."),
    "token_keys": ("#000000", "d"),
    "token_keys_balanced": ("#000000", "."),
    "token_keys_four": ("#44AA99", "h"),
    "token_index": ("#CC79A7", "X"),
    "token_index_balanced": ("#CC79A7", "."),
}

LEGEND_WIDTH = 1.2  # inches


def draw_all(records: list[dict], config: dict[str, Any], stem: Path) -> list[Path]:
    """The figures that the config file asks for, of one experiment at one budget, as `STEM-KIND.png`."""
    kinds = {"curve": curves, "by_condition": by_condition, "by_position": by_position, "factors": factors}
    drawn = []
    for kind in config.get("figures", ()):
        figure = kinds[kind](records, config)
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{kind}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            if figure.get_layout_engine() is None:
                figure.tight_layout()
            figure.savefig(path, dpi=100, metadata={"Software": None})  # the same file from the same runs
            plt.close(figure)
            drawn.append(path)
    return drawn


def _names(records: list[dict], config: dict[str, Any]) -> tuple[list[str], list[str]]:
    conditions = in_order((record["condition"] for record in records), config["conditions"])
    return conditions, in_order((record["model"] for record in records), models_of(config))


def _panels(number: int, at_most: int = 4) -> tuple[Any, list[Any]]:
    columns = min(number, at_most)
    rows = -(-number // columns)
    size = (max(4.6, 3.4 * columns) + LEGEND_WIDTH, 3.4 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[number:]:
        panel.set_visible(False)
    return figure, list(panels.flat[:number])


def _line(model: str) -> str:
    """Balanced routing by token has the colour of the same without balancing."""
    return "--" if model.endswith("_balanced") else "-"


def _add_legend(figure: Any, panels: list[Any], models: list[str]) -> None:
    """Next to the panels, where it covers nothing; of the models in any of them."""
    handles = {}
    for panel in panels:
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1]))
    named = [model for model in models if model in handles]
    figure.legend([handles[model] for model in named], named, fontsize=7, loc="outside right upper")


def curves(records: list[dict], config: dict[str, Any]) -> Any:
    """Training loss by step, a panel for each condition, a line for each model (the mean over seeds)."""
    conditions, models = _names(records, config)
    figure, panels = _panels(len(conditions))
    for panel, condition in zip(panels, conditions):
        for model in models:
            runs = select(records, condition=condition, model=model)
            lines = [np.array(run["curve"]["train"]) for run in runs if run["curve"]["train"]]
            if lines:
                steps = lines[0][:, 0]  # an interrupted run has a point more than the others
                losses = np.mean([np.interp(steps, *line.T) for line in lines], axis=0)
                colour, _ = STYLES.get(model, (None, None))
                panel.plot(steps, losses, _line(model), color=colour, label=model, linewidth=1)
        panel.set(title=condition.replace("_", " "), xlabel="steps", ylabel="training loss")
        panel.grid(True, linewidth=0.4)
    _add_legend(figure, panels, models)
    return figure


def by_condition(records: list[dict], config: dict[str, Any]) -> Any:
    """
    The first score of the report, by condition, with the spread over seeds. Conditions are no scale, so no line joins
    them: the models of each stand next to each other.
    """
    conditions, models = _names(records, config)
    path = next(iter(config["report"]))
    figure, (panel,) = _panels(1)
    figure.set_figwidth(max(4.6, 0.75 * len(conditions)) + LEGEND_WIDTH)
    for number, model in enumerate(models):
        cells = [cell(select(records, condition=condition, model=model), path) for condition in conditions]
        places = [place for place, found in enumerate(cells) if found is not None]
        colour, marker = STYLES.get(model, (None, "."))
        panel.errorbar(
            [place + 0.8 * ((number + 0.5) / len(models) - 0.5) for place in places],
            [cells[place].mean for place in places],
            [cells[place].std or 0 for place in places],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            linestyle="none",
            label=model,
        )
    for edge in range(1, len(conditions)):
        panel.axvline(edge - 0.5, color="#cccccc", linewidth=0.6)
    panel.set_xticks(range(len(conditions)), [name.replace("_", " ") for name in conditions], rotation=30, ha="right")
    panel.set(ylabel=heading("", path, False), xlim=(-0.5, len(conditions) - 0.5))
    panel.grid(True, axis="y", linewidth=0.4)
    _add_legend(figure, [panel], models)
    return figure


def by_position(records: list[dict], config: dict[str, Any]) -> Any:
    """Bits per byte by position in the block, the row and the document."""
    conditions, models = _names(records, config)
    kinds = {
        "by_position_in_block": "byte of the block",
        "by_position_in_row": "sixteenth of the row",
        "by_position_in_document": "sixteenth of the document",
    }
    cases = [
        (condition, kind)
        for condition in conditions
        for kind in kinds
        if mean_list(select(records, condition=condition), f"test.{kind}") is not None
    ]
    if not cases:
        return None
    figure, panels = _panels(len(cases), len(kinds))
    for panel, (condition, kind) in zip(panels, cases):
        for model in models:
            values = mean_list(select(records, condition=condition, model=model), f"test.{kind}")
            if values is not None:
                panel.plot(values, _line(model), color=STYLES.get(model, (None,))[0], label=model, linewidth=1)
        panel.set(title=condition, xlabel=kinds[kind], ylabel="bits per byte")
        panel.grid(True, linewidth=0.4)
    _add_legend(figure, panels, models)
    return figure


def factors(records: list[dict], config: dict[str, Any]) -> Any:
    """How far each variant is from the default, a panel for each condition; bars are the spread over seeds."""
    conditions, variants = _names(records, config)
    figure, panels = plt.subplots(
        1, len(conditions), figsize=(4.6 * len(conditions), 1 + 0.24 * len(variants)), squeeze=False
    )
    for panel, condition in zip(panels.flat, conditions):
        cells, path = {}, None
        for path in config["report"]:
            found = {name: cell(select(records, condition=condition, model=name), path) for name in variants}
            if any(found.values()):
                cells = {name: value for name, value in found.items() if value is not None}
                break
        places = range(len(cells))
        panel.errorbar(
            [found.mean for found in cells.values()],
            places,
            xerr=[found.std or 0 for found in cells.values()],
            fmt="o",
            color="#0072B2",
            capsize=2,
        )
        if "default" in cells:
            panel.axvline(cells["default"].mean, color="black", linewidth=0.6)
        panel.set_yticks(places, [name.replace("_", " ") for name in cells], fontsize=7)
        panel.invert_yaxis()
        panel.set(title=condition.replace("_", " "), xlabel=heading("", path, False))
        panel.grid(True, axis="x", linewidth=0.4)
    return figure
