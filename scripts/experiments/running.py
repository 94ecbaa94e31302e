# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Executes runs one after the other or in parallel, and writes a JSON file for each."""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import time
import traceback
import warnings
from pathlib import Path

import datasets
import torch
import transformers

from common.errors import UserError
from common.run_record import write_json
from experiments.plan import Run, load_config
from experiments.training import execute


def check_choice(names: list[str], options: argparse.Namespace) -> None:
    """Refuses a name that is in no config file, instead of running nothing."""
    configs = [load_config(name) for name in names]
    known = {"--conditions": set().union(*(config["conditions"] for config in configs))}
    known["--only"] = set().union(*(_models_of(config) for config in configs))
    known["--first"] = known["--conditions"]
    given = {"--conditions": options.conditions, "--first": options.first, "--only": options.only}
    for flag, words in given.items():
        unknown = sorted(set(words or ()) - known[flag])
        if unknown:
            raise UserError(f"{flag}: {', '.join(unknown)} is not among {', '.join(sorted(known[flag]))}.")


def _models_of(config: dict) -> set[str]:
    return {*config.get("models", ()), *config.get("variants", ())}


def result_file(run: Run, options: argparse.Namespace) -> Path:
    return options.results_dir / run.experiment / run.condition / f"{run.model}.seed{run.seed}.json"


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """
    Whether its result exists.

    Raises:
        UserError: it exists, with other settings than the config file has now.
    """
    path = result_file(run, options)
    if not path.exists():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["settings"] != json.loads(json.dumps(run.settings)):
        raise UserError(
            f"{path} has other settings than the config file has now; move it away to run it again, or name another "
            "--results_dir."
        )
    return True


def outcomes(runs: list[Run], options: argparse.Namespace, deadline: float | None):
    """Yields each run with its outcome, as they end."""
    if options.jobs == 1:
        for run in runs:
            yield run, attempt(run, options, deadline)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs if hasattr(os, "sched_getaffinity") else 1)
    with concurrent.futures.ProcessPoolExecutor(
        options.jobs, context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        futures = {pool.submit(attempt, run, options, deadline): run for run in runs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()


def silence_libraries() -> None:
    """Silences the logs of the Trainer and of the data sets; only scores are printed."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=UserWarning)


def attempt(run: Run, options: argparse.Namespace, deadline: float | None) -> str:
    """`"done"`, `"interrupted"`, or the traceback: one run that fails does not keep the others from running."""
    silence_libraries()
    if deadline is not None and time.monotonic() > deadline:
        return "interrupted"
    started = time.monotonic()
    try:
        record = execute(run, options.work_dir, deadline, options.imdb_folder, options.keep_models)
    except Exception:
        return f"{run.name}:\n{traceback.format_exc()}"
    if record is None:
        return "interrupted"
    write_json(result_file(run, options), record)
    parts = {
        part: {k: v for k, v in scores.items() if not isinstance(v, list)} for part, scores in record["scores"].items()
    }
    scores_text = "; ".join(
        f"{part}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        for part, scores in parts.items()
    )
    print(f"{time.monotonic() - started:6.0f} s  {run.name}  {scores_text}", flush=True)
    return "done"
