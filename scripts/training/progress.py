# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What a run tells while it goes: few lines, among them the model's size, the device, and the time that it will take."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import torch
import transformers
from transformers import TrainerCallback


MANY_DOCUMENTS = 20_000  # a bar for less is gone before it is read
FIRST_STEPS = 10


def quiet_libraries() -> None:
    """No bars for what takes a moment: reading files, numbering labels, loading and writing weights."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def bars_where_long(num_documents: int) -> Iterator[None]:
    """Bars of `datasets.map` for so many documents, if they take long."""
    if num_documents >= MANY_DOCUMENTS:
        datasets.enable_progress_bars()
    try:
        yield
    finally:
        datasets.disable_progress_bars()


def someone_looks_on() -> bool:
    """A bar of steps is for people; a file gets lines."""
    return sys.stderr.isatty()


@contextmanager
def without_load_report(unless: bool = False) -> Iterator[None]:
    """The library tells at length that a new head is new."""
    before = transformers.logging.get_verbosity()
    if not unless:
        transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def readable_time(seconds: float) -> str:
    """In the unit that a reader wants."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Announcements(TrainerCallback):
    """Tells size, device and steps when training begins, and after its first steps how long it will take."""

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        device = args.device.type
        where = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
        processes = f", {args.world_size} processes" if args.world_size > 1 else ""
        steps = state.max_steps - state.global_step
        print(f"Training {parameters:,} parameters on {where}{processes}: {steps} steps", flush=True)
        self.begun, self.first = None, state.global_step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        done = state.global_step - self.first
        if done == 1:  # the slowest, so it does not count
            self.begun = time.monotonic()
        elif done == FIRST_STEPS and self.begun is not None:
            step = (time.monotonic() - self.begun) / (done - 1)
            left = readable_time(step * (state.max_steps - state.global_step))
            print(f"About {left} of training to go, {step:.2g} seconds a step; evaluations come on top", flush=True)
