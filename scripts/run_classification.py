# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Trains or fine-tunes a classifier of long documents with the Trainer and evaluates it, with the flags of Transformers'
own `run_classification.py`. With no flag but the output folder, it trains a small Sinkhorn model from scratch on the
shipped State of the Union task, on complete documents.

    python scripts/run_classification.py --output_dir runs/sotu
    python scripts/run_classification.py --output_dir runs/tiny --num_train_epochs 1 --max_train_samples 64 \\
        --config_overrides hidden_size=32,num_hidden_layers=1
    python scripts/run_classification.py --output_dir runs/mine --train_file train.csv --test_file test.csv \\
        --text_column_names title,body --label_column_name topic
    python scripts/run_classification.py --output_dir runs/new --model_name_or_path runs/mine --do_predict \\
        --test_file new.csv
    accelerate launch scripts/run_classification.py --output_dir runs/sotu --resume_from_checkpoint last
    torchrun --nproc_per_node 2 scripts/run_classification.py --output_dir runs/sotu --use_cpu
"""

import logging
import sys
import time
from dataclasses import dataclass, field

from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy

from common.errors import UserError
from training.checks import check_training, make_paddable
from training.class_report import scores_by_class
from training.classification_data import Task
from training.classification_inputs import DataTrainingArguments, encode, load_task, padding_multiple
from training.classification_scores import METRIC_NAMES, make_metrics, predict, report
from training.defaults import SmallModelTrainingArguments, choose_learning_rate
from training.flags import parse
from training.losses import balanced_weights, classification_loss
from training.mean_of_tokens import choose_pooling, classifier_class, read_documents, takes_mean_of_tokens
from training.model_choice import (
    dataset_options,
    load_config,
    load_tokenizer,
    load_weights,
)
from training.progress import Announcements, quiet_libraries, without_load_report
from training.resuming import TrainingTimer, find_checkpoint, train_and_save
from training.small_data import ModelOfOwnDataArguments, choose_checkpoint, choose_passes, choose_start
from training.texts import texts_of
from training.trained_head import check_parts, trained_head


# A model that two CPU cores train in minutes.
SMALL_MODEL = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "block_size": 64,
    "hidden_dropout": 0.1,
    "initializer_range": 0.05,
}


@dataclass
class ClassificationTrainingArguments(SmallModelTrainingArguments):
    output_dir: str | None = field(default="runs/classification", metadata={"help": "Where the model goes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate; pretrained: 1e-4."})
    num_train_epochs: float = field(default=4, metadata={"help": "Passes over the training documents."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Documents per step and device."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1: a share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Order of documents."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without a better one."}
    )
    class_weights: str = field(
        default="none", metadata={"help": "balanced: documents of a rare class count for more; none: all the same."}
    )

    def __post_init__(self) -> None:
        if self.class_weights not in ("none", "balanced"):
            raise UserError(f"--class_weights must be none or balanced, got {self.class_weights}.")
        metric = self.metric_for_best_model
        super().__post_init__()  # sets the loss if no metric is given
        self.metric_for_best_model = metric

    def choose_best_by(self, metric: str, given: dict) -> None:
        """Sets the metric for the best checkpoint, and its direction, unless the flags `given` do."""
        self.metric_for_best_model = self.metric_for_best_model or metric
        if "greater_is_better" not in given:
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", "mse", "mae"))


def main() -> None:
    model_args, data_args, training_args, given = parse(
        ModelOfOwnDataArguments, DataTrainingArguments, ClassificationTrainingArguments
    )
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    checkpoint = find_checkpoint(training_args, training_args.overwrite_output_dir)
    set_seed(training_args.seed)
    started = time.time()

    is_scoring = model_args.model_name_or_path is not None and not training_args.do_train
    files = data_args.validation_file or data_args.test_file
    without_training_data = is_scoring and data_args.train_file is None and files is not None
    if without_training_data:
        check_parts(training_args, given, data_args)
    head = trained_head(model_args, needed=without_training_data) if is_scoring else None
    task = load_task(data_args, dataset_options(model_args), head)
    for part, limit in (
        ("train", data_args.max_train_samples),
        ("validation", data_args.max_eval_samples),
        ("test", data_args.max_predict_samples),
    ):
        if limit is not None and part in task.splits:
            # Files are often sorted by label: the first rows would be of one class.
            shuffled = task.splits[part].shuffle(seed=data_args.split_seed)
            drawn = shuffled.select(range(min(limit, len(shuffled))))
            if part == "test":  # the predictions stand in the order of the file
                drawn = drawn.select(sorted(range(len(drawn)), key=drawn["row"][:].__getitem__))
            task.splits[part] = drawn
    metric_name, compute_metrics = make_metrics(task)
    check_training(training_args, METRIC_NAMES[task.problem_type])
    training_args.choose_best_by(metric_name, given)
    loss = make_loss(task, training_args)
    starts_from_ours = False
    if training_args.do_train and (data_args.train_file or data_args.dataset_name):
        starts_from_ours = choose_start(model_args, given, texts_of(task.splits["train"]), checkpoint)
        choose_passes(training_args, given, len(task.splits["train"]))
        if starts_from_ours:
            choose_checkpoint(training_args, given, len(task.splits.get("validation", [])))
    texts = texts_of(task.splits["train"]) if "train" in task.splits else []  # without them, the model has a tokenizer
    tokenizer = load_tokenizer(model_args, texts, checkpoint)
    with without_load_report(unless=not starts_from_ours):
        model = load_model(model_args, task, tokenizer)
    choose_learning_rate(training_args, given, model_args.model_name_or_path, model)
    make_paddable(tokenizer, model.config)
    encoded = encode(task.splits, tokenizer, model.config, data_args)
    if "validation" not in encoded:
        training_args.eval_strategy, training_args.do_eval = IntervalStrategy.NO, False

    evaluated = {}  # the last evaluation's predictions and labels, for the report by class

    def compute(prediction) -> dict[str, float]:
        evaluated["last"] = prediction
        return compute_metrics(prediction)

    timer = TrainingTimer()
    multiple = padding_multiple(model.config, tokenizer, data_args, training_args.bf16 or training_args.fp16)
    callbacks = [timer, Announcements()]
    if training_args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(training_args.early_stopping_patience))
        training_args.restore_callback_states_from_checkpoint = True  # the patience that was used up
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"] if training_args.do_train else None,
        eval_dataset=encoded.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple),
        compute_loss_func=loss,
        compute_metrics=compute,
        callbacks=callbacks,
    )
    if training_args.do_train:
        train_and_save(trainer, given, checkpoint)
    metrics, by_class = {}, {}
    if training_args.do_eval:
        metrics["validation"] = trainer.evaluate()
        by_class["validation"] = by_class_scores(task, evaluated.pop("last", None))
        trainer.save_metrics("eval", metrics["validation"])
    if training_args.do_predict and "test" in encoded:
        evaluated.clear()
        metrics["test"] = predict(trainer, encoded["test"], task)
        by_class["test"] = by_class_scores(task, evaluated.pop("last", None))
    if trainer.is_world_process_zero():
        seconds = timer.earlier + time.time() - started
        report(trainer, task, data_args, metrics, seconds, by_class, model_args.model_name_or_path)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def load_model(model_args: ModelOfOwnDataArguments, task: Task, tokenizer):
    """A pretrained model with a head for the task, or a small one from scratch."""
    if task.label_names:
        labels = {
            "id2label": dict(enumerate(task.label_names)),
            "label2id": {name: index for index, name in enumerate(task.label_names)},
        }
    else:
        labels = {"num_labels": 1}
    config = load_config(model_args, tokenizer, SMALL_MODEL, problem_type=task.problem_type, **labels)
    choose_pooling(config, model_args.classifier_pooling)
    model = load_weights(model_args, classifier_class(config), config)
    if takes_mean_of_tokens(config):
        read_documents(model)
    return model


def make_loss(task: Task, args: ClassificationTrainingArguments):
    """
    The loss that the flags ask for; `None`: the model's own, or the library's with label smoothing.

    Raises:
        UserError: they ask for what the task has not.
    """
    if task.problem_type != "single_label_classification":
        kind = "a regression" if task.problem_type == "regression" else "several labels a document"
        if args.label_smoothing_factor:
            raise UserError(f"--label_smoothing_factor is for one class a document; this task is {kind}.")
        if args.class_weights != "none":
            raise UserError(f"--class_weights is for one class a document; this task is {kind}.")
    weights = None
    if args.class_weights == "balanced" and "train" in task.splits:
        weights = balanced_weights(task.splits["train"]["label"][:], len(task.label_names))
        told = ", ".join(f"{name} {weight:.2g}" for name, weight in zip(task.label_names[:20], weights))
        print(f"Weights of the classes: {told}{', ...' if len(weights) > 20 else ''}")
    return classification_loss(weights, args.label_smoothing_factor)


def by_class_scores(task: Task, prediction) -> dict | None:
    """Precision, recall and confusions of an evaluation; `None` for a regression, or where nothing was evaluated."""
    if prediction is None or task.label_names is None:
        return None
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    one_class = task.problem_type == "single_label_classification"
    predicted = logits.argmax(-1) if one_class else (logits > 0).astype(int)
    return scores_by_class(prediction.label_ids.astype(int), predicted, task.label_names)


if __name__ == "__main__":
    main()
