# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Plots the results of `benchmark.py`: time per 1,000 tokens and peak memory of a forward and backward pass by length.

    python scripts/maintain.py plots results/benchmarks/cpu.json --output results/benchmarks/cpu.png
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

from benchmarking.passes import FORWARD_BACKWARD
from common.command_line import make_parser
from common.pyplot import plt


# Colours of Okabe and Ito, and of Tol, distinguishable with any kind of colour vision; and a marker for each.
# Ours are solid (dash-dotted where causal), peers dashed.
STYLES = {
    "floor": ("black", "", ":"),
    "sinkhorn soft": ("#0072B2", "o", "-"),
    "sinkhorn hard": ("#56B4E9", "s", "-"),
    "sortcut": ("#332288", "P", "-"),
    "local": ("#009E73", "^", "-"),
    "mixture": ("#CC79A7", "X", "-"),
    "causal sinkhorn soft": ("#0072B2", "o", "-."),
    "causal sinkhorn hard": ("#56B4E9", "s", "-."),
    "causal full attention": ("#D55E00", "D", "-."),
    "full attention": ("#D55E00", "D", "-"),
    "BERT": ("#E69F00", "v", "--"),
    "ModernBERT": ("#999933", "<", "--"),
    "Longformer": ("#CC79A7", ">", "--"),
    "BigBird": ("#999999", "*", "--"),
    "Reformer": ("#882255", "x", "--"),
    "PyPI sinkhorn": ("black", "+", "--"),
    "PyPI sinkhorn, balanced": ("black", "1", "--"),
}
LEFT_OUT_BY_DEFAULT = {"mixture", "PyPI sinkhorn, balanced"}


def points(cells: dict[str, Any], figure: str) -> list[tuple[int, float]]:
    """`(length, value)` of one model, shortest first: `milliseconds` per 1,000 tokens, or peak `megabytes`."""
    found = []
    for length, cell in sorted((int(length), cell) for length, cell in cells.items()):
        measured = cell.get(FORWARD_BACKWARD, {})
        if figure == "milliseconds" and "seconds" in measured:
            found.append((length, measured["seconds"] / length * 1e6))
        elif figure == "megabytes" and measured.get("megabytes"):
            found.append((length, measured["megabytes"]))
    return found


def draw(rows: dict[str, Any], names: list[str], output: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 5.2))
    titles = {"milliseconds": "ms per 1,000 tokens", "megabytes": "peak MB"}
    for panel, (kind, title) in zip(panels, titles.items()):
        lengths: set[int] = set()
        for name in names:
            colour, marker, line = STYLES[name]
            drawn = points(rows[name], kind)
            lengths |= {length for length, _ in drawn}
            panel.plot(
                *zip(*drawn), line, color=colour, marker=marker or None, markersize=5, label=name
            ) if drawn else None
        panel.set(title=f"forward and backward: {title}", xlabel="tokens", xscale="log", yscale="log")
        panel.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)], rotation=45)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,g}"))
        panel.yaxis.set_minor_formatter(LogFormatter())
        panel.grid(True, which="major", linewidth=0.4)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=6, frameon=False, fontsize=9, handlelength=3.5)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py plots")
    parser.add_argument("results", type=Path, help="JSON file of benchmark.py.")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write.")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="Some of those in the file; most by default.")
    options = parser.parse_args(arguments)
    rows = json.loads(options.results.read_text(encoding="utf-8"))["rows"]
    default = [
        name for name in STYLES if name in rows and not name.startswith("causal ") and name not in LEFT_OUT_BY_DEFAULT
    ]
    names = options.models or default
    unknown = [name for name in names if name not in rows]
    if unknown:
        parser.error(f"{options.results.name} has no {unknown}; it has {list(rows)}.")
    draw(rows, names, options.output)
