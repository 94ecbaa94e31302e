# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The table and the plot of an evaluation."""

from pathlib import Path
from typing import Any

from evaluation.results import summary


def table(models: dict[str, dict[str, Any]]) -> str:
    """One row for each measure, one column for each model."""
    found = summary(models)
    rows: dict[str, dict[str, str]] = {}
    for label, values in found.items():
        for end, value in values.get("perplexity", {}).items():
            name = "perplexity" if end == "all" else f"perplexity up to {int(end):,}"
            rows.setdefault(name, {})[label] = f"{value:.2f}"
        if "worst_text" in values:
            rows.setdefault("worst text, times the first", {})[label] = f"{values['worst_text']:.3f}"
        for name, value in values.items():
            task, _, length = name.partition("/")
            if task == "cost":
                where = f"{int(length):,} tokens"
                rows.setdefault(f"keys read, {where}", {})[label] = f"{value['keys_read']:,.0f}"
                rows.setdefault(f"prefill, s, {where}", {})[label] = f"{value['prefill_seconds']:.2f}"
                rows.setdefault(f"prefill, MB, {where}", {})[label] = f"{value['prefill_megabytes']:,.0f}"
                rows.setdefault(f"a token, ms, {where}", {})[label] = f"{value['token_milliseconds']:.1f}"
            elif length:
                cell = f"{value['given']:.2f} / {value['written']:.2f}"
                rows.setdefault(f"{task}, {int(length):,} tokens: given / written", {})[label] = cell
    labels = list(found)
    lines = ["| | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cells.get(label, "-") for label in labels) + " |" for name, cells in rows.items()
    ]
    return "\n".join(lines)


def draw(models: dict[str, dict[str, Any]], path: Path) -> None:
    """A heat map for each task and model: length across, depth down, the share of the answer's tokens that are right."""
    from common.pyplot import plt

    found = summary(models)
    grids: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for label, values in found.items():
        for name, value in values.items():
            task, _, length = name.partition("/")
            if length and task != "cost":
                cells = {depth: means["given"] for depth, means in value["depths"].items()}
                grids.setdefault(task, {}).setdefault(label, {})[int(length)] = cells
    if not grids:
        return
    figure, axes = plt.subplots(
        len(grids),
        len(found),
        figsize=(1 + 2.4 * len(found), 0.6 + 1.9 * len(grids)),
        squeeze=False,
        layout="constrained",
    )
    image = None
    for row, (task, by_label) in zip(axes, grids.items()):
        for axis, label in zip(row, found):
            grid = by_label.get(label)
            axis.set_title(f"{task}: {label}", fontsize=8)
            if grid is None:
                axis.axis("off")
                continue
            lengths, depths = sorted(grid), sorted(next(iter(grid.values())), key=float)
            cells = [[grid[length].get(depth, float("nan")) for length in lengths] for depth in depths]
            image = axis.imshow(cells, vmin=0, vmax=1, aspect="auto", cmap="RdYlGn")
            axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=7)
            axis.set_yticks(range(len(depths)), depths, fontsize=7)
    figure.colorbar(image, ax=axes, label="tokens of the answer that are right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
