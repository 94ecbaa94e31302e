# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Parts of Markdown documents: links, anchors, tables, blocks of code."""

import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d[\d,]*)?\.?\d+(?:\s?%)?")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "model_cards/*.md", "results/*.md", "data/*/*.md", "scripts/*.md")
    for path in sorted(ROOT.glob(pattern))
]


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def links(text: str) -> list[tuple[str, str]]:
    """(path, anchor) of the links to files of the repository; either may be empty."""
    text = FENCED.sub("", text)
    found = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", text)
    return [(path, anchor) for path, anchor in found if path or anchor]


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def tables(text: str) -> list[list[str]]:
    """The rows of each table below its heading."""
    found: list[list[str]] = []
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines):
        if re.fullmatch(r"\|(-+\|)+", line):
            found.append([])
        elif found and line.startswith("|") and above.startswith("|"):
            found[-1].append(line)
    return found


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def numbers(row: str) -> list[str]:
    """Those after the first cell, which is a label."""
    return NUMBER.findall(" ".join(cells(row)[1:]))


def code_blocks(text: str, language: str) -> list[str]:
    return [code for name, code in FENCED.findall(text) if name == language]
