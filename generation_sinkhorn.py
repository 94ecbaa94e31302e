# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `generate()` does differently with these models, and how the Trainer knows that they predict the next token."""

from typing import Any

from torch import Tensor, nn
from transformers.generation import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


try:  # a folder on the Hub, or any package
    from .layout_sinkhorn import fixed_length
except ImportError:  # flat modules, as installed
    from layout_sinkhorn import fixed_length


def register_causal_class(name: str) -> None:
    """
    Tells the Trainer that a class predicts the next token. With label smoothing it computes the loss itself, and knows
    by the names in this registry for which classes labels are to be shifted. For any other it would, without a word,
    teach a model to copy its input. The Auto classes have a registry of their own, and do not look in this one.
    """
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["sinkhorn" if name == "SinkhornForCausalLM" else f"sinkhorn:{name}"] = name


class SinkhornGenerationMixin(GenerationMixin):
    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        register_causal_class(cls.__name__)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """
        Called by `generate()` with a cache of fixed size: the mask with zeros up to that, so that every step has the
        same shapes, and one graph. The library would make one per layer type, for those types that it knows.
        """
        max_length = fixed_length(kwargs.get("cache", kwargs.get("past_key_values")))
        if attention_mask is None or max_length is None:
            return attention_mask
        return nn.functional.pad(attention_mask, (0, max(0, max_length - attention_mask.shape[1])))

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> None:
        """
        Raises:
            NotImplementedError: always. `generate_batch()` comes here too.
        """
        raise NotImplementedError(
            "Continuous batching (`generate_batch`) is not supported: it keeps keys and values in pages of its own, "
            "and sorting needs more than those. Give `generate()` a padded batch with its `attention_mask`."
        )
