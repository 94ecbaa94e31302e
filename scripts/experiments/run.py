# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Runs experiments, and writes a JSON file for each run: one model, on one condition of one task, from one seed. A run whose
file is there is not run again; one that was interrupted goes on from its last checkpoint. `report.py` then makes the
tables and figures.

    python scripts/experiments/run.py --smoke                       # every experiment, a few steps: minutes
    python scripts/experiments/run.py all --jobs 2                  # everything: a night on two cores
    python scripts/experiments/run.py all --seeds 0 --jobs 2        # one seed of everything
    python scripts/experiments/run.py sorting needle --only soft,local --seeds 0,1
    python scripts/experiments/run.py all --list                    # what would be run, and what is done
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from run_record import write_json  # noqa: E402
from user_errors import UserError  # noqa: E402

from experiments.plan import Run, all_runs, experiments, load_config  # noqa: E402
from experiments.training import execute  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=["all"], help=f"all, or some of {', '.join(experiments())}.")
    parser.add_argument("--smoke", action="store_true", help="A few steps of each, with files under runs/.")
    parser.add_argument("--seeds", type=_integers, help="By commas; default: those of the config files.")
    parser.add_argument("--only", type=_words, metavar="MODELS", help="Some of the models, by commas.")
    parser.add_argument("--conditions", type=_words, help="Some of the config files' conditions, by commas.")
    parser.add_argument("--results_dir", type=Path, help="Default: results/experiments.")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "experiments", help="For checkpoints.")
    parser.add_argument("--time_limit_minutes", type=float, help="Stop with a checkpoint then; call again to go on.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, which share the cores.")
    parser.add_argument("--imdb_folder", help="Parquet files of IMDb; default: `stanfordnlp/imdb` from the Hub.")
    parser.add_argument("--keep_models", action="store_true", help="Leave the trained models in --work_dir.")
    parser.add_argument("--list", action="store_true", help="Say what would be run, and stop.")
    options = parser.parse_args(arguments)
    options.budget = "smoke" if options.smoke else "full"
    if options.results_dir is None:
        options.results_dir = ROOT / ("runs/experiments_smoke" if options.smoke else "results/experiments")
    return options


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    names = experiments() if "all" in options.experiments else options.experiments
    check_choice(names, options)
    runs = all_runs(names, options.budget, seeds=options.seeds, models=options.only, conditions=options.conditions)
    if not runs:
        raise UserError("no run fits these flags; --list without --only and --conditions shows what there is.")
    if options.list:
        for run in runs:
            print("done" if is_done(run, options) else "    ", run.name)
        return 0
    left = [run for run in runs if not is_done(run, options)]
    print(f"{len(runs)} runs, of which {len(runs) - len(left)} are done.", flush=True)
    deadline = None
    if options.time_limit_minutes is not None:
        deadline = time.monotonic() + 60 * options.time_limit_minutes
    failed, interrupted = [], 0
    for run, outcome in outcomes(left, options, deadline):
        if outcome == "interrupted":
            interrupted += 1
        elif outcome != "done":
            failed.append(run.name)
            print(outcome, file=sys.stderr, flush=True)
    if interrupted:
        print(f"Time is up: {interrupted} runs are left. The same command goes on.")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def check_choice(names: list[str], options: argparse.Namespace) -> None:
    """Refuses a name that no config file knows, in place of running nothing."""
    configs = [load_config(name) for name in names]
    known = {"--conditions": set().union(*(config["conditions"] for config in configs))}
    known["--only"] = set().union(*(_models_of(config) for config in configs))
    for flag, given in (("--conditions", options.conditions), ("--only", options.only)):
        unknown = sorted(set(given or ()) - known[flag])
        if unknown:
            raise UserError(f"{flag}: {', '.join(unknown)} is not among {', '.join(sorted(known[flag]))}.")


def _models_of(config: dict) -> set[str]:
    return {*config.get("models", ()), *config.get("variants", ())}


def result_file(run: Run, options: argparse.Namespace) -> Path:
    return options.results_dir / f"{run.name}.json"


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """
    Whether its result is there.

    Raises:
        UserError: one is, of other settings than the config file has now.
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
    """Each run with how it went, as they end."""
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


def be_quiet() -> None:
    """The Trainer and the data sets tell every step; a set of runs tells its scores."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=UserWarning)


def attempt(run: Run, options: argparse.Namespace, deadline: float | None) -> str:
    """`"done"`, `"interrupted"`, or the traceback: one run that fails does not keep the others from running."""
    be_quiet()
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
    told = "; ".join(
        f"{part}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        for part, scores in parts.items()
    )
    print(f"{time.monotonic() - started:6.0f} s  {run.name}  {told}", flush=True)
    return "done"


if __name__ == "__main__":
    sys.exit(main())
