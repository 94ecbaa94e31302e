# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Runs experiments, and writes a JSON file for each run: one model, on one condition of one task, from one seed. Finished
runs are skipped; interrupted runs resume from their last checkpoint. `maintain.py experiments` then makes the tables
and figures of docs/experiments.md.

    python scripts/run_experiments.py --smoke                       # every experiment, a few steps: minutes
    python scripts/run_experiments.py all --jobs 2                  # everything: a night on two cores
    python scripts/run_experiments.py all --seeds 0 --jobs 2        # one seed of everything
    python scripts/run_experiments.py sorting needle --only soft,local --seeds 0,1
    python scripts/run_experiments.py all --list                    # what would be run, and what is done

Two more studies have flags of their own (`--help` after the name lists them):

    python scripts/run_experiments.py routing          # how a SortNet learns where to look
    python scripts/run_experiments.py interventions    # what a trained language model uses its sorting for
"""

import argparse
import sys
import time
from pathlib import Path

from common.command_line import make_parser
from common.errors import UserError
from experiments import interventions, routing
from experiments.plan import all_runs, experiments
from experiments.running import check_choice, is_done, outcomes


ROOT = Path(__file__).resolve().parents[1]
TIME_IS_UP = 75  # the status where runs are left for the next call: EX_TEMPFAIL of sysexits.h
STUDIES = {"routing": routing.main, "interventions": interventions.main}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("experiments", nargs="*", default=["all"], help=f"all, or some of {', '.join(experiments())}.")
    parser.add_argument("--smoke", action="store_true", help="A few steps of each, with files under runs/.")
    parser.add_argument("--seeds", type=_integers, help="By commas; default: those of the config files.")
    parser.add_argument("--only", type=_words, metavar="MODELS", help="Some of the models, by commas.")
    parser.add_argument("--conditions", type=_words, help="Some of the config files' conditions, by commas.")
    parser.add_argument(
        "--first",
        type=_words,
        default=[],
        metavar="CONDITIONS",
        help="Some of the conditions, by commas, of which every seed is run before anything else. Otherwise the first "
        "seed of everything comes before the second of anything.",
    )
    parser.add_argument("--results_dir", type=Path, help="Default: results/experiments.")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "experiments", help="For checkpoints.")
    parser.add_argument("--time_limit_minutes", type=float, help="Stop then, with a checkpoint; call again to resume.")
    parser.add_argument("--jobs", type=int, default=1, help="Parallel runs, which share the cores.")
    parser.add_argument("--imdb_folder", help="Parquet files of IMDb; default: `stanfordnlp/imdb` from the Hub.")
    parser.add_argument("--keep_models", action="store_true", help="Leave the trained models in --work_dir.")
    parser.add_argument("--list", action="store_true", help="List the runs, and stop.")
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
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in STUDIES:
        STUDIES[arguments[0]](arguments[1:])
        return 0
    options = parse(arguments)
    names = experiments() if "all" in options.experiments else options.experiments
    check_choice(names, options)
    choice = {"seeds": options.seeds, "models": options.only, "conditions": options.conditions}
    runs = all_runs(names, options.budget, options.first, **choice)
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
        print(f"Time is up: {interrupted} runs are left. The same command resumes them.")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else TIME_IS_UP if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
