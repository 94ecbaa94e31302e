# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Checks the model's modules by the rules that Transformers has for its own models (`transformers-mlinter`), including those
that are off by default. The linter has no flag that leaves out a rule, and checks files by their name; hence this file.

    python scripts/maintain.py model_rules
    mlinter --rule TRF051        # what a rule is for
"""

import sys
from pathlib import Path

import mlinter


ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {
    "TRF013": "the base class of all models has an `__init__` that checks the configuration; each model calls `post_init`",
    "TRF028": "one line names the license, which is in the file LICENSE",
    "TRF035": "the few `# noqa` have their reason next to them",
    "TRF037": "einsum names the dimensions by the letters that the docstrings explain",
    "TRF041": "its notes tell which released checkpoints need a branch; here each setting is for research",
    "TRF051": "the name of the attention is read to warn that it returns no maps, and to refuse one that is unknown",
    "TRF057": "`@auto_docstring` finds its templates by a model's place in the library; docstrings here are written",
}


def main(arguments: list[str] | None = None) -> None:
    rules = set(mlinter.TRF_RULES) - LEFT_OUT.keys()
    found, paths = [], sorted(ROOT.glob("*_sinkhorn.py"))
    for path in paths:
        # Parts of the model have names of their own here; the rules are for files named modeling_*.py.
        known = path.name.startswith(("configuration_", "modeling_"))
        name = path.name if known else f"modeling_{path.name}"
        for violation in mlinter.analyze_file(Path(name), path.read_text(encoding="utf-8"), rules):
            found.append(f"{path.name}:{violation.line_number}: {violation.message}")
    if found:
        sys.exit("\n".join(found))
    print(f"{len(rules)} rules of Transformers hold in {len(paths)} modules")
