# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""A Trainer that evaluates a model by the answers it gives, and the record of its run."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from common.run_record import command, provenance, write_run
from training.model_choice import recorded_config, recorded_name
from training.qa_data import Encoded, Row
from training.qa_scores import SCORES, best_spans, mean_scores, score_answer


class QuestionAnsweringTrainer(Trainer):
    """Its predictions are `(rows, 3)`: a row's place, and the first and last token of its answer."""

    def __init__(self, *args: Any, max_answer_length: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.max_answer_length = max_answer_length

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Any]:
        inputs = self._prepare_inputs(inputs)
        row, first, stop = (inputs.pop(name) for name in ("row", "first", "stop"))
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        # All logits of many long contexts would fill the memory.
        spans = best_spans(*logits[:2], first, stop, self.max_answer_length)
        return loss, torch.cat((row.unsqueeze(1), spans), dim=1), labels


def answers_given(predictions: Any, rows: list[Row], encoded: Encoded) -> list[str]:
    """The text of each row's answer, from `(rows, 3)` predictions in any order."""
    firsts, given = encoded.data["first"][:], [""] * len(rows)
    for row, begin, end in predictions.tolist():
        offsets, first = encoded.offsets[row], firsts[row]
        given[row] = rows[row].context[offsets[begin - first][0] : offsets[end - first][1]].strip()
    return given


def make_metrics(rows: list[Row], encoded: Encoded):
    """The function that scores the Trainer's predictions of these rows."""

    def compute(prediction: Any) -> dict[str, float]:
        given = answers_given(prediction.predictions, rows, encoded)
        return mean_scores([score_answer(text, row.answers) for text, row in zip(given, rows)])

    return compute


def predict(trainer: Trainer, rows: list[Row], encoded: Encoded, part: str) -> dict[str, float]:
    """
    Writes the answers to `predict_predictions.json` (`eval_predictions.json` for validation), by id. Returns their
    scores where there are answers.
    """
    name = "predict" if part == "test" else "eval"
    trainer.compute_metrics = make_metrics(rows, encoded) if encoded.is_whole else None
    result = trainer.predict(encoded.data, metric_key_prefix=name)
    trainer.save_metrics(name, result.metrics)
    if trainer.is_world_process_zero():
        given = answers_given(result.predictions, rows, encoded)
        path = Path(trainer.args.output_dir) / f"{name}_predictions.json"
        answers = {row.id: text for row, text in zip(rows, given)}
        path.write_text(json.dumps(answers, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return {score: result.metrics[f"{name}_{score}"] for score in SCORES if f"{name}_{score}" in result.metrics}


def report(
    trainer: Trainer,
    encoded: dict[str, Encoded],
    scores: dict[str, dict[str, float]],
    seconds: float,
    limit: int,
    base_model: str | None,
) -> None:
    """Writes `run.json` and prints the scores: on the test questions, or on validation if those have no answers."""
    part = "test" if scores.get("test") else "validation"
    run = {
        **provenance(),
        "command": command(),
        "config": recorded_config(trainer.model.config),
        "base_model": recorded_name(base_model),
        "data": {"max_seq_length": limit}
        | {name: len(rows.data) for name, rows in encoded.items()}
        | {f"{name}_cut_off": rows.is_whole.count(False) for name, rows in encoded.items()},
        "part": part,
        "scores": {"this model": scores[part]} if scores.get(part) else {},
        "seed": trainer.args.seed,
        "seconds": round(seconds, 1),
        "validation": [entry for entry in trainer.state.log_history if "eval_loss" in entry],
    }
    write_run(run, trainer.args.output_dir, trainer.args.results_file)
    for name, found in scores.items():
        told = ", ".join(f"{score} {value:.4f}" for score, value in found.items())
        if told:
            print(f"On the {len(encoded[name].data)} {name} questions: {told}")
    model = trainer.args.output_dir if trainer.args.do_train else trainer.model.name_or_path
    print(f"The model is in {model}; all figures are in {trainer.args.output_dir}/run.json")
