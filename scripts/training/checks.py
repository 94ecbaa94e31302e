# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What the Trainer would find out with a traceback, some of it after hours: refused in one line before training."""

import difflib
from collections.abc import Iterable

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from common.errors import UserError


def check_training(args: TrainingArguments, metrics: Iterable[str]) -> None:
    """
    Args:
        metrics: the names of the scores of an evaluation.

    Raises:
        UserError: a tracker is not installed, or flags that do not go with each other or with these scripts.
    """
    _check_trackers(args.report_to)
    if args.batch_eval_metrics:
        raise UserError(
            "--batch_eval_metrics is not supported: the scores are of all documents together. To save memory in an "
            "evaluation, give a smaller --per_device_eval_batch_size."
        )
    if args.prediction_loss_only:
        raise UserError("--prediction_loss_only leaves no scores to choose the best checkpoint by; leave it out.")
    if not 0 <= args.label_smoothing_factor < 1:
        raise UserError(f"--label_smoothing_factor must be from 0 to below 1, got {args.label_smoothing_factor}.")
    if getattr(args, "early_stopping_patience", None) and not args.load_best_model_at_end:
        raise UserError("--early_stopping_patience needs --load_best_model_at_end: it keeps the best model.")
    known = [*metrics, "loss"]
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in known:
        close = [name for name in known if metric in name] or difflib.get_close_matches(metric, known, 1)
        told = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"--metric_for_best_model {metric}: an evaluation here has {', '.join(known)}.{told}")


def _check_trackers(names: str | list[str] | None) -> None:
    names = [names] if isinstance(names, str) else names or []
    available = get_available_reporting_integrations()
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(
                f"--report_to {name} is not known; there are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        if name not in available and name != "flyte":
            raise UserError(
                f"--report_to {name}: {name} is not installed. Install it (pip install {name}), or leave the flag out."
            )


def make_paddable(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> None:
    """
    Documents of several lengths in one batch need padding. A tokenizer without it, as GPT-2's, pads with its end of text;
    the model then is told so.

    Raises:
        UserError: it has no end of text either.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(
                "the tokenizer has no padding token, which batches of documents need, and no end of text to take for it: "
                "name another with --tokenizer_name."
            )
        tokenizer.pad_token = tokenizer.eos_token
        print(f"The tokenizer has no padding token; its end of text, {tokenizer.eos_token}, is taken for it.")
    if config is not None and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
