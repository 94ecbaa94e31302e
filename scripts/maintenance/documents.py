# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Writes the tables of README.md and docs/ that stand between `<!-- BEGIN name -->` and `<!-- END name -->`, from `results/` and
`docs/tables/`, and says which numbers in sentences (`docs/numbers.yaml`) differ from the results.

    python scripts/maintain.py documents
"""

import argparse
import re
from pathlib import Path

from common.errors import UserError
from maintenance.numbers import load_entries, wrong_numbers
from maintenance.tables import ROOT, load_specs, table


BLOCK = re.compile(r"<!-- BEGIN (\S+) -->\n(.*?)<!-- END \1 -->", re.DOTALL)


def with_tables(text: str, tables: dict[str, str], name: str) -> str:
    """
    `text`, of the document `name`, with the content of each pair of markers replaced. Every table must have its markers,
    and only once.
    """
    marked = [match[1] for match in BLOCK.finditer(text)]
    if sorted(marked) != sorted(tables):
        raise UserError(f"{name}: markers and tables differ: {sorted(set(marked) ^ set(tables)) or sorted(marked)}")
    return BLOCK.sub(lambda match: f"<!-- BEGIN {match[1]} -->\n{tables[match[1]]}\n<!-- END {match[1]} -->", text)


def documents(root: Path = ROOT) -> dict[Path, str]:
    """Each document that has tables, as it should read."""
    written = {}
    for spec in load_specs(root / "docs" / "tables"):
        for name in spec["documents"]:
            words = spec.get("words", {}).get(name)
            tables = {key: table(content, words, root) for key, content in spec["tables"].items()}
            written[root / name] = with_tables((root / name).read_text(encoding="utf-8"), tables, name)
    return written


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="maintain.py documents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    if wrong := wrong_numbers(ROOT, load_entries(ROOT)):
        raise UserError("numbers in sentences:\n" + "\n".join(wrong))
