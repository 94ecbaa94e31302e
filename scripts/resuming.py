# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Going on with an interrupted run, and never over an earlier one by mistake."""

from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from user_errors import UserError


def find_checkpoint(training_args: TrainingArguments, overwrite: bool) -> str | None:
    """The checkpoint to go on from. Raises where work of an earlier run would be overwritten unasked."""
    output_dir = Path(training_args.output_dir)
    if not training_args.do_train:
        return None
    resume = training_args.resume_from_checkpoint
    if resume is None or resume.lower() == "false":
        if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
            raise UserError(
                f"--output_dir {output_dir} is not empty. Go on with its run by --resume_from_checkpoint last, replace "
                "it by --overwrite_output_dir, or name another folder."
            )
        return None
    if resume.lower() not in ("true", "last"):
        if not Path(resume).is_dir():
            raise UserError(f"--resume_from_checkpoint: there is no folder {resume}.")
        return resume
    checkpoint = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
    if checkpoint is None:
        print(f"No checkpoint in {output_dir} yet: starting from the beginning.")
    return checkpoint
