# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The Trainer's flags, with defaults for a small model from scratch."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from training.progress import someone_looks_on


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
