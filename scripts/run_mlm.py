# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Trains or fine-tunes a masked language model with the Trainer, with the flags of Transformers' own `run_mlm.py`. With
no flag but the output folder, it trains a small Sinkhorn encoder from scratch on the shipped State of the Union
addresses.

    python scripts/run_mlm.py --output_dir runs/mlm
    python scripts/run_mlm.py --output_dir runs/compare --compare_with local_attention,full_attention
    python scripts/run_mlm.py --output_dir runs/tiny --max_steps 20 --max_eval_samples 8 --max_seq_length 256 \\
        --config_overrides hidden_size=64,num_hidden_layers=1
    python scripts/run_classification.py --output_dir runs/sotu --model_name_or_path runs/mlm
"""

import math
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from common.errors import UserError
from training.checks import make_paddable
from training.language_modeling import SMALL_MODEL, Objective, PadWithLabels, count_tokens, main


@dataclass
class MaskingArguments:
    max_seq_length: int = field(default=1024, metadata={"help": "Tokens per chunk."})
    mlm_probability: float = field(
        default=0.15,
        metadata={"help": "Share of tokens to predict in training; evaluation masks 0.15, always the same."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.mlm_probability < 1:
            raise UserError(f"--mlm_probability must be between 0 and 1, got {self.mlm_probability}.")
        if self.max_seq_length < 1:
            raise UserError(f"--max_seq_length must be 1 or more, got {self.max_seq_length}.")


def masking(tokenizer: PreTrainedTokenizerBase, probability: float, seed: int | None = None):
    if tokenizer.mask_token is None:
        raise UserError("the tokenizer has no mask token: name one that has one with --tokenizer_name.")
    make_paddable(tokenizer)
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=seed)


def mask_once(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The same masks in every evaluation, of every model."""
    mask = masking(tokenizer, 0.15, seed=0)

    def hide(row: dict) -> dict:
        batch = mask([{"input_ids": row["input_ids"]}])
        return {name: batch[name][0].tolist() for name in ("input_ids", "labels")}

    return rows.map(hide, desc="Masking", load_from_cache_file=False)


def scores(loss: float, accuracy: float, tokens_per_byte: float) -> dict[str, float]:
    return {"perplexity": math.exp(loss), "accuracy": accuracy}


OBJECTIVE = Objective(
    auto_class=AutoModelForMaskedLM,
    small_model=SMALL_MODEL,
    collator=lambda tokenizer, arguments: masking(tokenizer, arguments.mlm_probability),
    prepare_evaluation=mask_once,
    evaluation_collator=PadWithLabels,
    count=count_tokens,
    scores=scores,
)

if __name__ == "__main__":
    main(OBJECTIVE, (MaskingArguments,), lambda arguments: arguments.max_seq_length)
