# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a pretrained encoder of 512 tokens on long documents in several ways, with equal settings and several seeds:
cut, made longer by `extend_positions.py` with either attention, by windows whose predictions are averaged, and by windows
first and the whole then: the encoder that was trained on windows is made longer, and trained on. TF-IDF stands in the
summary of the cut one. A seed sets the split, the new weights and the order. Finished runs are kept.

    python scripts/extend_positions.py --model_name_or_path M --max_position_embeddings 4096 --output_dir runs/long
    python scripts/maintain.py encoders --model_name_or_path M --long_model_name_or_path runs/long \\
        --runs runs/encoders --results results/classification/encoders.json --learning_rates 2e-5 5e-5 1e-4
    python scripts/maintain.py encoders --model_name_or_path M --long_model_name_or_path runs/long \\
        --runs runs/encoders --results results/classification/encoders.json -- --learning_rate 1e-4 --bf16

The task `reviews`, which is not among the default ones, is of film reviews (IMDb, from the Hub or `--imdb_folder`) of more
than 512 tokens.

With `--learning_rates` seed 0 is trained with each of them and scored on validation, nothing else is done, and the last
line is the best of them: that of the highest mean accuracy over the conditions.
"""

import argparse
import functools
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.command_line import make_parser
from common.errors import UserError
from common.run_record import write_json
from maintenance.small_data import PERIODS, period_of
from maintenance.sweep import RECORDED_FIELDS, SCRIPT, summarise
from maintenance.windows import document_scores, to_windows
from training.classification_data import hold_out_validation
from training.flags import given_flags, training_flags
from training.reviews import read as read_reviews
from training.reviews import without_tags
from training.shipped_data import PARTIES, load_address_splits, load_passages


SHORT_LENGTH = 512
FIRST, WINDOWS = "first 512 tokens", "windows of 512, averaged"
AFTER_WINDOWS = "windows of 512, then whole, sinkhorn"
# The flags of those that read whole documents.
WHOLE = {
    "whole, SDPA": "--attn_implementation sdpa",
    "whole, sinkhorn": "--attn_implementation sinkhorn",
    "whole, sinkhorn, 8 blocks by token": "--attn_implementation sinkhorn --sinkhorn_attention "
    "num_sorted_blocks=8,sort_granularity=token",
    AFTER_WINDOWS: "--attn_implementation sinkhorn",
}
CONDITIONS = (FIRST, WINDOWS, *WHOLE)
SHIPPED_TASKS = ("address", "president", "period")
REVIEWS = "reviews"
REVIEW_COUNTS = {"train": 1000, "validation": 200, "test": 1000}
# Training addresses of each period: unbalanced, and no more than any seed's split has.
PERIOD_SIZES = dict(zip((name for name, *_ in PERIODS), (65, 15, 40, 54)))
TRAINING = {
    "learning_rate": ["5e-5"],
    "num_train_epochs": ["5"],
    "per_device_train_batch_size": ["8"],
    "warmup_steps": ["0.1"],
    # A run takes minutes and is not continued in the middle.
    "save_only_model": [],
    "save_total_limit": ["1"],
}


class Job(NamedTuple):
    task: str
    condition: str
    seed: int
    tuned_rate: str | None = None  # a learning rate, for a run that is scored on validation only

    @property
    def folder_name(self) -> str:
        parts = (self.task, self.condition, self.seed, *filter(None, [self.tuned_rate]))
        return "-".join(re.sub(r"[^\w.]+", "_", str(part)) for part in parts)


def draw_addresses(seed: int) -> dict[str, Dataset]:
    """`train` and `test`: whole addresses as `text` with their `period`. The test part is of the shipped task."""
    splits = load_address_splits(seed, "classification")
    pool = concatenate_datasets([splits["train"], splits["validation"]])
    draw = random.Random(seed)
    train = []
    for period, size in PERIOD_SIZES.items():
        rows = [row for row, year in enumerate(pool["year"][:]) if period_of(year) == period]
        train += draw.sample(rows, size)
    draw.shuffle(train)
    return {
        part: Dataset.from_dict({"text": rows["text"][:], "period": [period_of(year) for year in rows["year"][:]]})
        for part, rows in (("train", pool.select(train)), ("test", splits["test"]))
    }


def long_reviews(seed: int, tokenizer: PreTrainedTokenizerBase, imdb_folder: str | None) -> dict[str, Dataset]:
    """
    `train`, `validation` and `test`: reviews of more than `SHORT_LENGTH` tokens as `text` with their `label`. Those for
    training and validation are drawn from the official training part, those of the test are the same for every seed.
    """
    room = SHORT_LENGTH - tokenizer.num_special_tokens_to_add()

    def draw(part: str, seed: int, number: int) -> Dataset:
        rows = read_reviews(part, imdb_folder).shuffle(seed=seed)
        found: list[dict] = []
        for row in rows:
            text = without_tags(row)["text"]
            if len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) > room:
                found.append({"text": text, "label": row["label"]})
                if len(found) == number:
                    break
        return Dataset.from_list(found)

    num_train = REVIEW_COUNTS["train"]
    drawn = draw("train", seed, num_train + REVIEW_COUNTS["validation"])
    return {
        "train": drawn.select(range(num_train)),
        "validation": drawn.select(range(num_train, len(drawn))),
        "test": draw("test", 0, REVIEW_COUNTS["test"]),
    }


def labelled_documents(
    task: str, seed: int, tokenizer: PreTrainedTokenizerBase, imdb_folder: str | None
) -> dict[str, Dataset]:
    """`train`, `validation` and `test` with the columns `text` and `label`, the parts that the other conditions have."""
    if task == REVIEWS:
        return long_reviews(seed, tokenizer, imdb_folder)
    if task == "period":
        parts = {name: rows.rename_column("period", "label") for name, rows in draw_addresses(seed).items()}
        parts["train"], parts["validation"] = hold_out_validation(parts["train"], seed)
        return parts
    return {
        name: Dataset.from_dict({"text": rows["text"][:], "label": [PARTIES[label] for label in rows["label"][:]]})
        for name, rows in load_passages(task, seed).items()
    }


def write_parts(parts: dict[str, Dataset], stem: Path) -> list[str]:
    """Writes a CSV file for each part, and returns the flags that name them."""
    flags = []
    for part, rows in parts.items():
        path = stem.with_name(f"{stem.name}-{part}.csv")
        rows.to_csv(str(path))
        flags += [f"--{part}_file", str(path)]
    return flags


def data_flags(folder: Path, tokenizer_name: str, imdb_folder: str | None) -> Callable[[str, bool, int], list[str]]:
    """How a task, as windows or not, with a seed is named to `run_classification.py`. Files are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    documents = functools.cache(lambda task, seed: labelled_documents(task, seed, tokenizer, imdb_folder))

    @functools.cache  # also since a run may be reading them
    def flags(task: str, by_window: bool, seed: int) -> list[str]:
        stem = folder / f"{task}-{seed}"
        if by_window:
            windows = {name: to_windows(rows, tokenizer, SHORT_LENGTH) for name, rows in documents(task, seed).items()}
            return [*write_parts(windows, folder / f"{stem.name}-windows"), "--id_column_name", "document"]
        if task == "period":
            return [*write_parts(draw_addresses(seed), stem), "--label_column_name", "period"]
        if task == REVIEWS:
            return write_parts(documents(task, seed), stem)
        return ["--split_by", task]

    return flags


