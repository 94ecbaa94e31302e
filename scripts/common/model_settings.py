# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What comparisons of models share: rounding lengths up, and the settings of a model for the record."""

from typing import Any

from transformers import PreTrainedConfig


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def recorded_settings(config: PreTrainedConfig, *left_out: str) -> dict[str, Any]:
    """The fields that differ from the defaults, without those that say nothing about the model."""
    settings = config.to_diff_dict()
    for field in ("auto_map", "transformers_version", "architectures", "dtype", *left_out):
        settings.pop(field, None)
    return settings
