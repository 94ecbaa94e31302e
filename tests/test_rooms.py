# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/` is programs on top of packages, and imports go one way: a package imports only packages below it."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
# Each package, and the packages that it may import. The programs, on top, may import all of them.
BELOW = {
    "common": set(),
    "training": {"common"},
    "hub": {"common", "exploring"},
    "plotting": {"common"},
    "exploring": {"common", "plotting"},
    "benchmarking": {"common", "training"},
    "generation": {"common", "training"},
    "conversion": {"common", "training"},
    "evaluation": {"common", "training"},
    "experiments": {"common", "training"},
    "maintenance": {"common", "training", "benchmarking", "hub", "exploring"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SCRIPTS).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SCRIPTS.rglob("*.py"))}
PROGRAMS = {name for name, path in MODULES.items() if path.parent == SCRIPTS}


def imports_of(name: str) -> set[str]:
    """The modules of `scripts/` that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & MODULES.keys() or {node.module}
    return found & MODULES.keys() - {name}


IMPORTS = {name: imports_of(name) for name in MODULES}


def test_every_package_has_its_place():
    assert {path.parent.name for path in SCRIPTS.glob("*/__init__.py")} == BELOW.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    assert not IMPORTS[name] & PROGRAMS, "a program is for the command line, not for imports"
    if name not in PROGRAMS:
        room = name.split(".")[0]
        others = {other.split(".")[0] for other in IMPORTS[name]} - {room}
        assert others <= BELOW[room]


def test_no_module_imports_itself_through_others():
    left = dict(IMPORTS)
    while ready := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in ready:
            del left[name]
    assert not left, f"a cycle among {sorted(left)}"


def test_nobody_edits_the_module_path():
    files = [path for folder in ("scripts", "tests") for path in (ROOT / folder).rglob("*.py")]
    edits = ["sys.path" + suffix for suffix in (".insert", ".append", ".extend", " +=", " =")]
    found = {path.relative_to(ROOT).as_posix() for path in files if any(edit in path.read_text() for edit in edits)}
    assert found == set()
