# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a pretrained encoder on questions about passages of 2,500 words of State of the Union addresses: cut to 512
tokens, whole with SDPA, and whole with sparse attention. A seed draws the addresses of each part, the questions, and the
course of the training. Finished runs are kept and interrupted ones resume; the results are written after each run.

    python scripts/extend_positions.py --model_name_or_path M --max_position_embeddings 4096 --output_dir runs/extended
    python scripts/maintain.py long_questions --runs runs/questions --model_name_or_path runs/extended \\
        --results results/question_answering/long_questions.json --jobs 2
"""

import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer

from common.command_line import make_parser
from common.errors import UserError
from common.run_record import write_json
from maintenance.sweep import RECORDED_FIELDS, summarise
from training.files import read_parquet
from training.flags import given_flags, training_flags
from training.long_contexts import ASKED, PARTS, make_rows
from training.qa_data import Row, encode
from training.qa_scores import mean_scores, score_answer


SCRIPT = Path(__file__).resolve().parents[1] / "run_qa.py"
SHORT = 512  # tokens that the encoder was pretrained for
CONDITIONS = {
    # A sixth of the training answers are in there: more passes, so that it has about as many steps as the others.
    f"first {SHORT} tokens": f"--max_seq_length {SHORT} --attn_implementation sdpa --num_train_epochs 15",
    "whole, SDPA": "--attn_implementation sdpa",
    "whole, sinkhorn": "--attn_implementation sinkhorn",
    "whole, sinkhorn, 8 chosen by token": (
        "--attn_implementation sinkhorn --sinkhorn_attention num_sorted_blocks=8,sort_granularity=token"
    ),
}
TRAINING = "--num_train_epochs 3 --learning_rate 2e-4 --per_device_train_batch_size 16 --per_device_eval_batch_size 32"
ON_A_GPU = "--bf16 --tf32 True --dataloader_num_workers 2"


def make_parts(options, seed: int) -> dict[str, Path]:
    """The files of the rows that a seed draws. Files that are there are kept."""
    files = {part: options.runs / f"{part}{seed}-{options.passage_words}.parquet" for part in PARTS}
    sizes = {part: getattr(options, f"{part}_rows") for part in PARTS}
    if not all(file.exists() for file in files.values()):
        options.runs.mkdir(parents=True, exist_ok=True)
        for part, rows in make_rows(sizes, seed, options.passage_words, options.cue_words).items():
            draft = files[part].with_suffix(".tmp")
            Dataset.from_list(rows).to_parquet(str(draft))
            draft.replace(files[part])
    return files


def flags_of(options, condition: str, seed: int, files: dict[str, Path]) -> list[str]:
    """Of `run_qa.py`, but the folder."""
    flags = ["--model_name_or_path", options.model_name_or_path, "--seed", str(seed)]
    for part, file in files.items():
        flags += [f"--{part}_file", str(file)]
    own = TRAINING + (f" {ON_A_GPU}" if torch.cuda.is_available() else "")
    return [*flags, *own.split(), *CONDITIONS[condition].split(), *options.flags]


def scores_by_group(rows: Dataset, predictions: dict[str, str], is_early: list[bool]) -> dict[str, dict]:
    """Exact match, F1 and number of questions: of all, of each kind, and by the place of the answer."""
    groups: dict[str, list[dict]] = {}
    for row, early in zip(rows.remove_columns("context"), is_early):
        score = score_answer(predictions[row["id"]], row["answers"]["text"])
        place = f"answer in the first {SHORT} tokens" if early else f"answer after {SHORT} tokens"
        for group in ("all", row["kind"], place):
            groups.setdefault(group, []).append(score)
    return {group: mean_scores(scores) | {"questions": len(scores)} for group, scores in groups.items()}


def are_early(rows: Dataset, model: str) -> list[bool]:
    """Whether a model that reads 512 tokens has the answer among them."""
    listed = [
        Row(row["id"], row["question"], row["context"], row["answers"]["text"], row["answers"]["answer_start"][0])
        for row in rows
    ]
    return encode(listed, AutoTokenizer.from_pretrained(model), SHORT, "test").is_whole


def chances(rows: Dataset) -> dict[str, float]:
    """Of guessing: the share of answers found by choosing at random one of the passage that is of the asked kind."""
    pairs = list(zip(rows["kind"][:], rows["chance"][:]))
    by_kind = {kind: [chance for other, chance in pairs if other == kind] for kind in ASKED}
    means = {kind: statistics.mean(found) for kind, found in by_kind.items() if found}
    return means | {"all": statistics.mean(chance for _, chance in pairs)}


def read_run(folder: Path, flags: list[str], rows: Dataset, is_early: list[bool]) -> dict:
    """
    Raises:
        UserError: the run in `folder` has other flags.
    """
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if training_flags(given_flags(run["command"][1:])) != training_flags(given_flags(flags)):
        raise UserError(
            f"{folder}/run.json has other flags: {' '.join(run['command'])}. Name another folder with --runs."
        )
    predictions = json.loads((folder / "predict_predictions.json").read_text(encoding="utf-8"))
    return {field: run[field] for field in RECORDED_FIELDS} | {"scores": scores_by_group(rows, predictions, is_early)}


def train(folder: Path, flags: list[str]) -> None:
    """
    Raises:
        UserError: the run failed; names its log and shows the end of it.
    """
    log = folder.with_suffix(".log")
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), "--resume_from_checkpoint", "last", *flags]
    with open(log, "a", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise UserError(f"a run failed; {log} ends with:\n{log.read_text(encoding='utf-8')[-1500:]}")


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py long_questions")
    parser.add_argument("--runs", type=Path, required=True, help="Folder for the data and the runs.")
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--model_name_or_path", required=True, help="Encoder with 4,096 positions.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS, metavar="CONDITION")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, on one device.")
    parser.add_argument("--train_rows", type=int, default=4000)
    parser.add_argument("--validation_rows", type=int, default=300)
    parser.add_argument("--test_rows", type=int, default=600)
    parser.add_argument("--passage_words", type=int, default=2500)
    parser.add_argument("--cue_words", type=int, default=8, help="Words that a question quotes.")
    parser.add_argument("flags", nargs="*", help="After --: flags for run_qa.py.")
    options = parser.parse_args(arguments)
    results = {
        "command": ["scripts/maintain.py", "long_questions", *(sys.argv[2:] if arguments is None else arguments)],
        "seeds": options.seeds,
        "guess": {},
        "conditions": {},
    }
    disable_progress_bars()
    tests, runs, lock = {}, {}, threading.Lock()

    def do(condition: str, seed: int) -> None:
        folder = options.runs / f"{list(CONDITIONS).index(condition)}-{seed}"
        files, rows, is_early = tests[seed]
        flags = flags_of(options, condition, seed, files)
        if not (folder / "run.json").exists():
            train(folder, flags)
        run = read_run(folder, flags, rows, is_early)
        with lock:
            runs[condition, seed] = run
            for name in options.conditions:
                found = [runs[name, number] for number in options.seeds if (name, number) in runs]
                if found:
                    results["conditions"][name] = {"summary": summarise(found), "runs": found}
            write_json(options.results, results)
            scores = ", ".join(f"{group} {found['f1']:.3f}" for group, found in sorted(run["scores"].items()))
            print(f"{condition}, seed {seed}: {run['seconds']:.0f} seconds; F1: {scores}", flush=True)

    for seed in options.seeds:
        files = make_parts(options, seed)
        rows = read_parquet(files["test"])
        tests[seed] = files, rows, are_early(rows, options.model_name_or_path)
        results["guess"][str(seed)] = chances(rows)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # of the runs, which have processes of their own to load data
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(do, condition, seed) for seed in options.seeds for condition in options.conditions]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
