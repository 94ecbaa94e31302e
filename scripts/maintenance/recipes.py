# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""How each published checkpoint is made: the flags of its training run and of its evaluation."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Recipe:
    auto_class: str
    script: str
    train: str  # flags of `script`
    evaluate: str  # flags of `script`, for the folder that ships
    evaluate_on_books: str | None = None  # the same, on text of other kinds
    generation: dict[str, Any] = field(default_factory=dict)  # what `generate()` does by default

    def training_command(self, output_dir: str) -> list[str]:
        return [self.script, "--output_dir", output_dir, *self.train.split()]

    def evaluation_command(self, folder: str, output_dir: str, on_books: bool = False) -> list[str]:
        flags = self.evaluate_on_books if on_books else self.evaluate
        return [self.script, "--output_dir", output_dir, "--model_name_or_path", folder, *flags.split()]


ENCODER, CLASSIFIER, CAUSAL_LM = "sinkhorn-sotu-encoder", "sinkhorn-sotu-party", "sinkhorn-sotu-lm"
BOOKS_ENCODER = "sinkhorn-books-encoder"
MADE_FROM = {BOOKS_ENCODER: ENCODER, CLASSIFIER: BOOKS_ENCODER}

EVALUATE_ENCODER = "--do_eval --hold_out classification --max_seq_length 2048"
EVALUATE_ENCODER_ON_BOOKS = (
    "--do_eval --train_file data/books/train.parquet --validation_file data/books/validation.parquet "
    "--test_file data/books/test.parquet --max_seq_length 2048"
)

RECIPES = {
    # Both are read by `run_classification.py` afterwards, so they leave out the addresses that it tests on.
    ENCODER: Recipe(
        auto_class="AutoModelForMaskedLM",
        script="scripts/run_mlm.py",
        train="--hold_out classification --config_overrides "
        "hidden_size=192,intermediate_size=512,num_attention_heads=6 --max_seq_length 2048 --mlm_probability 0.3 "
        "--per_device_train_batch_size 2 --num_train_epochs 6 --bf16 --use_cpu",
        evaluate=EVALUATE_ENCODER,
        evaluate_on_books=EVALUATE_ENCODER_ON_BOOKS,
    ),
    # Continues from the encoder, on its text and about as much text of other kinds.
    BOOKS_ENCODER: Recipe(
        auto_class="AutoModelForMaskedLM",
        script="scripts/run_mlm.py",
        train=f"--model_name_or_path checkpoints/{ENCODER} --hold_out classification "
        "--extra_train_file data/books/train.parquet --learning_rate 1e-3 --max_seq_length 2048 "
        "--mlm_probability 0.3 --per_device_train_batch_size 2 --num_train_epochs 2 --bf16 --use_cpu",
        evaluate=EVALUATE_ENCODER,
        evaluate_on_books=EVALUATE_ENCODER_ON_BOOKS,
    ),
    CLASSIFIER: Recipe(
        auto_class="AutoModelForSequenceClassification",
        script="scripts/run_classification.py",
        train=f"--model_name_or_path checkpoints/{BOOKS_ENCODER} --skip_baselines --learning_rate 1e-3 "
        "--num_train_epochs 4 --config_overrides hidden_dropout=0.1 --bf16 --use_cpu",
        evaluate="--do_predict",
    ),
    CAUSAL_LM: Recipe(
        auto_class="AutoModelForCausalLM",
        script="scripts/run_clm.py",
        train="--config_overrides hidden_size=256,intermediate_size=688,num_hidden_layers=6 --num_train_epochs 5 "
        "--bf16 --use_cpu",
        evaluate="--do_eval",
        generation={
            "do_sample": True,
            "temperature": 0.8,
            "top_k": 50,
            "repetition_penalty": 1.1,
            "max_new_tokens": 128,
        },
    ),
}
