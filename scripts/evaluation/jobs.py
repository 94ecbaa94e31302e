# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Several models measured at a time: the same program, once for each, with results that are put together at the end."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.errors import UserError
from evaluation.models import Candidate
from evaluation.results import Results


def evaluate_apart(candidates: Sequence[Candidate], models: Sequence[str], results: Results, jobs: int) -> None:
    """
    Measures each of `models`, as the command line names them, by a process of its own, with the flags of this one. A
    part's file lies beside that of the results until it is in there, so that a run that broke off resumes.

    Raises:
        UserError: a process failed; the others' results are kept.
    """
    folder = results.path.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{number}.json" for number in range(len(candidates))]
    for candidate, part in zip(candidates, parts):
        if candidate.label in results.models and not part.exists():
            known = Results(part)
            known.models[candidate.label] = results.models[candidate.label]
            known.write()
    flags = without_flags(sys.argv[1:], "--models", "--results", "--jobs", "--plot")

    def measure(model: str, part: Path) -> int:
        command = [sys.executable, sys.argv[0], "--models", model, "--results", str(part), *flags]
        return subprocess.run(command).returncode

    with ThreadPoolExecutor(jobs) as pool:
        status = list(pool.map(measure, models, parts))
    for part in parts:
        if part.exists():
            results.models |= Results(part).models
            results.write()
    if failed := [candidate.label for candidate, code in zip(candidates, status) if code]:
        raise UserError(f"--models: the measurement of {', '.join(failed)} failed, as said above.")
    for part in parts:
        part.unlink(missing_ok=True)
    folder.rmdir()


def without_flags(arguments: Sequence[str], *names: str) -> list[str]:
    """The command line without these flags and their values."""
    kept, leaving = [], False
    for argument in arguments:
        if argument.startswith("--"):
            leaving = argument.partition("=")[0] in names
        if not leaving:
            kept.append(argument)
    return kept
