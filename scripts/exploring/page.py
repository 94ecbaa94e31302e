# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""One HTML page without a network: the template beside this file, its style and script, and the data as JSON."""

import html
import json
from pathlib import Path
from typing import Any


FOLDER = Path(__file__).parent
DATA = '<script type="application/json" id="data">'


def write_page(data: dict[str, Any], path: Path) -> int:
    """Writes the page; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = make_page(data).encode("utf-8")
    path.write_bytes(content)
    return len(content)


def make_page(data: dict[str, Any]) -> str:
    """`data`: what `read_document` gives, with `model` and `text`, which are shown."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # In JSON these stand in strings alone, where they may be escaped: no text can end the script element.
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {
        "TITLE": html.escape(f"{data['model']}: what it sorts"),
        "STYLE": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (FOLDER / "page.js").read_text(encoding="utf-8"),
        "DATA": f"{DATA}{text}</script>",
    }
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name, content in parts.items():
        head, found, tail = page.partition(f"<!-- {name} -->")
        assert found, name
        page = f"{head}{content}{tail}"
    return page


def read_page(text: str) -> dict[str, Any] | None:
    """The data of a page that this module made; `None` of any other text."""
    _, found, rest = text.partition(DATA)
    return json.loads(rest.partition("</script>")[0]) if found else None
