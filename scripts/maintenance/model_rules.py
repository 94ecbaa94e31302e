# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Checks configuration and model by the rules that Transformers has for its own models (`transformers-mlinter`), those
that are off by default among them. The program has no flag that leaves a rule out, hence this file.

    python scripts/maintain.py model_rules
    mlinter --rule TRF051        # what a rule is for
"""

import sys
from pathlib import Path

import mlinter


ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {
    "TRF013": "the base class of all models has an `__init__` that checks the configuration; `post_init` is each model's",
    "TRF028": "one line names the license, which is in the file LICENSE",
    "TRF051": "the model asks which attention runs, in order to warn that it returns no maps; it chooses nothing by that",
    "TRF057": "`@auto_docstring` finds its templates by a model's place in the library; docstrings here are written",
}


def main(arguments: list[str] | None = None) -> None:
    rules = set(mlinter.TRF_RULES) - LEFT_OUT.keys()
    paths = sorted([*ROOT.glob("configuration_*.py"), *ROOT.glob("modeling_*.py")])
    found = [
        violation
        for path in paths
        for violation in mlinter.analyze_file(path.relative_to(ROOT), path.read_text(encoding="utf-8"), rules)
    ]
    for violation in found:
        print(f"{violation.file_path}:{violation.line_number}: {violation.message}")
    if found:
        sys.exit(1)
    print(f"{len(rules)} rules of Transformers hold in {', '.join(path.name for path in paths)}")
