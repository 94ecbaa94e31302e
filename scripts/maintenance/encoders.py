# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a pretrained encoder of 512 tokens on long documents in several ways, with equal settings and several seeds:
cut; made longer by `extend_positions.py`, with either attention; by windows whose predictions are averaged; by windows
first: the encoder that was trained on them is made longer, and trained on, or reads as it is. TF-IDF stands in the summary
of the cut ones. A seed sets the split, the new weights and the order. Finished runs are kept.

    python scripts/extend_positions.py --model_name_or_path M --max_position_embeddings 4096 --output_dir runs/long
    python scripts/maintain.py encoders --model_name_or_path M --long_model_name_or_path runs/long \\
        --runs runs/encoders --results results/classification/encoders.json --learning_rates 2e-5 5e-5 1e-4
    python scripts/maintain.py encoders --model_name_or_path M --long_model_name_or_path runs/long \\
        --runs runs/encoders --results results/classification/encoders.json -- --learning_rate 1e-4 --bf16

The tasks `reviews` and `reviews of any length`, which are not among the default ones, are of film reviews (IMDb, from the Hub
or `--imdb_folder`) of more than 512 tokens; those to learn from have any length in the second.

With `--learning_rates` seed 0 is trained with each of them and scored on validation, nothing else is done, and the last
line is the best of them: that of the highest mean accuracy over the conditions.
"""

import argparse
import functools
import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from common.command_line import make_parser
from common.errors import UserError
from common.run_record import write_json
from maintenance.encoder_data import SHIPPED_TASKS, SHORT_LENGTH, TRAINING_REVIEWS, data_flags
from maintenance.sweep import RECORDED_FIELDS, SCRIPT, summarise
from maintenance.windows import document_scores
from training.flags import given_flags, training_flags


FIRST, WINDOWS = "first 512 tokens", "windows of 512, averaged"
# These go on with the encoder that was trained on windows: it is trained on, or reads as it is.
AFTER_WINDOWS = "windows of 512, then whole, sinkhorn"
FIRST_AS_IT_IS = "windows of 512, then the first 512 tokens, as it is"
# The flags of those that read whole documents.
WHOLE_AS_IT_IS = {
    "windows of 512, then whole, sinkhorn, as it is": "--attn_implementation sinkhorn",
    "windows of 512, then whole, sinkhorn without a global block, as it is": "--attn_implementation sinkhorn "
    "--sinkhorn_attention num_global_blocks=0",
    "windows of 512, then whole, SDPA, as it is": "--attn_implementation sdpa",
}
WHOLE = {
    "whole, SDPA": "--attn_implementation sdpa",
    "whole, sinkhorn": "--attn_implementation sinkhorn",
    "whole, sinkhorn, 8 blocks by token": "--attn_implementation sinkhorn --sinkhorn_attention "
    "num_sorted_blocks=8,sort_granularity=token",
    AFTER_WINDOWS: "--attn_implementation sinkhorn",
    **WHOLE_AS_IT_IS,
}
AS_IT_IS = (FIRST_AS_IT_IS, *WHOLE_AS_IT_IS)
ON_WINDOWS = (AFTER_WINDOWS, *AS_IT_IS)
CONDITIONS = (FIRST, WINDOWS, FIRST_AS_IT_IS, *WHOLE)
TRAINING = {
    "learning_rate": ["5e-5"],
    "num_train_epochs": ["5"],
    "per_device_train_batch_size": ["8"],
    "warmup_steps": ["0.1"],
    # A run takes minutes and is not continued in the middle.
    "save_only_model": [],
    "save_total_limit": ["1"],
}
_MAKING_LONGER = threading.Lock()


class Job(NamedTuple):
    task: str
    condition: str
    seed: int
    tuned_rate: str | None = None  # a learning rate, for a run that is scored on validation only

    @property
    def folder_name(self) -> str:
        parts = (self.task, self.condition, self.seed, *filter(None, [self.tuned_rate]))
        return "-".join(re.sub(r"[^\w.]+", "_", str(part)) for part in parts)


def flags_of(job: Job, options: argparse.Namespace, data: Callable[[str, bool, int], list[str]]) -> list[str]:
    """The flags for `run_classification.py`, without the folder."""
    training = TRAINING | given_flags(options.flags)
    if job.condition in WHOLE:
        name = options.long_model_name_or_path
        if job.condition in ON_WINDOWS:
            name = str(longer_folder(job, options))
        if job.condition == AFTER_WINDOWS:
            training["num_train_epochs"] = [str(options.epochs_after_windows)]
        model = [name, "--max_seq_length", str(options.long_length)]
        model += WHOLE[job.condition].split()
    else:
        trained = job.condition == FIRST_AS_IT_IS
        name = options.runs / job._replace(condition=WINDOWS).folder_name if trained else options.model_name_or_path
        model = [str(name), "--max_seq_length", str(SHORT_LENGTH)]
    only = []
    if job.tuned_rate:
        training["learning_rate"] = [job.tuned_rate]
        only = ["--do_train", "--do_eval"]
    if job.condition in AS_IT_IS:
        only = ["--do_eval", "--do_predict"]
    if job.tuned_rate or job.condition not in (FIRST, FIRST_AS_IT_IS):  # the same for all conditions of a seed
        only.append("--skip_baselines")
    seeds = ["--seed", str(job.seed), "--split_seed", str(job.seed)]
    settings = [word for name, values in training.items() for word in (f"--{name}", *values)]
    return [
        *("--model_name_or_path", *model),
        *(*data(job.task, job.condition == WINDOWS, job.seed), *seeds, *settings, *only),
    ]


def longer_folder(job: Job, options: argparse.Namespace) -> Path:
    """Of the encoder that was trained on windows with the seed of the job, with more positions."""
    return options.runs / f"{job._replace(condition=WINDOWS).folder_name}-longer"


def make_longer(trained: Path, folder: Path, num_tokens: int) -> None:
    """
    Writes the encoder of a run with more positions.

    Raises:
        UserError: it could not be made longer.
    """
    if (folder / "config.json").exists():
        return
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
            if job.condition in ON_WINDOWS:
                windows = job._replace(condition=WINDOWS)
                before = next((future for future, other in begun.items() if other == windows), None)
                prepare = functools.partial(_prepare, before, windows, job, options)
            keeps = job.condition == WINDOWS and any(name in options.conditions for name in ON_WINDOWS)
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
    """
    Waits for the run on windows, which stands before it in the queue and so has begun; makes its encoder longer.

    Raises:
        UserError: the run did not keep its weights, or they could not be made longer.
    """
    if before is not None and before.result() is None:  # the time is over
        return
    trained = options.runs / windows.folder_name
    if not (trained / "model.safetensors").exists():
        raise UserError(f"{trained} has no weights to go on from: remove it, and call again with both conditions.")
    if job.condition in WHOLE:
        with _MAKING_LONGER:  # once, for whoever comes first
            make_longer(trained, longer_folder(job, options), options.long_length)


def measure(options: argparse.Namespace, results: dict) -> None:
    """
    All conditions with all seeds, a task after the other: first all conditions of the first seed; at last those that wait
    for another.
    """
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

    jobs = [
        Job(task, name, seed)
        for task in options.tasks
        for waits in (False, True)
        for seed in options.seeds
        for name in options.conditions
        if (name in ON_WINDOWS) == waits
    ]
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
        if name not in AS_IT_IS
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
    tasks = (*SHIPPED_TASKS, *TRAINING_REVIEWS)
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
