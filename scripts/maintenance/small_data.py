# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What `run_classification.py` does with a small file of its user, by its defaults and by other flags: 216 passages of
State of the Union addresses in four periods of time, most of them of the last one. The test passages are from addresses
that the encoders that ship have never read. A seed draws the passages and the course of the training. Runs that are
there already are kept.

    python scripts/maintain.py small_data --runs runs/small --results results/classification/small_data.json
"""

import json
import random
import subprocess
import sys
from pathlib import Path

from datasets import Dataset

from common.command_line import make_parser
from common.run_record import write_json
from maintenance.sweep import RECORDED_FIELDS, SCRIPT, summarise
from training.shipped_data import load_address_splits, split_words


# The class, the last year of it, and its passages in training and test.
PERIODS = (
    ("1790 to 1860", 1860, 24, 15),
    ("1861 to 1912", 1912, 40, 25),
    ("1913 to 1963", 1963, 16, 10),
    ("since 1964", 9999, 136, 86),
)
PASSAGE_WORDS = 300
CONDITIONS = {
    # The defaults of version 0.1.
    "from scratch, 4 passes": "--from_scratch --num_train_epochs 4 --load_best_model_at_end",
    "by default": "",
    "from scratch": "--from_scratch",
    "balanced class weights": "--class_weights balanced",
}


def period_of(year: int) -> str:
    return next(name for name, last, _, _ in PERIODS if year <= last)


def draw_passages(seed: int) -> dict[str, Dataset]:
    """`train` and `test`, with the columns `text` and `period`, in random order."""
    addresses, drawn = load_address_splits(0, "classification"), {}
    for part, column in (("train", 2), ("test", 3)):
        draw = random.Random(seed)
        rows = []
        for period in PERIODS:
            passages = [
                text
                for address in addresses[part]
                if period_of(address["year"]) == period[0]
                for text in split_words(address["text"], PASSAGE_WORDS)
                if len(text.split()) == PASSAGE_WORDS
            ]
            rows += [{"text": text, "period": period[0]} for text in draw.sample(passages, period[column])]
        draw.shuffle(rows)
        drawn[part] = Dataset.from_list(rows)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py small_data")
    parser.add_argument("--runs", type=Path, required=True, help="Folder for the data and the runs.")
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS, metavar="CONDITION")
    options = parser.parse_args(arguments)
    results = {
        "command": ["scripts/maintain.py", "small_data", *(sys.argv[2:] if arguments is None else arguments)],
        "seeds": options.seeds,
        "conditions": {},
    }
    for seed in options.seeds:
        options.runs.mkdir(parents=True, exist_ok=True)
        for part, rows in draw_passages(seed).items():
            rows.to_csv(str(options.runs / f"{part}{seed}.csv"))
    for name in options.conditions:
        runs = []
        for seed in options.seeds:
            folder = options.runs / f"{list(CONDITIONS).index(name)}-{seed}"
            flags = [
                "--train_file",
                options.runs / f"train{seed}.csv",
                "--test_file",
                options.runs / f"test{seed}.csv",
            ]
            flags += ["--label_column_name", "period", "--seed", seed, *CONDITIONS[name].split()]
            if not (folder / "run.json").exists():
                command = [SCRIPT, "--output_dir", folder, "--overwrite_output_dir", *flags]
                subprocess.run([sys.executable, *map(str, command)], check=True)
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            runs.append({field: run[field] for field in RECORDED_FIELDS})
        results["conditions"][name] = {"summary": summarise(runs), "runs": runs}
        write_json(options.results, results)
