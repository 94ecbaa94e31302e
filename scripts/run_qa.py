# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Trains or fine-tunes a model that finds the answer to a question in a long document, with the Trainer and the flags of
Transformers' own `run_qa.py`. The document is read whole, not in overlapping pieces. Files have the rows of SQuAD:
`id`, `question`, `context`, and `answers` as `{"text": ["..."], "answer_start": [17]}`.

    python scripts/run_qa.py --output_dir runs/qa --model_name_or_path runs/long --attn_implementation sinkhorn \\
        --train_file train.jsonl --validation_file validation.jsonl --test_file test.jsonl
    python scripts/run_qa.py --output_dir runs/answers --model_name_or_path runs/qa --do_predict --test_file new.jsonl
"""

import logging
import sys
import time
from dataclasses import dataclass, field

from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, set_seed
from transformers.trainer_utils import IntervalStrategy

from common.errors import UserError
from training.checks import check_training, make_paddable
from training.defaults import SmallModelTrainingArguments
from training.flags import parse
from training.model_choice import ModelArguments, load_config, load_tokenizer, load_weights
from training.progress import Announcements, quiet_libraries, without_load_report
from training.qa_data import DataTrainingArguments, encode, length_limit, load_rows, report_lengths, rows_to_train_on
from training.qa_scores import SCORES
from training.qa_trainer import QuestionAnsweringTrainer, make_metrics, predict, report
from training.resuming import TrainingTimer, find_checkpoint, train_and_save


# Where no model is named: one that two CPU cores train, from scratch.
SMALL_MODEL = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "block_size": 64,
}


@dataclass
class QuestionAnsweringTrainingArguments(SmallModelTrainingArguments):
    output_dir: str | None = field(default="runs/qa", metadata={"help": "Where the model goes."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=3, metadata={"help": "Passes over the training questions."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Questions per step and device."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1: a share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    metric_for_best_model: str | None = field(default="f1", metadata={"help": "f1, exact_match or loss."})


def main() -> None:
    model_args, data_args, training_args, given = parse(
        ModelArguments, DataTrainingArguments, QuestionAnsweringTrainingArguments
    )
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    checkpoint = find_checkpoint(training_args, training_args.overwrite_output_dir)
    check_training(training_args, SCORES)
    set_seed(training_args.seed)
    started = time.time()

    rows = load_rows(data_args)
    check_parts(training_args, given, rows, model_args)
    texts = (text for row in rows.get("train", []) for text in (row.question, row.context))
    tokenizer = load_tokenizer(model_args, texts, checkpoint)
    with without_load_report():
        config = load_config(model_args, tokenizer, SMALL_MODEL)
        limit = length_limit(data_args, config, tokenizer)
        model = load_weights(model_args, AutoModelForQuestionAnswering, config)
    make_paddable(tokenizer, model.config)
    encoded = {part: encode(some, tokenizer, limit, part) for part, some in rows.items()}
    for part, found in encoded.items():
        report_lengths(found, part, limit)

    validation = encoded.get("validation")
    timer = TrainingTimer()
    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=rows_to_train_on(encoded["train"]) if training_args.do_train else None,
        eval_dataset=None if validation is None else validation.data,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training_args.bf16 else None),
        compute_metrics=None if validation is None else make_metrics(rows["validation"], validation),
        callbacks=[timer, Announcements()],
        max_answer_length=data_args.max_answer_length,
    )
    if training_args.do_train:
        train_and_save(trainer, given, checkpoint)
    scores = {}
    for part, is_asked_for in (("validation", training_args.do_eval), ("test", training_args.do_predict)):
        if is_asked_for and part in rows:
            scores[part] = predict(trainer, rows[part], encoded[part], part)
    if trainer.is_world_process_zero():
        report(trainer, encoded, scores, timer.earlier + time.time() - started, limit, model_args.model_name_or_path)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def check_parts(training_args: QuestionAnsweringTrainingArguments, given: dict, rows: dict, model_args) -> None:
    """
    Without validation rows there is no evaluation between the epochs, and the last weights are kept.

    Raises:
        UserError: what the flags ask for has no file.
    """
    training_args.remove_unused_columns = False  # an evaluation needs the places of the contexts
    asked = {"train": training_args.do_train, "validation": "do_eval" in given, "test": "do_predict" in given}
    for part, is_asked_for in asked.items():
        if is_asked_for and part not in rows:
            cure = ", or give --do_eval or --do_predict to use a trained model" if part == "train" else ""
            raise UserError(f"there is no {part} data: name it with --{part}_file{cure}.")
    if not training_args.do_train and model_args.model_name_or_path is None:
        raise UserError("--do_eval and --do_predict without --do_train need a trained model: --model_name_or_path.")
    if "validation" not in rows:
        training_args.eval_strategy, training_args.do_eval = IntervalStrategy.NO, False
        training_args.load_best_model_at_end = False
        if training_args.do_train:
            print("No --validation_file: the weights of the last step are kept, not the best ones.")


if __name__ == "__main__":
    main()