def flags_of(job: Job, options: argparse.Namespace, data: Callable[[str, bool, int], list[str]]) -> list[str]:
    """The flags for `run_classification.py`, without the folder."""
    training = TRAINING | given_flags(options.flags)
    if job.condition in WHOLE:
        name = options.long_model_name_or_path
        if job.condition == AFTER_WINDOWS:
            name = str(options.runs / f"{job.folder_name}-start")
            training["num_train_epochs"] = [str(options.epochs_after_windows)]
        model = [name, "--max_seq_length", str(options.long_length)]
        model += WHOLE[job.condition].split()
    else:
        model = [options.model_name_or_path, "--max_seq_length", str(SHORT_LENGTH)]
    only = []
    if job.tuned_rate:
        training["learning_rate"] = [job.tuned_rate]
        only = ["--do_train", "--do_eval"]
    if job.tuned_rate or job.condition != FIRST:  # the same for all conditions of a seed
        only.append("--skip_baselines")
    seeds = ["--seed", str(job.seed), "--split_seed", str(job.seed)]
    settings = [word for name, values in training.items() for word in (f"--{name}", *values)]
    return [
        *("--model_name_or_path", *model),
        *(*data(job.task, job.condition == WINDOWS, job.seed), *seeds, *settings, *only),
    ]


