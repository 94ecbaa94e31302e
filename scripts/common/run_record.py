# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The origin of a number: commit, versions and machine, for the JSON files of runs."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch


PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "tokenizers", "scikit-learn", "numpy")


def provenance() -> dict:
    """The commit at the start (with `-dirty` if files differed from it), package versions, and the machine."""
    return {
        "commit": COMMIT,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def command() -> list[str]:
    """The script and its flags as called, without the values of tokens: records are published."""
    shown, secret = [f"scripts/{Path(sys.argv[0]).name}"], False
    for argument in sys.argv[1:]:
        name, separator, _ = argument.partition("=")
        is_token = name.replace("-", "_") in ("__token", "__hub_token")
        if secret:
            shown.append("***")
        else:
            shown.append(f"{name}=***" if is_token and separator else argument)
        secret = is_token and not separator
    return shown


def write_run(run: dict, output_dir: str, results_file: str | None) -> None:
    """As `run.json` of the output folder, and to `results_file` where there is one."""
    for path in filter(None, (Path(output_dir) / "run.json", results_file)):
        write_json(Path(path), run)


def write_json(path: Path, content: dict) -> None:
    """Writes the complete file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.tmp")
    draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def _commit() -> str | None:
    """`SOURCE_COMMIT` is for copies of a commit's files outside its repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    if commit := os.environ.get("SOURCE_COMMIT"):
        return commit
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


# Read on import: the folder may be at another commit when a long run ends.
COMMIT = _commit()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
