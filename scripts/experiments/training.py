# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""One run: trains a model with the Trainer, resuming from its checkpoint, and scores it."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.trainer_utils import get_last_checkpoint

from common.model_settings import recorded_settings
from common.run_record import provenance
from experiments.descriptors import causal_descriptor
from experiments.evenness import evenness
from experiments.models import make_model, parameters
from experiments.plan import Run
from experiments.tasks import TaskData, load_task
from training.defaults import SmallModelTrainingArguments
from training.resuming import TrainingTimer


DEFAULTS = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.1,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "bf16": False,
}
CURVE_POINTS, VALIDATIONS, CHECKPOINTS = 40, 4, 6  # in a run


def execute(
    run: Run,
    work_dir: Path,
    deadline: float | None = None,
    imdb_folder: str | None = None,
    keep_model: bool = False,
) -> dict[str, Any] | None:
    """
    The record of the run, or `None` if the deadline passed before its end: the next call resumes it.

    Args:
        work_dir: for checkpoints; emptied when the run is done, except for the model if `keep_model`.
    """
    with causal_descriptor(run.settings.get("descriptor")):
        return _execute(run, work_dir, deadline, imdb_folder, keep_model)


def _execute(
    run: Run, work_dir: Path, deadline: float | None, imdb_folder: str | None, keep_model: bool
) -> dict[str, Any] | None:
    settings = run.settings
    task = load_task(settings["task"], settings["data"], run.seed, settings["training"], imdb_folder)
    model = make_model(settings["as"], settings["model"] | task.config, task.longest, task.auto_class, run.seed)
    folder = work_dir / run.work_folder
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    timer = TrainingTimer(deadline)
    trainer = make_trainer(run, task, model, folder, timer)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < trainer.args.max_steps:
        return None
    started = time.monotonic()
    if settings["serve"]:
        # The Trainer's accelerator gives it the same number type as an unchanged model.
        trainer.model = trainer.model_wrapped = trainer.accelerator.prepare_model(
            with_changed_config(model, settings["serve"]), evaluation_mode=True
        )
    scores = {part: score(trainer, task, rows) for part, rows in task.tests.items()}
    if getattr(model.config, "sort_granularity", "block") == "token":
        rows = next(iter(task.tests.values()))
        some = [rows[index] for index in range(min(len(rows), trainer.args.per_device_eval_batch_size))]
        scores["routing"] = evenness(trainer.model, task.collate(some))
    record = {
        **provenance(),
        "experiment": run.experiment,
        "budget": run.budget,
        "condition": run.condition,
        "model": run.model,
        "seed": run.seed,
        "command": run.command,
        "settings": settings,
        "config": recorded_settings(model.config, "id2label", "label2id"),
        "data": task.facts,
        "training": {name: getattr(trainer.args, name) for name in (*DEFAULTS, "per_device_train_batch_size")},
        "steps": trainer.state.global_step,
        "parameters": parameters(model),
        "parameters_with_positions": model.num_parameters(),
        "curve": curve(trainer.state.log_history),
        "scores": scores,
        "seconds": round(timer.seconds, 1),
        "evaluation_seconds": round(time.monotonic() - started, 1),
    }
    record["training"]["lr_scheduler_type"] = str(getattr(trainer.args.lr_scheduler_type, "value", "")) or None
    if keep_model:
        trainer.save_model(str(folder / "model"))
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def make_trainer(run: Run, task: TaskData, model: PreTrainedModel, folder: Path, timer: TrainingTimer) -> Trainer:
    training = DEFAULTS | run.settings["training"]
    steps = training["max_steps"]
    args = SmallModelTrainingArguments(
        output_dir=str(folder),
        **training,
        per_device_eval_batch_size=training["per_device_train_batch_size"],
        use_cpu=not torch.cuda.is_available(),
        seed=run.seed,
        logging_strategy="steps",
        logging_steps=-(-steps // CURVE_POINTS),
        eval_strategy="steps",
        eval_steps=-(-steps // VALIDATIONS),
        save_strategy="steps",
        save_steps=-(-steps // CHECKPOINTS),
        save_total_limit=1,
        load_best_model_at_end=False,  # equal steps for all; a best step by validation would favour the noisy
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=task.train,
        eval_dataset=task.validation,
        data_collator=task.collate,
        preprocess_logits_for_metrics=task.reduce,
        compute_metrics=lambda prediction: {
            name: value
            for name, value in task.score(prediction.predictions, prediction.label_ids, task.validation).items()
            if not isinstance(value, list)
        },
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def score(trainer: Trainer, task: TaskData, rows: Any) -> dict[str, Any]:
    trainer.compute_metrics = None  # it only knows the validation rows
    output = trainer.predict(rows)
    return {"loss": output.metrics["test_loss"], **task.score(output.predictions, output.label_ids, rows)}


def with_changed_config(model: PreTrainedModel, changes: dict[str, Any]) -> PreTrainedModel:
    """The trained weights under a changed configuration, such as hard sorting after soft training."""
    config = model.config.__class__(**(model.config.to_dict() | changes))
    other = model.__class__(config)
    other.load_state_dict(model.state_dict())
    return other.to(model.device)


def curve(log: list[dict]) -> dict[str, list]:
    """`train`: `[step, mean loss since the last]`; `validation`: the step and its scores."""
    validation = [
        {"step": entry["step"]}
        | {
            name.removeprefix("eval_"): value
            for name, value in entry.items()
            if name.startswith("eval_") and not name.endswith(("runtime", "per_second"))
        }
        for entry in log
        if "eval_loss" in entry
    ]
    return {"train": [[entry["step"], entry["loss"]] for entry in log if "loss" in entry], "validation": validation}