def make_longer(trained: Path, folder: Path, num_tokens: int) -> None:
    """
    Writes the encoder of a run with more positions.

    Raises:
        UserError: the run did not keep its weights, or they could not be made longer.
    """
    if (folder / "config.json").exists():
        return
    if not (trained / "model.safetensors").exists():
        raise UserError(f"{trained} has no weights to go on from: remove it, and call again with both conditions.")
    command = [sys.executable, str(SCRIPT.with_name("extend_positions.py")), "--model_name_or_path", str(trained)]
    command += ["--max_position_embeddings", str(num_tokens), "--output_dir", str(folder), "--overwrite_output_dir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{folder}: {done.stderr.strip()}")


def run_job(
    folder: Path,
    flags: list[str],
    deadline: float,
    keeps_weights: bool = False,
    prepare: Callable[[], None] | None = None,
) -> dict | None:
    """
    The record of a run, which is trained unless it is there, after what `prepare` does. `None`: it is not, and the time
    is over.

    Raises:
        UserError: the run failed, or the one that is there has other flags.
    """
    if not (folder / "run.json").exists():
        if prepare is not None:
            prepare()
        if time.monotonic() > deadline:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), "--overwrite_output_dir", *flags]
        with open(log, "w", encoding="utf-8") as file:
            failed = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if failed:  # what it has trained stays
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
            reason = f"signal {-failed}, perhaps too little memory" if failed < 0 else lines[-1]
            raise UserError(f"{folder} failed: {reason} ({log} has the rest)")
        # Dozens of runs would fill a disk; nothing reads the weights again.
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if not keeps_weights:
            (folder / "model.safetensors").unlink(missing_ok=True)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if training_flags(given_flags(run["command"][1:])) != training_flags(given_flags(flags)):
        raise UserError(
            f"{folder}/run.json has other flags: {' '.join(run['command'])}. Name another folder with --runs."
        )
    if (folder / "predict_results.tsv").exists() and "--id_column_name" in flags:
        run["scores"]["by window"] = run["scores"]["this model"]
        run["scores"]["this model"] = document_scores(folder / "predict_results.tsv")
    return {field: run[field] for field in RECORDED_FIELDS}


def run_all(jobs: list[Job], options: argparse.Namespace, record: Callable[[Job, dict], None]) -> None:
    """
    Runs the jobs in their order, `options.jobs` at once. `record` gets each as it ends.

    Raises:
        UserError: some failed; the others were run nevertheless.
    """
    deadline = time.monotonic() + 60 * options.minutes
    data = data_flags(options.runs / "data", options.model_name_or_path, options.imdb_folder)
    failures, left = [], 0
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = {}
        for job in jobs:
            flags = flags_of(job, options, data)  # while the first ones run already
            prepare = None
            if job.condition == AFTER_WINDOWS:
                windows = job._replace(condition=WINDOWS)
                before = next((future for future, other in begun.items() if other == windows), None)
                prepare = functools.partial(_prepare, before, windows, job, options)
            keeps = job.condition == WINDOWS and AFTER_WINDOWS in options.conditions
            begun[pool.submit(run_job, options.runs / job.folder_name, flags, deadline, keeps, prepare)] = job
        for future in as_completed(begun):
            try:
                run = future.result()
            except UserError as error:
                failures.append(str(error))
                print(f"{len(failures)}. failure: {error}", flush=True)
                continue
            if run is None:
                left += 1
                continue
            record(begun[future], run)
            scores = run["scores"]["this model"]
            told = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
            print(f"{begun[future].folder_name}: {told}, {run['seconds']:.0f} s", flush=True)
    if left:
        print(f"Time is over; {left} runs are left. The same command goes on.")
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} runs failed: {'; '.join(failures)}")


