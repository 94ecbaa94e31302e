# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The Trainer's flags, with defaults for a small model from scratch."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from training.progress import someone_looks_on


PRETRAINED_LEARNING_RATE = 1e-4
SMALL = 10_000_000  # parameters; the shipped models have a third of it


@dataclass
class SmallModelTrainingArguments(TrainingArguments):
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Rows per step and device in evaluation."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best on validation."})
    report_to: str = field(default="none", metadata={"help": "Trackers."})
    # No `default_factory`: the parser takes False for that of a switch.
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Pin memory; by default where a GPU is."}
    )
    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "No bar of steps; by default where nobody looks on, as in a file."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})
    results_file: str | None = field(default=None, metadata={"help": "Write run.json here as well."})

    def __post_init__(self) -> None:
        if self.disable_tqdm is None:
            self.disable_tqdm = not someone_looks_on()
        super().__post_init__()


def choose_learning_rate(
    args: TrainingArguments, given: dict[str, Any], name: str | None, model: PreTrainedModel
) -> None:
    """
    A lower rate for a pretrained model of another type, or a large one, where no flag names one. The default is for small
    models, and many times what is usual for others.
    """
    if name is None or "learning_rate" in given or not args.do_train or args.learning_rate <= PRETRAINED_LEARNING_RATE:
        return
    if model.config.model_type == "sinkhorn" and model.num_parameters() <= SMALL:
        return
    print(
        f"{name} is pretrained: the learning rate is {PRETRAINED_LEARNING_RATE:g} instead of {args.learning_rate:g}; "
        "--learning_rate says otherwise."
    )
    args.learning_rate = PRETRAINED_LEARNING_RATE
