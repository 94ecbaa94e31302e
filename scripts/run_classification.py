# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes and evaluates a classifier of long documents with the Trainer, under the flags of Transformers' own
`run_classification.py`. Without flags but the output folder: the shipped State of the Union task, a small Sinkhorn
model from scratch, whole documents.

    python scripts/run_classification.py --output_dir runs/sotu
    python scripts/run_classification.py --output_dir runs/tiny --num_train_epochs 1 --max_train_samples 64 \\
        --config_overrides hidden_size=32,num_hidden_layers=1
    python scripts/run_classification.py --output_dir runs/mine --train_file train.csv --test_file test.csv \\
        --text_column_names title,body --label_column_name topic
    accelerate launch scripts/run_classification.py --output_dir runs/sotu --resume_from_checkpoint last
    torchrun --nproc_per_node 2 scripts/run_classification.py --output_dir runs/sotu --use_cpu
"""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import DatasetDict, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    set_seed,
)

from common.errors import UserError
from common.run_record import command, provenance, write_json
from training.baselines import baselines
from training.classification_data import Task, hold_out_validation, make_task, read_file, text_and_label
from training.defaults import SmallModelTrainingArguments
from training.flags import parse, remember
from training.model_choice import (
    ModelArguments,
    dataset_options,
    load_config,
    load_tokenizer,
    load_weights,
    longest_input,
)
from training.resuming import Clock, find_checkpoint, resumes
from training.shipped_data import load_passages


METRICS = Path(__file__).resolve().parent.parent / "metrics"
# A model that two CPU cores train in minutes.
SMALL_MODEL = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "block_size": 64,
    "hidden_dropout": 0.1,
    "initializer_range": 0.05,
}


@dataclass
class DataTrainingArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset for `load_dataset`."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "The same; default: a tenth of training."})
    test_file: str | None = field(default=None, metadata={"help": "The same."})
    train_split_name: str = field(default="train", metadata={"help": "Of --dataset_name."})
    validation_split_name: str = field(default="validation", metadata={"help": "Of --dataset_name."})
    test_split_name: str = field(default="test", metadata={"help": "Of --dataset_name."})
    text_column_names: str = field(default="text", metadata={"help": "Columns joined to the text, by commas."})
    text_column_delimiter: str = field(default=" ", metadata={"help": "Put between joined columns."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the label."})
    do_regression: bool = field(default=False, metadata={"help": "Labels are numbers to predict."})
    split_by: str = field(default="address", metadata={"help": "Shipped task: split by address or president."})
    split_seed: int = field(default=0, metadata={"help": "Shipped task and held-out validation: seed of the split."})
    max_seq_length: int | None = field(default=None, metadata={"help": "Tokens kept per document; default: all."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes for tokenising."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use this many documents, drawn at random."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for test."})
    skip_baselines: bool = field(default=False, metadata={"help": "No TF-IDF comparison."})

    def __post_init__(self) -> None:
        if self.split_by not in ("address", "president"):
            raise UserError(f"--split_by must be address or president, got {self.split_by}.")
        if self.dataset_name and self.train_file:
            raise UserError("give --dataset_name or --train_file, not both.")
        if (self.validation_file or self.test_file) and not self.train_file:
            raise UserError("--validation_file and --test_file need a --train_file, which names the classes.")
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} must be 1 or more, got {getattr(self, name)}; leave it out to use all.")


@dataclass
class ClassificationTrainingArguments(SmallModelTrainingArguments):
    output_dir: str | None = field(default="runs/classification", metadata={"help": "Where the model goes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=4, metadata={"help": "Passes over the training documents."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Documents per step and device."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1: a share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Order of documents."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without a better one."}
    )

    def __post_init__(self) -> None:
        metric = self.metric_for_best_model
        super().__post_init__()  # puts the loss where no metric is given
        self.metric_for_best_model = metric

    def choose_best_by(self, metric: str, given: dict) -> None:
        """The metric that picks the best checkpoint, and which way is better, where the flags `given` do not say."""
        self.metric_for_best_model = self.metric_for_best_model or metric
        if "greater_is_better" not in given:
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", "mse", "mae"))


def main() -> None:
    model_args, data_args, training_args, given = parse(
        ModelArguments, DataTrainingArguments, ClassificationTrainingArguments
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    checkpoint = find_checkpoint(training_args, training_args.overwrite_output_dir)
    set_seed(training_args.seed)
    started = time.time()

    task = load_task(data_args, dataset_options(model_args))
    for part, limit in (
        ("train", data_args.max_train_samples),
        ("validation", data_args.max_eval_samples),
        ("test", data_args.max_predict_samples),
    ):
        if limit is not None and part in task.splits:
            # Files are often sorted by label: the first rows alone would be of one class.
            shuffled = task.splits[part].shuffle(seed=data_args.split_seed)
            task.splits[part] = shuffled.select(range(min(limit, len(shuffled))))
    tokenizer = load_tokenizer(model_args, task.splits["train"]["text"], checkpoint)
    model = load_model(model_args, task, tokenizer)
    encoded = encode(task.splits, tokenizer, model.config, data_args)

    metric_name, compute_metrics = make_metrics(task)
    training_args.choose_best_by(metric_name, given)
    clock = Clock()
    callbacks = [clock]
    if training_args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(training_args.early_stopping_patience))
        training_args.restore_callback_states_from_checkpoint = True  # the patience that was used up
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"] if training_args.do_train else None,
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )
    if training_args.do_train:
        remember(given, training_args, resumes(training_args))
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    metrics = {}
    if training_args.do_eval:
        metrics["validation"] = trainer.evaluate()
        trainer.save_metrics("eval", metrics["validation"])
    if training_args.do_predict and "test" in encoded:
        metrics["test"] = predict(trainer, encoded["test"], task)
    if trainer.is_world_process_zero():
        report(trainer, task, data_args, metrics, clock.earlier + time.time() - started)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def load_task(data_args: DataTrainingArguments, hub_options: dict) -> Task:
    """The documents and labels that the flags name, checked. The test part may have no labels."""
    if data_args.dataset_name is None and data_args.train_file is None:
        return make_task(load_passages(data_args.split_by, data_args.split_seed), data_args.do_regression)
    raw = {}
    if data_args.dataset_name is not None:
        loaded = load_dataset(data_args.dataset_name, data_args.dataset_config_name, **hub_options)
        for part in ("train", "validation", "test"):
            if getattr(data_args, f"{part}_split_name") in loaded:
                raw[part] = loaded[getattr(data_args, f"{part}_split_name")]
        if "train" not in raw:
            raise UserError(
                f"{data_args.dataset_name} has no split '{data_args.train_split_name}' but {', '.join(loaded)}; name "
                "the right one with --train_split_name."
            )
    else:
        for part in ("train", "validation", "test"):
            if getattr(data_args, f"{part}_file"):
                raw[part] = read_file(getattr(data_args, f"{part}_file"))
    columns = data_args.text_column_names.split(",")
    splits = {
        part: text_and_label(
            data,
            columns,
            data_args.label_column_name,
            data_args.text_column_delimiter,
            f"the {part} data",
            may_lack_label=part == "test",
        )
        for part, data in raw.items()
    }
    if "validation" not in splits:
        splits["train"], splits["validation"] = hold_out_validation(
            splits["train"], data_args.split_seed, data_args.do_regression
        )
        print(f"No validation data given: {len(splits['validation'])} training documents are held out for it.")
    return make_task(DatasetDict(splits), data_args.do_regression)


def load_model(model_args: ModelArguments, task: Task, tokenizer):
    """A pretrained model with a head for the task, or a small one from scratch."""
    if task.label_names:
        labels = {
            "id2label": dict(enumerate(task.label_names)),
            "label2id": {name: index for index, name in enumerate(task.label_names)},
        }
    else:
        labels = {"num_labels": 1}
    config = load_config(model_args, tokenizer, SMALL_MODEL, problem_type=task.problem_type, **labels)
    return load_weights(model_args, AutoModelForSequenceClassification, config)


def encode(splits: DatasetDict, tokenizer, config, data_args: DataTrainingArguments) -> DatasetDict:
    """Tokenises whole documents, and says so where anything is cut. A cut document keeps its special tokens."""
    limit = min(filter(None, (data_args.max_seq_length, longest_input(config, tokenizer))), default=None)

    def tokenise(rows: dict) -> dict:
        whole = tokenizer(rows["text"], verbose=False)
        kept = whole if limit is None else tokenizer(rows["text"], truncation=True, max_length=limit, verbose=False)
        return {**kept, "tokens_uncut": [len(ids) for ids in whole["input_ids"]]}

    encoded = DatasetDict()
    for part, rows in splits.items():
        encoded[part] = rows.map(
            tokenise,
            batched=True,
            num_proc=data_args.preprocessing_num_workers,
            remove_columns=[name for name in rows.column_names if name != "label"],
            desc="Tokenising",
        )
        if "label" in rows.column_names:
            encoded[part] = encoded[part].rename_column("label", "labels")
        lengths = list(encoded[part]["tokens_uncut"])
        encoded[part] = encoded[part].remove_columns("tokens_uncut")
        print(
            f"{part}: {len(lengths)} documents, {np.median(lengths):.0f} tokens in the middle, {max(lengths)} at most"
        )
        cut = [length - limit for length in lengths if limit is not None and length > limit]
        if cut:
            print(f"  cut to {limit} tokens: {len(cut)} documents lose {sum(cut)} of {sum(lengths)} tokens")
    return encoded


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
            chosen = (logits > 0).astype(int)
            scores = {
                name: f1_of_sets.compute(predictions=chosen, references=labels.astype(int), average=name)["f1"]
                for name in ("micro", "macro")
            }
            return {"micro_f1": scores["micro"], "macro_f1": scores["macro"]}
        chosen = logits.argmax(-1)
        return {
            "accuracy": accuracy.compute(predictions=chosen, references=labels)["accuracy"],
            "macro_f1": f1.compute(predictions=chosen, references=labels, average="macro")["f1"],
        }

    names = {"regression": "mse", "multi_label_classification": "micro_f1"}
    return names.get(task.problem_type, "accuracy"), compute


def predict(trainer: Trainer, data, task: Task) -> dict[str, float]:
    """Writes a line for each test document to `predict_results.tsv`; its scores, where there are labels."""
    result = trainer.predict(data, metric_key_prefix="test")
    trainer.save_metrics("test", result.metrics)
    logits = result.predictions[0] if isinstance(result.predictions, tuple) else result.predictions
    logits = torch.from_numpy(logits).float()
    if trainer.is_world_process_zero():
        with open(Path(trainer.args.output_dir) / "predict_results.tsv", "w", encoding="utf-8") as file:
            if task.problem_type == "regression":
                print("index", "prediction", sep="\t", file=file)
                for index, value in enumerate(logits.flatten().tolist()):
                    print(index, f"{value:.6g}", sep="\t", file=file)
            else:
                several = task.problem_type == "multi_label_classification"
                print("index", "prediction", *(f"p({name})" for name in task.label_names), sep="\t", file=file)
                for index, row in enumerate((logits.sigmoid() if several else logits.softmax(-1)).tolist()):
                    best = max(range(len(row)), key=row.__getitem__)
                    chosen = [i for i, share in enumerate(row) if share > 0.5] if several else [best]
                    names = ",".join(task.label_names[i] for i in chosen)
                    print(index, names, *(f"{share:.4f}" for share in row), sep="\t", file=file)
    return {name.removeprefix("test_"): value for name, value in result.metrics.items()}


def report(trainer: Trainer, task: Task, data_args, metrics: dict[str, dict], seconds: float) -> None:
    """
    Writes `run.json`, and prints the model beside the baselines on the test documents, or on validation where those
    have no labels or are none. One process does it: nothing here may wait for the others.
    """
    part = "test" if "test" in metrics and "label" in task.splits["test"].column_names else "validation"
    scores = {}
    if task.problem_type == "single_label_classification" and not data_args.skip_baselines:
        scores = baselines(task.splits, part)
    shown = ("accuracy", "macro_f1", "micro_f1", "mse", "mae")
    if part in metrics:
        values = {name.removeprefix("eval_"): value for name, value in metrics[part].items()}
        scores["this model"] = {name: values[name] for name in shown if name in values}
    run = {
        **provenance(),
        "command": command(),
        "config": trainer.model.config.to_dict(),
        "data": {"split_by": data_args.split_by, "split_seed": data_args.split_seed}
        | {name: len(rows) for name, rows in task.splits.items()},
        "part": part,
        "scores": scores,
        "seed": trainer.args.seed,
        "seconds": round(seconds, 1),
        "validation": [entry for entry in trainer.state.log_history if "eval_loss" in entry],
    }
    for path in filter(None, (Path(trainer.args.output_dir) / "run.json", trainer.args.results_file)):
        write_json(Path(path), run)
    if scores:
        columns = [name for name in shown if any(name in row for row in scores.values())]
        width = max(map(len, scores))
        print(f"\nOn the {len(task.splits[part])} {part} documents:")
        print(f"| {'':{width}} | " + " | ".join(f"{name:>8}" for name in columns) + " |")
        print(f"|-{'-' * width}-|" + "".join(f"-{'-' * max(8, len(name))}:|" for name in columns))
        for label, row in scores.items():
            cells = (
                f"{row[name]:{max(8, len(name))}.4f}" if name in row else " " * max(8, len(name)) for name in columns
            )
            print(f"| {label:{width}} | " + " | ".join(cells) + " |")
    if "test" in metrics:
        print(f"\nThe predictions for the test documents are in {trainer.args.output_dir}/predict_results.tsv")
    print(f"\nThe model is in {trainer.args.output_dir}; all figures are in {trainer.args.output_dir}/run.json")


if __name__ == "__main__":
    main()