def _prepare(before: Future | None, windows: Job, job: Job, options: argparse.Namespace) -> None:
    """Waits for the run on windows, which stands before it in the queue and so has begun; makes its encoder longer."""
    if before is None or before.result() is not None:  # otherwise the time is over
        start = options.runs / f"{job.folder_name}-start"
        make_longer(options.runs / windows.folder_name, start, options.long_length)


def measure(options: argparse.Namespace, results: dict) -> None:
    """All conditions with all seeds, a task after the other: first all conditions of the first seed."""
    finished: dict[tuple[str, str], list[dict]] = {}

    def record(job: Job, run: dict) -> None:
        runs = finished.setdefault((job.task, job.condition), [])
        runs.append(run)
        runs.sort(key=lambda run: run["seed"])
        results.setdefault("tasks", {}).setdefault(job.task, {})[job.condition] = {
            "seeds": [run["seed"] for run in runs],
            "summary": summarise(runs),
            "runs": runs,
        }
        write_json(options.results, results)

    jobs = [Job(task, name, seed) for task in options.tasks for seed in options.seeds for name in options.conditions]
    run_all(jobs, options, record)


def tune(options: argparse.Namespace, results: dict) -> None:
    """Scores on validation of every rate, condition and task; prints the best rate."""
    seen: dict[str, list[float]] = {}

    def record(job: Job, run: dict) -> None:
        rates = results.setdefault("tuning", {}).setdefault(job.task, {}).setdefault(job.condition, {})
        rates[job.tuned_rate] = run
        seen.setdefault(job.tuned_rate, []).append(run["scores"]["this model"]["accuracy"])
        write_json(options.results, results)

    jobs = [
        Job(task, name, options.seeds[0], rate)
        for task in options.tasks
        for rate in options.learning_rates
        for name in options.conditions
    ]
    run_all(jobs, options, record)
    # One that has not all its runs would be compared on other conditions.
    complete = {
        rate: statistics.mean(scores) for rate, scores in seen.items() if len(scores) == max(map(len, seen.values()))
    }
    if complete:
        print(max(complete, key=complete.__getitem__))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py encoders")
    parser.add_argument("--model_name_or_path", required=True, help="The encoder of 512 tokens.")
    parser.add_argument("--long_model_name_or_path", required=True, help="The same, extended.")
    parser.add_argument("--long_length", type=int, default=4096, help="Tokens that the extended one reads.")
    parser.add_argument("--runs", type=Path, required=True, help="Folder for the data and the runs.")
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write, or to add to.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    tasks = (*SHIPPED_TASKS, REVIEWS)
    parser.add_argument("--tasks", nargs="+", default=list(SHIPPED_TASKS), choices=tasks)
    parser.add_argument("--imdb_folder", help="Parquet files of IMDb; default: `stanfordnlp/imdb` from the Hub.")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS, metavar="CONDITION")
    parser.add_argument("--epochs_after_windows", type=float, default=3, help=f"Of '{AFTER_WINDOWS}'.")
    parser.add_argument("--learning_rates", nargs="+", help="Only try these, on validation.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at once.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="No run begins after these.")
    parser.add_argument("flags", nargs="*", help="After --: flags for run_classification.py, for all conditions.")
    options = parser.parse_args(arguments)
    options.conditions.sort(key=CONDITIONS.index)  # one goes on where another ends
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    command = ["scripts/maintain.py", "encoders", *(sys.argv[2:] if arguments is None else arguments)]
    results["tuning_command" if options.learning_rates else "command"] = command
    (tune if options.learning_rates else measure)(options, results)
