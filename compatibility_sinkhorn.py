# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What differs between the versions of torch and Transformers that are supported, and what a forward takes: one decorator for
every forward. From Transformers 5.24 on a cache is `cache` everywhere; before, it was `past_key_values`.
"""

import dataclasses
import difflib
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import TransformersKwargs
from transformers.utils.import_utils import is_tracing


OLD_CACHE_NAME = "past_key_values"
# What the library calls a cache, in its outputs and in `generate()`.
CACHE_NAME = next(
    field.name for field in dataclasses.fields(BaseModelOutputWithPast) if field.name in ("cache", OLD_CACHE_NAME)
)
# In a graph that it compiles, torch before 2.13 takes `torch.compiler.is_exporting()` for true.
_COMPILES_AS_IF_EXPORTED = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
# What forwards take next to their own arguments, and hand on. `output_sort_matrices` is ours; the others come from the
# library: its decorators read the first ones, losses the last.
KNOWN_ARGUMENTS = frozenset(TransformersKwargs.__optional_keys__) | {
    "output_sort_matrices",
    "return_dict",
    "token_type_ids",
    "debug_io",
    "debug_io_dir",
    "prune_layers",
    "shift_labels",
    "ignore_index",
}


def is_exporting() -> bool:
    """Whether a graph is exported, which must run on any device and with any cache; not where one is compiled."""
    if _COMPILES_AS_IF_EXPORTED:
        return torch.compiler._is_exporting_flag  # what the public function reads where nothing is compiled
    return torch.compiler.is_exporting()


def cache_field(cache: Any) -> dict[str, Any]:
    """A cache as an argument of a model output, by the name that the library has for it."""
    return {CACHE_NAME: cache}


def cache_of(outputs: Any) -> Any:
    """The cache in a model output."""
    return getattr(outputs, CACHE_NAME)


def takes_known_arguments(*more: str) -> Callable[[Callable], Callable]:
    """
    Makes the decorator of a `forward(self, ..., **kwargs)`, to be the outermost. It accepts the old name of `cache`,
    as the library does (since 5.24 with a warning), and refuses arguments that no one reads: in `**kwargs` a wrong name
    would pass without a word, and the output would be that of another call.

    Args:
        more: names that are known next to those of the signature and `KNOWN_ARGUMENTS`.

    Raises (the forward):
        TypeError: for an unknown argument, with those of similar names.
        ValueError: a cache is given by both names.
    """

    def decorate(forward: Callable) -> Callable:
        _, *own = inspect.signature(forward).parameters.values()  # without `self`
        names = (parameter.name for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD)
        known = KNOWN_ARGUMENTS.union(names, more)

        @functools.wraps(forward)
        def checked(self, *args, **kwargs):
            if OLD_CACHE_NAME in kwargs:
                kwargs = _with_new_name(self, kwargs)
            for name in kwargs:
                if name not in known:
                    raise TypeError(_describe_unknown(self, name, known))
            return forward(self, *args, **kwargs)

        return checked

    return decorate


def _with_new_name(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    cache = kwargs.pop(OLD_CACHE_NAME)
    if kwargs.get("cache") is None:
        kwargs["cache"] = cache
    elif cache is not None:
        raise ValueError(f"`cache` and `{OLD_CACHE_NAME}` are two names of one argument: give one of them.")
    if CACHE_NAME == "cache" and not is_tracing():
        # As the library's own models do. The caller is behind this function, the forward and `nn.Module`'s call.
        warnings.warn(
            f"`{OLD_CACHE_NAME}` is deprecated and will be removed in version 5.40.0 for "
            f"`{type(model).__name__}.forward`. Use `cache` instead.",
            FutureWarning,
            stacklevel=5,
        )
    return kwargs


def _describe_unknown(model: Any, name: str, known: frozenset[str]) -> str:
    close = difflib.get_close_matches(name, known | {OLD_CACHE_NAME}, n=3)
    hint = f" Did you mean {' or '.join(f'`{other}`' for other in close)}?" if close else ""
    return f"{type(model).__name__}.forward() got an unexpected keyword argument '{name}'.{hint}"


def check_token_types(token_type_ids: Tensor | None) -> None:
    """Raises `ValueError` where there is another token type than 0, which is what leaving them out means."""
    if token_type_ids is None or is_tracing(token_type_ids):
        return
    if bool(token_type_ids.any()):
        raise ValueError(
            "`token_type_ids` holds other numbers than 0, but this model has no token types: leave it out "
            '(`tokenizer(..., return_token_type_ids=False)`, or `tokenizer.model_input_names = ["input_ids", '
            '"attention_mask"]`).'
        )
