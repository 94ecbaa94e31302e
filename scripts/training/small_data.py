# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Defaults for a user's own documents, which are often few: where to start from, how many passes, which weights to keep, and
what to try next.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from common.errors import UserError
from training.model_choice import ModelArguments


ENCODER = Path(__file__).resolve().parents[2] / "checkpoints" / "sinkhorn-books-encoder"
# Who gives one of these has a model of their own in mind.
MODEL_FLAGS = {
    "model_name_or_path",
    "model_type",
    "config_name",
    "config_overrides",
    "tokenizer_name",
    "train_tokenizer_vocab_size",
}
LEAST_STEPS = 200
MOST_PASSES = 30
# The accuracy on fewer documents than these is off by 3 points and more.
ENOUGH_TO_CHOOSE = 100

# Words that every kind of English text is full of, and that other languages have few of.
ENGLISH = set("the of and to is was for that with are this be by from not you have has which we our it".split())
ENGLISH_SHARE = 0.08


@dataclass
class ModelOfOwnDataArguments(ModelArguments):
    from_scratch: bool = field(
        default=False,
        metadata={"help": "No pretrained weights, where the encoder that ships would be taken for your own file."},
    )

    classifier_pooling: str | None = field(
        default=None,
        metadata={
            "help": "mean: the class is read from all tokens, the mean of what each says; cls: from the first one. "
            "Default: as the model's type does."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_scratch and self.model_name_or_path:
            raise UserError("give --from_scratch or --model_name_or_path, not both; --config_name has no weights.")


def looks_english(texts: Iterable[str], most_words: int = 20_000) -> bool:
    """By the share of the commonest words."""
    words: list[str] = []
    for text in texts:
        words += re.findall(r"[^\W\d_]+", text[:5000].lower())
        if len(words) > most_words:
            break
    return bool(words) and sum(word in ENGLISH for word in words) >= ENGLISH_SHARE * len(words)


def choose_start(
    model_args: ModelOfOwnDataArguments, given: dict[str, Any], texts: Iterable[str], checkpoint: str | None = None
) -> bool:
    """
    Whether a model of the user's own documents starts from the encoder that ships, since the flags name no other. Says
    so. A run that goes on does as it began.
    """
    if model_args.from_scratch or given.keys() & MODEL_FLAGS or not (ENCODER / "model.safetensors").is_file():
        return False
    if checkpoint is not None:
        begun, ours = (
            json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")) for folder in (checkpoint, ENCODER)
        )
        sizes = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
        chosen = all(begun.get(name) == ours[name] for name in sizes)
    else:
        chosen = looks_english(texts)
    if chosen:
        model_args.model_name_or_path, model_args.config_overrides = str(ENCODER), "hidden_dropout=0.1"
        print(f"Starting from {ENCODER.name}, which has read English; --from_scratch starts from nothing.")
    elif checkpoint is None:
        print(
            f"Starting from scratch: the texts do not look English, which {ENCODER.name} reads. A pretrained model for "
            "them is named by --model_name_or_path."
        )
    return chosen


def choose_passes(args: TrainingArguments, given: dict[str, Any], num_documents: int) -> None:
    """More passes over few documents, where the flags name none: a few dozen steps leave a model at guessing."""
    if given.keys() & {"num_train_epochs", "max_steps"} or not args.do_train:
        return
    together = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = math.ceil(num_documents / together)
    passes = min(MOST_PASSES, math.ceil(LEAST_STEPS / steps))
    if passes > args.num_train_epochs:
        print(
            f"{num_documents} documents are few: {passes} passes over them instead of {args.num_train_epochs:g}; "
            "--num_train_epochs says otherwise."
        )
        args.num_train_epochs = passes


def choose_checkpoint(args: TrainingArguments, given: dict[str, Any], num_validation: int) -> None:
    """
    For a start from the encoder, the last weights instead of the best on a few validation documents, where no flag is about
    the best: the best is the luckiest, and can be that of the first pass. A model from scratch ends worse than it was more
    often.
    """
    about_the_best = {"load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"}
    if not args.load_best_model_at_end or given.keys() & about_the_best or num_validation >= ENOUGH_TO_CHOOSE:
        return
    print(
        f"{num_validation} validation documents are too few to tell which pass was the best: the last one is kept; "
        "--load_best_model_at_end says otherwise."
    )
    args.load_best_model_at_end = False


def advice(scores: dict[str, dict[str, float]], from_scratch: bool, args: TrainingArguments) -> str | None:
    """A line where the words alone do better than the model, with what to try next."""
    ours = scores.get("this model", {})
    bags = {name: row for name, row in scores.items() if name.startswith("TF-IDF")}
    if not bags or "accuracy" not in ours:
        return None
    best = max(bags.values(), key=lambda row: (row["accuracy"], row["macro_f1"]))
    if (best["accuracy"], best["macro_f1"]) <= (ours["accuracy"], ours["macro_f1"]):
        return None
    guessing = ours["accuracy"] <= scores.get("majority class", {}).get("accuracy", 0)
    lead = "The model only guesses the largest class, and a" if guessing else "A"
    tries = [f"--num_train_epochs {2 * math.ceil(args.num_train_epochs)}"]
    if ours["macro_f1"] < ours["accuracy"] - 0.05 and getattr(args, "class_weights", "none") == "none":
        tries.append("--class_weights balanced")
    tries.append(
        "--model_name_or_path with a pretrained encoder" if from_scratch else "another encoder (--model_name_or_path)"
    )
    return (
        f"{lead} bag of words is better here (accuracy {best['accuracy']:.3f}, this model {ours['accuracy']:.3f}): single "
        f"words tell the classes. Try {', '.join(tries)}; or take the bag of words."
    )
