# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The numbers in sentences. `docs/numbers.yaml` lists them: a file of results, paths in it, and the words around the numbers in
one document or in several. In the words, braces mark the numbers, which come in the order of the paths:

    - file: results/benchmarks/cpu.json
      paths: [crossover.BERT.measured, long.plain.megabytes]
      quotes:
        docs/benchmarks.md: BERT from {512} tokens on, {6,491} MB

Nothing is written: `wrong_numbers` says what is not so.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from maintenance.tables import look_up, read_json


MARKED = re.compile(r"\{([^{}]*)\}")


def rounds_to(value: float, printed: str) -> bool:
    """Whether `printed`, such as `.874`, `87.4 %` or `12,345`, is `value`, rounded to the decimals that it has."""
    digits = printed.rstrip("% ").replace(",", "")
    decimals = len(digits.partition(".")[2])
    expected = value * 100 if printed.endswith("%") else value
    # 1 is not a rounding of 0.82: without decimals, only whole numbers and large ones count.
    precise = decimals > 0 or printed.endswith("%") or value == int(value) or abs(value) >= 10
    return precise and abs(float(digits) - expected) <= 0.5 * 10**-decimals * (1 + 1e-9)


def one_line(text: str) -> str:
    return " ".join(text.split())


def load_entries(root: Path) -> list[dict[str, Any]]:
    return yaml.safe_load((root / "docs" / "numbers.yaml").read_text(encoding="utf-8"))


def wrong_numbers(root: Path, entries: list[dict[str, Any]]) -> list[str]:
    """A line for each quote that its document has not exactly once, and for each number that the results do not give."""
    wrong = []
    for entry in entries:
        values = [look_up(read_json(root / entry["file"]), path) for path in entry["paths"]]
        for document, quote in entry["quotes"].items():
            printed = MARKED.findall(quote)
            words = one_line(MARKED.sub(r"\1", quote))
            times = one_line((root / document).read_text(encoding="utf-8")).count(words)
            if times != 1:
                wrong.append(f"{document}: found {times} times: {words}")
            if len(printed) != len(values):
                wrong.append(f"{document}: {len(printed)} numbers for {len(values)} paths: {words}")
            for number, value, path in zip(printed, values, entry["paths"]):
                if not rounds_to(value, number):
                    wrong.append(f"{document}: {number} is {value} in {entry['file']}, {path}: {words}")
    return wrong
