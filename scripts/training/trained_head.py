# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What a trained classifier knows of its task, so that new documents are scored without the training data."""

from transformers import AutoConfig

from common.errors import UserError
from training.classification_data import Head
from training.mean_of_tokens import classifier_class
from training.model_choice import ModelArguments, check_folders, hub_options


def trained_head(model_args: ModelArguments, needed: bool) -> Head | None:
    """
    The kind of task and the classes of the model that the flags name; `None` if it has no head for classes.

    Raises:
        UserError: there is no such model, or none with such a head although it is `needed`.
    """
    check_folders(model_args)
    name = model_args.model_name_or_path
    config = AutoConfig.from_pretrained(model_args.config_name or name, **hub_options(model_args))
    head = classifier_class(config).__name__.removeprefix("AutoModel")
    if not any(kind.endswith(head) for kind in config.architectures or []):
        if needed:
            kinds = ", ".join(config.architectures or ["no known kind"])
            raise UserError(
                f"--model_name_or_path {name} is no trained classifier but {kinds}; train one first, with a "
                "--train_file that names the classes."
            )
        return None
    if config.num_labels == 1:
        return Head("regression", None)
    kind = config.problem_type or "single_label_classification"
    return Head(kind, [config.id2label[index] for index in range(config.num_labels)])


def check_parts(training_args, given: dict, data_args) -> None:
    """
    Raises:
        UserError: without a training part, a part that is asked for has no file.
    """
    for flag, part in (("do_eval", "validation"), ("do_predict", "test")):
        if flag in given and getattr(training_args, flag) and getattr(data_args, f"{part}_file") is None:
            raise UserError(f"--{flag} needs a --{part}_file, or a --train_file.")
