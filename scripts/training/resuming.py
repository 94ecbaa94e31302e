# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Resuming an interrupted run, and never overwriting an earlier one by mistake."""

import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from common.errors import UserError
from training.flags import record_model_and_data


class TrainingTimer(TrainerCallback):
    """
    Adds up the seconds of training across interruptions, and stops with a checkpoint after a deadline.

    Attributes:
        earlier: seconds of training before this process.
        seconds: total seconds of training.
    """

    def __init__(self, deadline: float | None = None):
        self.deadline = deadline  # of time.monotonic()
        self.seconds = self.earlier = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # The log is part of a checkpoint, so it has the seconds before an interruption.
        self.seconds = self.earlier = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self.last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now = time.monotonic()
        self.seconds, self.last = self.seconds + now - self.last, now
        if self.deadline is not None and now > self.deadline and state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, **kwargs) -> None:
        state.log_history[-1]["seconds"] = self.seconds


def find_checkpoint(training_args: TrainingArguments, overwrite: bool) -> str | None:
    """
    The checkpoint to resume from.

    Raises:
        UserError: an earlier run would be overwritten without being asked to.
    """
    output_dir = Path(training_args.output_dir)
    if not training_args.do_train:
        if (output_dir / "train_results.json").exists() and not overwrite:
            raise UserError(
                f"--output_dir {output_dir} holds a training run; its run.json would be replaced. Name another folder "
                "for an evaluation (--model_name_or_path names the model), or give --overwrite_output_dir."
            )
        return None
    if not is_resuming(training_args):
        if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
            raise UserError(
                f"--output_dir {output_dir} is not empty. Resume its run with --resume_from_checkpoint last, replace "
                "it with --overwrite_output_dir, or name another folder."
            )
        return None
    if not resumes_from_last_checkpoint(training_args):
        if not Path(training_args.resume_from_checkpoint).is_dir():
            raise UserError(f"--resume_from_checkpoint: there is no folder {training_args.resume_from_checkpoint}.")
        return training_args.resume_from_checkpoint
    checkpoint = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
    if checkpoint is None:
        print(f"No checkpoint in {output_dir} yet: starting from the beginning.")
    return checkpoint


def is_resuming(training_args: TrainingArguments) -> bool:
    """Whether the run should resume."""
    return training_args.resume_from_checkpoint not in (None, "False", "false")


def resumes_from_last_checkpoint(training_args: TrainingArguments) -> bool:
    """Whether it should resume from the last checkpoint of its own folder."""
    return str(training_args.resume_from_checkpoint).lower() in ("true", "last")


def train_and_save(trainer: Trainer, given: dict[str, Any], checkpoint: str | None) -> None:
    """Trains from the start or from `checkpoint`. Saves the model, its metrics and the Trainer's state."""
    record_model_and_data(given, trainer.args, is_resuming(trainer.args))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
