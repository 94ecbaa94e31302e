# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
How does a SortNet learn where to look without a loss for it? Trains the needle encoder of `configs/needle.yaml` again,
and records how much weight its sort matrices give to the page with the answer, from the page that asks.

    python scripts/run_experiments.py routing
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from common.command_line import make_parser
from common.run_record import provenance, write_json
from experiments.models import make_model
from experiments.plan import Run, runs_of
from experiments.running import silence_libraries
from experiments.tasks import load_task, needle, pad
from experiments.training import TrainingTimer, curve, make_trainer


ROOT = Path(__file__).resolve().parents[2]


SHOWN_FRACTIONS = (0, 1 / 4, 3 / 8, 1)  # parts of the training after which a matrix is kept


class SortMatrixRecorder(TrainerCallback):
    """Reads held-out rows between steps, without noise, so that training does not change."""

    def __init__(self, rows: list[dict], data: dict, every: int):
        self.batch, self.every = pad(rows), every
        self.targets = torch.tensor([needle.target_pages(row["input_ids"], data)[0] for row in rows])
        self.points: list[dict[str, Any]] = []
        self.matrices: dict[int, list[Tensor]] = {}  # by step: of the first row, (G, N, N) for each layer

    @torch.no_grad()
    def record_matrices(self, model: PreTrainedModel, step: int) -> None:
        training = model.training
        model.eval()
        outputs = model(self.batch["input_ids"], output_sort_matrices=True)
        model.train(training)
        rows = torch.arange(len(self.targets))
        self.points.append(
            {
                "step": step,
                "accuracy": (outputs.logits.argmax(-1) == self.batch["labels"]).float().mean().item(),
                # Row 0 is the page that asks; a column is a source. A list for each layer, a number for each head.
                "weights": [matrix[rows, :, 0, self.targets].mean(0).tolist() for matrix in outputs.sort_matrices],
            }
        )
        self.matrices[step] = [matrix[0] for matrix in outputs.sort_matrices]

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.record_matrices(model, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % self.every == 0:
            self.record_matrices(model, state.global_step)


def train_and_record(run: Run, every: int, work_dir: Path) -> dict[str, Any]:
    """
    Trains as `execute` does. Returns the record, with the matrices of the head with the largest weight at the end.
    """
    settings = run.settings
    task = load_task(settings["task"], settings["data"], run.seed, settings["training"])
    model = make_model(settings["as"], settings["model"] | task.config, task.longest, task.auto_class, run.seed)
    recorder = SortMatrixRecorder(
        [task.validation[index] for index in range(len(task.validation))], settings["data"], every
    )
    trainer = make_trainer(run, task, model, work_dir, TrainingTimer())
    trainer.add_callback(recorder)
    trainer.train()
    last = torch.tensor(recorder.points[-1]["weights"])
    layer, head = divmod(int(last.argmax()), last.shape[1])
    end = recorder.points[-1]["step"]
    steps = sorted({round(end * part / every) * every for part in SHOWN_FRACTIONS})
    return {
        "settings": settings,
        "pages": settings["data"]["length"] // settings["data"]["page_tokens"],
        "rows": len(recorder.targets),
        "points": recorder.points,
        "curve": curve(trainer.state.log_history)["train"],
        "shown": {
            "layer": layer,
            "head": head,
            "page": int(recorder.targets[0]),
            "matrices": {
                str(step): [
                    [round(value, 3) for value in row] for row in recorder.matrices[step][layer][head].tolist()
                ]
                for step in steps
            },
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "run_experiments.py routing")
    parser.add_argument("--budget", choices=("full", "smoke"), default="full", help="smoke: a few steps.")
    parser.add_argument("--every", type=int, default=10, help="Steps between records.")
    parser.add_argument("--results_file", type=Path, default=ROOT / "results" / "experiments" / "routing.json")
    options = parser.parse_args(arguments)
    silence_libraries()
    (run,) = runs_of("needle", options.budget, seeds=[0], models=["soft"], conditions=["256"])
    with tempfile.TemporaryDirectory() as work_dir:
        recorded = train_and_record(run, options.every, Path(work_dir))
    command = ["scripts/run_experiments.py", "routing", "--budget", options.budget, "--every", str(options.every)]
    write_json(options.results_file, {**provenance(), "command": command, **recorded})
    for point in recorded["points"]:
        best = max(max(heads) for heads in point["weights"])
        print(f"step {point['step']:4}  accuracy {point['accuracy']:.3f}  largest weight of a head {best:.3f}")
