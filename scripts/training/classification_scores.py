# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Metrics, predictions and the record of a classification run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from common.run_record import command, provenance, write_run
from training.baselines import baseline_scores
from training.class_report import report_lines
from training.classification_data import Task
from training.model_choice import recorded_config, recorded_name
from training.predictions import write_predictions
from training.small_data import advice


METRICS = Path(__file__).resolve().parents[2] / "metrics"
METRIC_NAMES = {
    "single_label_classification": ("accuracy", "macro_f1"),
    "multi_label_classification": ("micro_f1", "macro_f1"),
    "regression": ("mse", "mae"),
}


def make_metrics(task: Task):
    """The name of the metric that picks the best checkpoint, and the function that computes all."""
    accuracy, f1 = evaluate.load(str(METRICS / "accuracy")), evaluate.load(str(METRICS / "f1"))
    f1_of_sets = evaluate.load(str(METRICS / "f1"), "multilabel")

    def compute(prediction) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        logits = logits[0] if isinstance(logits, tuple) else logits
        if task.problem_type == "regression":
            error = logits.squeeze(-1) - labels
            return {"mse": float((error**2).mean()), "mae": float(np.abs(error).mean())}
        if task.problem_type == "multi_label_classification":
            predicted = (logits > 0).astype(int)
            scores = {
                name: f1_of_sets.compute(predictions=predicted, references=labels.astype(int), average=name)["f1"]
                for name in ("micro", "macro")
            }
            return {"micro_f1": scores["micro"], "macro_f1": scores["macro"]}
        predicted = logits.argmax(-1)
        return {
            "accuracy": accuracy.compute(predictions=predicted, references=labels)["accuracy"],
            "macro_f1": f1.compute(predictions=predicted, references=labels, average="macro")["f1"],
        }

    return METRIC_NAMES[task.problem_type][0], compute


def predict(trainer: Trainer, data: Dataset, task: Task) -> dict[str, float]:
    """
    Writes a line for each test document to `predict_results.tsv`; its scores, where there are labels. Of rows with and
    without labels those with one make the scores.
    """
    labels = data["labels"][:] if "labels" in data.column_names else [None] * len(data)
    lengths = [len(ids) for ids in data["input_ids"]]
    order, logits, metrics = [], [], {}
    with _documents_in_order(trainer.args):
        for labelled in (True, False):
            rows = [row for row, label in enumerate(labels) if (label is not None) == labelled]
            if not rows:
                continue
            rows.sort(key=lambda row: -lengths[row])  # little padding in a batch
            part = data.select(rows)
            part = part if labelled or "labels" not in part.column_names else part.remove_columns("labels")
            result = trainer.predict(part, metric_key_prefix="test")
            metrics = metrics or result.metrics
            predicted = result.predictions[0] if isinstance(result.predictions, tuple) else result.predictions
            order += rows
            logits.append(torch.from_numpy(predicted).float())
    trainer.save_metrics("test", metrics)
    if trainer.is_world_process_zero():
        logits = torch.cat(logits)[torch.tensor(order).argsort()]
        write_predictions(Path(trainer.args.output_dir) / "predict_results.tsv", task, task.splits["test"], logits)
    return {name.removeprefix("test_"): value for name, value in metrics.items()}


@contextmanager
def _documents_in_order(training_args: TrainingArguments) -> Iterator[None]:
    """With `group_by_length` the Trainer shuffles also what it predicts, and returns the predictions shuffled."""
    strategy = training_args.train_sampling_strategy
    training_args.train_sampling_strategy = "sequential"
    try:
        yield
    finally:
        training_args.train_sampling_strategy = strategy


def report(
    trainer: Trainer,
    task: Task,
    data_args,
    metrics: dict[str, dict],
    seconds: float,
    by_class: dict[str, dict | None],
    base_model: str | None,
) -> None:
    """
    Writes `run.json`, and prints the model next to the baselines on the test documents, or on validation if the test
    has no labels. Only one process calls it: nothing here may wait for the others.
    """
    part = "test" if "test" in metrics and "label" in task.splits["test"].column_names else "validation"
    scores = {}
    splits = {name: _labelled(rows) for name, rows in task.splits.items()}
    if (
        task.problem_type == "single_label_classification"
        and not data_args.skip_baselines
        and splits.keys() >= {"train", part}
    ):
        scores = baseline_scores(splits, part)
    score_names = ("accuracy", "macro_f1", "micro_f1", "mse", "mae")
    if part in metrics:
        values = {name.removeprefix("eval_"): value for name, value in metrics[part].items()}
        scores["this model"] = {name: values[name] for name in score_names if name in values}
    run = {
        **provenance(),
        "command": command(),
        "config": recorded_config(trainer.model.config),
        "base_model": recorded_name(base_model),
        "by_class": {name: found for name, found in by_class.items() if found},
        "data": {"split_by": data_args.split_by, "split_seed": data_args.split_seed}
        | {name: len(rows) for name, rows in task.splits.items()},
        "part": part,
        "scores": scores,
        "seed": trainer.args.seed,
        "seconds": round(seconds, 1),
        "validation": [entry for entry in trainer.state.log_history if "eval_loss" in entry],
    }
    write_run(run, trainer.args.output_dir, trainer.args.results_file)
    if scores:
        columns = [name for name in score_names if any(name in row for row in scores.values())]
        width = max(map(len, scores))
        print(f"\nOn the {len(splits[part])} {part} documents:")
        print(f"| {'':{width}} | " + " | ".join(f"{name:>8}" for name in columns) + " |")
        print(f"|-{'-' * width}-|" + "".join(f"-{'-' * max(8, len(name))}:|" for name in columns))
        for label, row in scores.items():
            cells = (
                f"{row[name]:{max(8, len(name))}.4f}" if name in row else " " * max(8, len(name)) for name in columns
            )
            print(f"| {label:{width}} | " + " | ".join(cells) + " |")
        if told := advice(scores, base_model is None, trainer.args):
            print(f"\n{told}")
    if by_class.get(part):
        print(f"\nBy class, on the {len(task.splits[part])} {part} documents:")
        print("\n".join(report_lines(by_class[part])))
    if "test" in metrics:
        print(f"\nThe predictions for the test documents are in {trainer.args.output_dir}/predict_results.tsv")
    model = trainer.args.output_dir if trainer.args.do_train else trainer.model.name_or_path
    print(f"\nThe model is in {model}; all figures are in {trainer.args.output_dir}/run.json")


def _labelled(rows: Dataset) -> Dataset:
    """Of a test part with labels, the rows that have one."""
    if "label" not in rows.column_names:
        return rows
    kept = [row for row, label in enumerate(rows["label"][:]) if label is not None]
    return rows if len(kept) == len(rows) else rows.select(kept)
