# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Markdown tables from `results/`, by the specifications in `docs/tables/*.yaml`:

    documents: [docs/benchmarks.md]           # where the tables stand; several for a page in several languages
    tables:
      time:                                   # stands between <!-- BEGIN time --> and <!-- END time -->
        file: results/benchmarks/cpu.json
        corner: ""                            # the heading of the first column
        columns: {"512": "512 tokens"}        # key: heading
        rows: {local: block-local}            # key: label; in a list: a key that is also the label
        cell: "{rows.<row>.<column>.forward_backward.ratio_to_floor|0.00}"

`{path|format}` is a number of `file`, `{file|path|format}` one of another file. In place of `columns` and `cell`, `head` gives
all headings and `cells` a pattern for each column. A row may also be a list, its label and its cells, or a mapping with
`key`, `label` and `best`: `higher` or `lower`, which makes the best cell bold.

A format is a sample: `0.00` two decimals, `.000` three without the zero before the point, `0,0` a whole number with commas,
`0.0 %` a percentage, `0.0 MB` megabytes from bytes, `.000 ± .000` a mean and, if there are several seeds, a standard deviation.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError


ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
MISSING = "-"  # what a run left out
UNITS = {"": 1, "%": 100, "MB": 1e-6}


@cache
def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def look_up(data: Any, path: str) -> Any:
    """What stands at `a.b.0` in nested dicts and lists. A key may have dots of its own."""
    if not path:
        return data
    if isinstance(data, list):
        key, _, rest = path.partition(".")
        return look_up(data[int(key)], rest)
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        key = ".".join(parts[:end])
        if isinstance(data, dict) and key in data:
            return look_up(data[key], ".".join(parts[end:]))
    raise KeyError(path)


def formatted(value: Any, sample: str) -> str:
    """`value` in the form of `sample`; see above."""
    mean, plus_minus, spread = sample.partition(" ± ")
    if plus_minus:
        text = formatted(value["mean"], mean)
        return f"{text} ± {formatted(value['std'], spread)}" if "std" in value else text
    if isinstance(value, dict):
        value = value["mean"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{value!r} is not a number.")
    shape, _, unit = sample.partition(" ")
    decimals = len(shape.partition(".")[2])
    value = value * UNITS[unit]
    text = f"{value:,.{decimals}f}" if "," in shape else f"{value:.{decimals}f}"
    if shape.startswith("."):
        text = re.sub(r"^(-?)0\.", r"\1.", text)
    return f"{text} {unit}".rstrip()


class Pattern:
    """The text of a cell, with placeholders."""

    def __init__(self, text: str, file: str | None, root: Path = ROOT):
        self.text, self.file, self.root = text, file, root

    def values(self) -> list[Any]:
        """What the placeholders name, in order."""
        return [look_up(read_json(self.root / file), path) for file, path, _ in self._sources()]

    def filled(self) -> str:
        texts = [formatted(value, sample) for value, (_, _, sample) in zip(self.values(), self._sources())]
        return PLACEHOLDER.sub(lambda _: texts.pop(0), self.text)

    def _sources(self) -> list[tuple[str, str, str]]:
        found = []
        for inside in PLACEHOLDER.findall(self.text):
            *file, path, sample = inside.split("|")
            found.append((file[0] if file else self.file, path, sample))
        return found


def table(spec: dict[str, Any], words: dict[str, str] | None = None, root: Path = ROOT) -> str:
    """One table. `words`: the translation of labels and other texts, before numbers are filled in."""
    words = words or {}

    def pattern(text: str) -> Pattern:
        return Pattern(words.get(text, text), spec.get("file"), root)

    columns = spec.get("columns")
    head = [spec.get("corner", ""), *columns.values()] if columns else spec["head"]
    lines = [markdown_row([words.get(text, text) for text in head]), "|" + "---|" * len(head)]
    for row in rows_of(spec):
        cells = [pattern(text) for text in cells_of(spec, row)]
        texts = [pattern(row["label"]).filled(), *with_best(cells, row.get("best"), left_out="key" in row)]
        if len(texts) != len(head):
            raise UserError(f"the row {row['label']!r} has {len(texts)} cells under {len(head)} headings.")
        lines.append(markdown_row(texts))
    return "\n".join(lines)


def markdown_row(texts: list[str]) -> str:
    return "|" + "".join(f" {text} |" if text else " |" for text in texts)


def rows_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Its rows in one form: `label` with `key` or `cells`, and perhaps `best`."""
    rows = spec["rows"]
    if isinstance(rows, dict):
        return [{"key": key, "label": label} for key, label in rows.items()]
    return [_as_mapping(row) for row in rows]


def _as_mapping(row: str | list[str] | dict[str, Any]) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    if isinstance(row, list):
        return {"label": row[0], "cells": row[1:]}
    return {"key": row, "label": row}


def cells_of(spec: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """The patterns of the cells after the label."""
    if "cells" in row:
        return row["cells"]
    if "cells" in spec:
        return [text.replace("<row>", row["key"]) for text in spec["cells"]]
    # The key of a row may itself name the column.
    return [spec["cell"].replace("<row>", row["key"]).replace("<column>", column) for column in spec["columns"]]


def with_best(cells: list[Pattern], best: str | None, left_out: bool) -> list[str]:
    """The filled cells; `best`, `higher` or `lower`, makes the best one bold. `left_out`: a number may be missing."""
    values = [values_or_none(cell) for cell in cells]
    if None in values and (not left_out or not any(values)):
        raise UserError(f"not in the results: {cells[values.index(None)].text}")
    texts = [MISSING if value is None else cell.filled() for cell, value in zip(cells, values)]
    for place in best_places([value[0] if value else None for value in values], best) if best else []:
        number, plus_minus, spread = texts[place].partition(" ± ")
        texts[place] = f"**{number}**{plus_minus}{spread}"
    return texts


def values_or_none(cell: Pattern) -> list[Any] | None:
    try:
        values = cell.values()
    except KeyError:
        return None
    return None if None in values else values


def best_places(values: list[dict[str, Any] | None], best: str) -> list[int]:
    """Where the best mean is, among those over the most seeds: the mean of one seed and that of three are not compared."""
    most = max(len(value["seeds"]) for value in values if value)
    means = {place: value["mean"] for place, value in enumerate(values) if value and len(value["seeds"]) == most}
    target = (max if best == "higher" else min)(means.values())
    return [place for place, mean in means.items() if mean == target]


def load_specs(folder: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))]
