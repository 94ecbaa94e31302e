# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Runs the shipped task for several seeds, split by address and by president, and writes mean and spread to `results/`.
A seed sets the split, the weights and the order of the documents. Finished runs are kept, so an interrupted sweep
resumes.

    python scripts/maintain.py sweep --runs runs/sweep --results results/classification/sotu.json
    python scripts/maintain.py sweep --runs runs/local --results results/sotu_local.json -- \\
        --config_overrides layer_types=local_attention
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from common.command_line import make_parser
from common.errors import UserError
from common.run_record import write_json
from training.flags import given_flags, training_flags


SCRIPT = Path(__file__).resolve().parents[1] / "run_classification.py"
RECORDED_FIELDS = (
    "command",
    "commit",
    "config",
    "data",
    "machine",
    "part",
    "scores",
    "seconds",
    "seed",
    "validation",
    "versions",
)


def summarise(runs: list[dict]) -> dict:
    """Mean and standard deviation over the runs of every score, by classifier and metric."""
    summary = {"seconds": statistics.mean(run["seconds"] for run in runs)}
    for name in runs[0]["scores"]:
        summary[name] = {}
        for metric in runs[0]["scores"][name]:
            values = [run["scores"][name][metric] for run in runs]
            summary[name][metric] = {
                "mean": statistics.mean(values),
                "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "lowest": min(values),
            }
    return summary


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py sweep")
    parser.add_argument("--runs", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split_by", nargs="+", default=["address", "president"])
    parser.add_argument("flags", nargs="*", help="After --: flags for run_classification.py.")
    options = parser.parse_args(arguments)
    results = {
        "command": ["scripts/maintain.py", "sweep", *(sys.argv[2:] if arguments is None else arguments)],
        "seeds": options.seeds,
    }
    for split_by in options.split_by:
        runs = []
        for seed in options.seeds:
            folder = options.runs / f"{split_by}-{seed}"
            flags = ["--split_by", split_by, "--split_seed", str(seed), "--seed", str(seed), *options.flags]
            if not (folder / "run.json").exists():
                command = [str(SCRIPT), "--output_dir", str(folder), "--resume_from_checkpoint", "last", *flags]
                subprocess.run([sys.executable, *command], check=True)
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if training_flags(given_flags(run["command"][1:])) != training_flags(given_flags(flags)):
                raise UserError(
                    f"{folder}/run.json has other flags: {' '.join(run['command'])}. Name another folder with --runs."
                )
            runs.append({name: run[name] for name in RECORDED_FIELDS})
        results[split_by] = {"summary": summarise(runs), "runs": runs}
        write_json(options.results, results)
