# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Shared by `run_clm.py` and `run_mlm.py`: flags, training, evaluation, and comparison with other attention."""

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

from common.errors import UserError
from common.run_record import COMMIT, command, provenance, write_json, write_run
from training.adapters import AdapterArguments, merge_and_save, with_adapters
from training.checks import check_training
from training.defaults import SmallModelTrainingArguments, choose_learning_rate
from training.flags import parse, training_flags
from training.language_data import LanguageModelingDataArguments, load_documents, to_chunks
from training.model_choice import (
    ModelArguments,
    dataset_options,
    load_config,
    load_tokenizer,
    load_weights,
    longest_input,
    recorded_config,
    recorded_name,
)
from training.progress import Announcements, quiet_libraries
from training.resuming import TrainingTimer, find_checkpoint, is_resuming, resumes_from_last_checkpoint, train_and_save
from training.texts import texts_of


@dataclass
class LanguageModelingTrainingArguments(SmallModelTrainingArguments):
    output_dir: str | None = field(default="runs/language_model", metadata={"help": "Where the model goes."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate; pretrained: 1e-4."})
    num_train_epochs: float = field(default=2, metadata={"help": "Passes over the training text."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Chunks per step and device."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up; below 1: a share of all steps."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between log lines."})
    compare_with: str | None = field(
        default=None,
        metadata={
            "help": "Layer types, by commas, such as local_attention,full_attention: trains the same model with them "
            "too, at equal parameters, and prints all in one table."
        },
    )


@dataclass
class Objective:
    """The parts that differ between kinds of language models."""

    auto_class: type
    small_model: dict[str, Any]  # a model that two CPU cores train in minutes
    collator: Callable  # (tokenizer, *extra arguments) -> collator for training
    prepare_evaluation: Callable  # (rows, tokenizer) -> rows that the evaluation collator takes
    evaluation_collator: Callable  # tokenizer -> collator
    count: Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> (B, 3): summed loss, predictions, hits per row
    scores: Callable[[float, float, float], dict[str, float]]  # (mean loss, accuracy, tokens per byte) -> scores
    loss: Callable[[float], Callable | None] = lambda smoothing: None  # label smoothing -> loss; None: the library's
    sample: Callable[..., dict[str, str]] | None = None  # (model, tokenizer, held-out rows) -> a prompt and its text


SMALL_MODEL = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "block_size": 64,
}


class PadWithLabels:
    """
    Pads rows on the right. In rows without labels every token is predicted, including the end of a text:
    `DataCollatorForLanguageModeling` would leave that out if it is also the padding token, as in GPT-2.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *arguments):
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked anyway

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        fillers = {"input_ids": self.pad_token_id, "labels": -100, "attention_mask": 0}
        rows = [{"labels": row["input_ids"], **row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            name: torch.tensor([list(row[name]) + [filler] * (length - len(row[name])) for row in rows])
            for name, filler in fillers.items()
        }


def causal_scores(loss: float, accuracy: float, tokens_per_byte: float) -> dict[str, float]:
    return {"perplexity": math.exp(loss), "bits_per_byte": bits_per_byte(loss, tokens_per_byte), "accuracy": accuracy}


def main(objective: Objective, extra_arguments: tuple[type, ...] = (), chunk_length: Callable = lambda *args: 1024):
    """The program. `chunk_length(*extra)` reads the length from the parsed extra arguments."""
    model_args, data_args, training_args, adapter_args, *extra, given = parse(
        ModelArguments,
        LanguageModelingDataArguments,
        LanguageModelingTrainingArguments,
        AdapterArguments,
        *extra_arguments,
    )
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    check_training(training_args, objective.scores(1.0, 1.0, 1.0))
    # Both raise before anything is written.
    checkpoint = find_checkpoint(training_args, training_args.overwrite_output_dir)
    if training_args.compare_with:
        check_comparison(model_args, training_args)
    documents = load_documents(data_args, dataset_options(model_args))
    tokenizer = load_tokenizer(model_args, texts_of(documents["train"]), checkpoint)
    config = load_config(model_args, tokenizer, objective.small_model)
    variants = variants_of(config, training_args)
    length, longest = chunk_length(*extra), longest_input(config, tokenizer)
    if longest is not None and length > longest and not data_args.keep_documents:
        raise UserError(
            f"chunks of {length} tokens are longer than the {longest} that the model accepts: use shorter ones."
        )
    chunks, rates = to_chunks(documents, tokenizer, length, data_args)

    records = {}
    for name, variant in variants.items():
        args = training_args
        if name != "this model":
            args = copy.copy(training_args)
            args.output_dir = str(Path(training_args.output_dir) / "compare" / name)
            args.push_to_hub = False
        collator = objective.collator(tokenizer, *extra)
        records[name] = train_and_evaluate(
            objective, model_args, args, adapter_args, variant, tokenizer, chunks, rates, collator, given
        )
    if training_args.process_index == 0:
        base_model = recorded_name(model_args.model_name_or_path)
        report(records, training_args, data_args, chunks, config, base_model)


def check_comparison(model_args: ModelArguments, training_args: LanguageModelingTrainingArguments) -> None:
    """
    Raises:
        UserError: the compared models would not start in the same way.
    """
    if model_args.model_name_or_path:
        raise UserError(
            "--compare_with trains each model from scratch; --model_name_or_path has the weights of one. Name its "
            "configuration with --config_name and its tokenizer with --tokenizer_name instead."
        )
    if is_resuming(training_args) and not resumes_from_last_checkpoint(training_args):
        raise UserError(
            "--compare_with: a checkpoint belongs to one of the models; --resume_from_checkpoint last finds each "
            "one's."
        )


def variants_of(
    config: PreTrainedConfig, training_args: LanguageModelingTrainingArguments
) -> dict[str, PreTrainedConfig]:
    """
    The configuration by name, and the same with other attention. The parameters of a missing SortNet go to the
    feed-forward network, so that all models have the same size.

    Raises:
        UserError: the layer type is unknown, or the model is not a Sinkhorn model.
    """
    variants = {"this model": config}
    for layer_type in filter(None, (training_args.compare_with or "").split(",")):
        if config.model_type != "sinkhorn":
            raise UserError("--compare_with changes the layers of a Sinkhorn model, but the model is another one.")
        try:
            variant = copy.deepcopy(config)
            variant.layer_types = [layer_type] * config.num_hidden_layers
            variant.validate()
        except Exception as error:
            raise UserError(f"--compare_with: {' '.join(str(error).split())}") from None
        spare = _sort_net_parameters(config) - _sort_net_parameters(variant)
        variant.intermediate_size += round(spare / (3 * config.hidden_size * config.num_hidden_layers))
        variants[layer_type] = variant
    return variants


def _sort_net_parameters(config: PreTrainedConfig) -> int:
    layers = sum(name not in ("local_attention", "full_attention") for name in config.layer_types)
    if config.sort_net == "bilinear":
        return layers * 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
    if config.sort_net in ("keys", "index"):
        width = config.index_head_dim if config.sort_net == "index" else 0
        heads = config.num_key_value_heads + (config.num_attention_heads if config.merges_index_heads else 0)
        return layers * heads * config.head_dim * width
    hidden = config.hidden_size**2 if config.sort_net == "mlp" else 0
    return layers * (hidden + config.hidden_size * config.num_key_value_heads * config.max_num_blocks)


def train_and_evaluate(
    objective: Objective,
    model_args: ModelArguments,
    args: LanguageModelingTrainingArguments,
    adapter_args: AdapterArguments,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    chunks: DatasetDict,
    rates: dict[str, float],
    collator: Callable,
    given: dict[str, Any],
) -> dict[str, Any]:
    """
    Trains and evaluates one model in `args.output_dir`. Returns its record, or the one that is already there.

    Raises:
        UserError: the record there has other flags.
    """
    scores_file = Path(args.output_dir) / "scores.json"
    if args.do_train and is_resuming(args) and scores_file.exists():
        record = json.loads(scores_file.read_text(encoding="utf-8"))
        if record.get("flags") != training_flags(given):
            raise UserError(
                f"{scores_file} belongs to a finished run with the flags {record.get('flags')}; now they are "
                f"{training_flags(given)}. Name another --output_dir, or replace it with --overwrite_output_dir "
                "without --resume_from_checkpoint."
            )
        return record
    checkpoint = find_checkpoint(args, args.overwrite_output_dir)
    set_seed(args.seed)
    started, timer = time.time(), TrainingTimer()
    model = load_weights(model_args, objective.auto_class, config)
    choose_learning_rate(args, given, model_args.model_name_or_path, model)
    parameters, config = model.num_parameters(), model.config
    model = with_adapters(model, adapter_args)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=chunks["train"],
        eval_dataset=objective.prepare_evaluation(chunks["validation"], tokenizer),
        processing_class=tokenizer,
        data_collator=_CollatorByMode(collator, objective.evaluation_collator(tokenizer)),
        callbacks=[timer, Announcements()],
        compute_loss_func=objective.loss(args.label_smoothing_factor),
        preprocess_logits_for_metrics=lambda logits, labels: objective.count(
            logits[0] if isinstance(logits, tuple) else logits, labels
        ),
        compute_metrics=lambda prediction: _scores(objective, prediction.predictions, rates["validation"]),
    )
    if args.do_train:
        train_and_save(trainer, given, checkpoint)
        if adapter_args.use_peft:
            model = trainer.model = merge_and_save(trainer, tokenizer)
    record = {"parameters": parameters, "config": recorded_config(config), "scores": {}}
    record |= {"commit": COMMIT, "flags": training_flags(given)}
    record["train_seconds"] = round(timer.earlier + time.time() - started, 1)
    parts = [part for part in ("validation", "test") if part in chunks and (args.do_eval or args.do_predict)]
    for part in parts:
        rows = objective.prepare_evaluation(chunks[part], tokenizer)
        output = trainer.predict(rows, metric_key_prefix=part)
        record["scores"][part] = _scores(objective, output.predictions, rates[part])
        trainer.save_metrics(part, {f"{part}_{name}": value for name, value in record["scores"][part].items()})
    if objective.sample and parts:
        record["sample"] = objective.sample(model, tokenizer, chunks[parts[-1]])
    record["log"] = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if trainer.is_world_process_zero():
        write_json(scores_file, record)
    if args.push_to_hub:
        trainer.push_to_hub()
    return record


class _CollatorByMode:
    """One collator for training and one for evaluation. Rows for evaluation already have labels."""

    def __init__(self, train: Callable, evaluate: Callable):
        self.train, self.evaluate = train, evaluate

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        return (self.evaluate if "labels" in rows[0] else self.train)(rows)


def _scores(objective: Objective, counts, tokens_per_byte: float) -> dict[str, float]:
    loss, predictions, hits = counts.sum(0)
    return objective.scores(float(loss / predictions), float(hits / predictions), tokens_per_byte)


def count_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """`(B, 3)`: summed loss, number of predictions and number of hits of each row. A label of -100 is ignored."""
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
    hits = (logits.argmax(-1) == labels) & (labels != -100)
    return torch.stack((losses.sum(1), (labels != -100).sum(1), hits.sum(1)), dim=1)


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """From the mean loss of a token, in nats."""
    return loss * tokens_per_byte / math.log(2)


def report(
    records: dict[str, dict],
    training_args: LanguageModelingTrainingArguments,
    data_args,
    chunks: DatasetDict,
    config,
    base_model: str | None,
) -> None:
    """Writes `run.json`, and prints a table of all models on the test text (or else on validation)."""
    part = "test" if "test" in chunks else "validation"
    run = {
        **provenance(),
        "command": command(),
        "base_model": base_model,
        "data": {"split_seed": data_args.split_seed} | {name: len(rows) for name, rows in chunks.items()},
        "part": part,
        "seed": training_args.seed,
        "models": records,
    }
    write_run(run, training_args.output_dir, training_args.results_file)
    rows = {name: record["scores"].get(part, {}) for name, record in records.items()}
    columns = list(next(iter(rows.values())))
    if columns:
        names = {"this model": "+".join(dict.fromkeys(getattr(config, "layer_types", ["this model"])))}
        width = max(len(names.get(name, name)) for name in rows)
        print(f"\nOn the {part} text:")
        print(f"| {'':{width}} | parameters | " + " | ".join(f"{name:>13}" for name in columns) + " | seconds |")
        print(f"|-{'-' * width}-|-----------:|" + "".join(f"-{'-' * 13}:|" for _ in columns) + "--------:|")
        for name, scores in rows.items():
            cells = " | ".join(f"{scores[column]:13.4f}" for column in columns)
            record = records[name]
            print(
                f"| {names.get(name, name):{width}} | {record['parameters']:10d} | {cells} | "
                f"{record['train_seconds']:7.0f} |"
            )
    if "sample" in records["this model"]:
        print("\nContinuing a held-out text (the model's words after the bar):\n")
        print("{prompt} | {text}".format(**records["this model"]["sample"]))
    print(f"\nThe model is in {training_args.output_dir}; all figures are in {training_args.output_dir}/run.json")
