# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Links from the folders of the published checkpoints to the modules at the top, so that the code stands once.

    python scripts/maintain.py links

Whoever loads, copies or uploads a folder follows the links and gets whole files. `model.save_pretrained(folder)` would
not: it copies the code over the links. `code_set_aside` takes them away meanwhile.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub.folder_checks import read_code
from maintenance.recipes import RECIPES


ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> None:
    for name in RECIPES:
        link_code(ROOT / "checkpoints" / name)


def needed_code(folder: Path) -> list[str]:
    """The files at the top that the `auto_map` of the folder's config.json needs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return sorted(f"{module}.py" for module in read_code(ROOT, config["auto_map"]))


def link_code(folder: Path) -> None:
    """Puts links to the code that `folder` needs in the place of whatever code it has."""
    needed = needed_code(folder)
    remove_code(folder)
    for name in needed:
        (folder / name).symlink_to(os.path.relpath(ROOT / name, folder.resolve()))


def remove_code(folder: Path) -> None:
    for path in folder.glob("*.py"):
        path.unlink()


@contextmanager
def code_set_aside(folder: Path) -> Iterator[None]:
    """The folder without links, so that a save writes nothing through them. Then with links again."""
    remove_code(folder)
    try:
        yield
    finally:
        if (folder / "config.json").is_file():
            link_code(folder)
