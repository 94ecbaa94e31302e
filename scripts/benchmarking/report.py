# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Conclusions and tables from the rows of `benchmark.py`: from which length one model is faster than another.

    python scripts/maintain.py report results/benchmarks/cpu.json    # its tables, printed
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarking.memory import fit_growth
from benchmarking.models import FLOOR, FULL_ATTENTION, PEERS, SINKHORN_SOFT, SINKHORN_VARIANTS
from benchmarking.passes import FORWARD_BACKWARD, PASSES
from common.command_line import make_parser
from common.run_record import write_json


def crossover(ours: Mapping[int, float], other: Mapping[int, float]) -> dict[str, float | None]:
    """
    Args:
        ours, other: times by length, in the same unit. Only lengths of both count.

    Returns:
        `measured`: the shortest length at which, and above which, ours is faster; `None` if it is slower at the
        longest. `interpolated`: where the two meet, on a straight line between the logarithms of the ratio at that
        length and at the one before; `None` if there is no such pair. `compared_up_to`: the longest length.
    """
    lengths = sorted(ours.keys() & other.keys())
    found: dict[str, float | None] = {"measured": None, "interpolated": None, "compared_up_to": None}
    if not lengths:
        return found
    found["compared_up_to"] = lengths[-1]
    first = len(lengths)
    while first > 0 and ours[lengths[first - 1]] < other[lengths[first - 1]]:
        first -= 1
    if first == len(lengths):
        return found
    found["measured"] = lengths[first]
    if first > 0:
        before, after = lengths[first - 1], lengths[first]
        slower, faster = (math.log(ours[length] / other[length]) for length in (before, after))
        found["interpolated"] = before * (after / before) ** (slower / (slower - faster))
    return found


def conclusions(rows: dict[str, Any]) -> dict[str, Any]:
    """The growth of time and memory, from which length ours is faster, and what BigBird ran as."""
    growth = {}
    for name, cells in rows.items():
        lengths = list(map(int, cells))
        growth[name] = {
            f"{kind}_{figure}": fit_growth(lengths, [cell.get(kind, {}).get(figure) for cell in cells.values()])
            for kind in PASSES
            for figure in ("megabytes", "seconds")
        }
    others = [name for name in rows if name == FULL_ATTENTION or name in PEERS] if SINKHORN_SOFT in rows else []
    ran_as = {
        name: {length: cell["ran_as"] for length, cell in cells.items() if "ran_as" in cell}
        for name, cells in rows.items()
    }
    return {
        "growth": growth,
        "crossover": {
            name: crossover(by_length(rows[SINKHORN_SOFT], "ratio_to_floor"), by_length(rows[name], "ratio_to_floor"))
            for name in others
        },
        "ran_as": {name: kinds for name, kinds in ran_as.items() if kinds},
    }


def by_length(cells: Mapping[str, Any], figure: str, kind: str = FORWARD_BACKWARD) -> dict[int, float]:
    """The measured values of one model."""
    return {int(length): cell[kind][figure] for length, cell in cells.items() if "skipped" not in cell}


def seconds_by_length(cells: Mapping[str, Any], kind: str = FORWARD_BACKWARD) -> dict[int, float]:
    return by_length(cells, "seconds", kind)


def table(rows: Mapping[str, Mapping[str, Any]], lengths: list[int], kind: str = FORWARD_BACKWARD) -> str:
    """Markdown: the ratio to the floor, and tokens per second in brackets."""
    width = max(map(len, rows))
    title = {"forward": "forward", FORWARD_BACKWARD: "forward and backward"}[kind]
    lines = [
        f"{title}: time as a multiple of the floor's (tokens per second)",
        "",
        f"| {'model':{width}} | " + " | ".join(f"{length:>15,}" for length in lengths) + " |",
        f"|-{'-' * width}-|" + "".join(f"-{'-' * 15}:|" for _ in lengths),
    ]
    for name, cells in rows.items():
        printed = []
        for length in lengths:
            cell = cells.get(str(length), {"skipped": ""})
            if "skipped" in cell:
                printed.append("-")
            else:
                printed.append(f"{cell[kind]['ratio_to_floor']:.2f} ({cell[kind]['tokens_per_second']:,.0f})")
        lines.append(f"| {name:{width}} | " + " | ".join(f"{text:>15}" for text in printed) + " |")
    return "\n".join(lines)


def figure_table(rows: Mapping[str, Mapping[str, Any]], figure: str, decimals: int) -> str:
    """Markdown of one figure of a forward and backward at each length."""
    lengths = sorted({int(length) for cells in rows.values() for length in cells})
    lines = ["| | " + " | ".join(f"{length:,}" for length in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    for name in (name for name in (FLOOR, *SINKHORN_VARIANTS, *PEERS) if name in rows):
        values = [rows[name].get(str(length), {}).get(FORWARD_BACKWARD, {}).get(figure) for length in lengths]
        printed = ["-" if value is None else f"{value:.{decimals}f}" for value in values]
        lines.append(f"| {name} | " + " | ".join(printed) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py report")
    parser.add_argument("results", type=Path, help="JSON file that benchmark.py wrote.")
    parser.add_argument("--update", action="store_true", help="Compute the conclusions in the file again.")
    options = parser.parse_args(arguments)
    record = json.loads(options.results.read_text(encoding="utf-8"))
    rows = record["rows"]
    if options.update:
        write_json(options.results, record | conclusions(rows))
    for figure, decimals in (("ratio_to_floor", 2), ("memory_ratio_to_floor", 2), ("megabytes", 0)):
        print(f"{figure}, forward and backward\n\n{figure_table(rows, figure, decimals)}\n")
