# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Safe loading: what `from_pretrained` refuses in addition to the library, with errors that name the file and say what to
do. The library itself fills tensors that a file lacks with random numbers, and loads NaN, and only logs a table.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file


GET_AGAIN = "Copy or download it again (`force_download=True`), or save the model again."
NO_SAFETENSORS = "no file named model.*safetensors found|cannot be loaded with `safetensors`"  # the library's words
CLEAR_ERRORS = (OSError, ValueError, RuntimeError, ImportError, StrictDataclassError)


# --------------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------------


def damage_of(path: Path) -> str | None:
    """What is wrong with a safetensors file, without reading its numbers; `None` where nothing is."""
    try:
        with safe_open(path, framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        reason = str(error)
    with path.open("rb") as file:
        start = file.read(512)
    size, header = path.stat().st_size, int.from_bytes(start[:8], "little")
    if not size:
        return f"{path} is empty. {GET_AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights. Get them with `git lfs pull` in its folder."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"{path} is a web page, not weights: it was downloaded from a wrong address. {GET_AGAIN}"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return (
            f"{path} is a pickle under a safetensors name; it is not opened, because pickles can run code. {GET_AGAIN}"
        )
    if size < 8 or (start[8:9] == b"{" and size < 8 + header):
        return f"{path} is cut off: it ends after {size} bytes, within its header. {GET_AGAIN}"
    try:
        with path.open("rb") as file:
            entries = json.loads(file.read(8 + header)[8:])
        expected = 8 + header + max(entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__")
    except Exception:  # the header itself is damaged: `reason` says how
        expected = size
    if size < expected:
        return f"{path} is cut off: it has {size} of {expected} bytes. {GET_AGAIN}"
    return f"{path} is damaged, or is no safetensors file ({reason}). {GET_AGAIN}"


def damage_of_index(path: Path) -> str | None:
    """The same for the index of a sharded model, and for missing shards."""
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:
        return f"{path} is not JSON ({error}). {GET_AGAIN}"
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        return f"{path} has no `weight_map` of tensors to files. {GET_AGAIN}"
    if not isinstance(index.get("metadata"), dict):
        return f"{path} has no `metadata`. {GET_AGAIN}"
    if missing := [name for name in sorted(set(where.values())) if not (path.parent / name).is_file()]:
        return f"{path.parent / missing[0]} is missing, which {path.name} names. Get all of its files."
    return None


def damage_in(folder: Path) -> str | None:
    """The first damaged file among the weights in a folder."""
    damages = (
        *map(damage_of, sorted(folder.glob("*.safetensors"))),
        *map(damage_of_index, sorted(folder.glob("*.safetensors.index.json"))),
    )
    return next(filter(None, damages), None)


def _folder_of(name: str | os.PathLike | None, options: dict[str, Any]) -> Path | None:
    """Where the files of a model are on this machine: its folder, or its snapshot in the cache."""
    if name is None:
        return None
    if os.path.isdir(name):
        return Path(name, options.get("subfolder") or "")
    where = {key: options[key] for key in ("cache_dir", "revision", "subfolder") if options.get(key)}
    try:
        return Path(cached_file(str(name), "config.json", local_files_only=True, **where)).parent
    except Exception:  # nothing was downloaded
        return None


@contextmanager
def explain_loading_errors(name: str | os.PathLike | None, options: dict[str, Any]) -> Iterator[None]:
    """
    Turns what `from_pretrained` of `name` raises about bad files into errors that name the file and say what to do. It
    looks at files only after an error.

    Raises:
        `OSError`: a file is missing, damaged or pickled. `ValueError`: no model can be made of config.json. A clear
        error is raised as it is.
    """
    try:
        yield
    except Exception as error:
        folder = None if isinstance(error, LoadingRefused) else _folder_of(name, options)
        if folder and (damage := damage_in(folder)):
            raise OSError(damage) from error
        if isinstance(error, OSError) and re.search(NO_SAFETENSORS, str(error)):
            pickles = sorted(folder.glob("pytorch_model*.bin")) if folder else []
            if options.get("use_safetensors") is None and (pickles or not os.path.isdir(name)):
                raise OSError(
                    f"{name} has no weights in safetensors files{f', but {pickles[0]}' if pickles else ''}. Pickled "
                    "weights (`pytorch_model.bin`) are not opened by default, because pickles can run code. If you "
                    "trust whoever made them, load them once with `use_safetensors=False`, and `save_pretrained` "
                    "writes the model as safetensors."
                ) from error
        if isinstance(error, OSError) and "Consistency check failed" in str(error):
            raise OSError(
                f"The download of {name} broke off; the incomplete file is not used. Try again. {error}"
            ) from error
        if isinstance(error, CLEAR_ERRORS) or (isinstance(error, TypeError) and "keyword argument" in str(error)):
            if str(name) not in str(error):
                error.add_note(f"(while loading {name})")
            raise
        raise ValueError(
            f"{name}: no model can be made of its config.json ({type(error).__name__}: {error}). {GET_AGAIN}"
        ) from error


# --------------------------------------------------------------------------------------------------------------------
# What was loaded
# --------------------------------------------------------------------------------------------------------------------


class LoadingRefused(Exception):
    """Already says what is wrong with a file."""


class WrongWeights(LoadingRefused, ValueError):
    """Weights that are missing, or not finite."""


class WrongShapes(LoadingRefused, RuntimeError):
    """Weights of other shapes than those of the model; the library raises `RuntimeError` for them too."""


def check_loaded(model: PreTrainedModel, files: list[str], load_config: Any, info: Any) -> None:
    """
    Refuses what the library would replace by random numbers, before it does so, and numbers that are not finite. A
    head may be new where the files belong to another class, as when fine-tuning begins.

    Raises:
        `WrongShapes`, `WrongWeights`: naming file, tensor and what to do.
    """
    source = files[0] if len(files) == 1 else f"{len(files)} files in {Path(files[0]).parent}"
    cure = "Get or save config.json and weights again, together"
    if info.mismatched_keys and not load_config.ignore_mismatched_sizes:
        shapes = (f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in info.mismatched_keys)
        raise WrongShapes(
            f"The weights in {source} do not have the shapes of the configuration: {_first_names(shapes)}. "
            f"{cure}; or initialise these tensors with random numbers by `ignore_mismatched_sizes=True`."
        )
    missing = set(info.missing_keys)
    for target, tied in model.all_tied_weights_keys.items():
        if target not in missing:  # one of the two is enough
            missing.discard(tied)
        missing.discard(target)
    is_same_class = type(model).__name__ in (model.config.architectures or ())
    if model.base_model is not model and not is_same_class:
        missing = {name for name in missing if name.startswith(f"{model.base_model_prefix}.")}
    if missing:
        raise WrongWeights(
            f"{source} lacks {_first_names(missing)}, which {type(model).__name__} needs; they would be random "
            f"numbers. {cure}. To begin with random numbers on purpose, make the model from its configuration, and "
            "call `load_state_dict(..., strict=False)`."
        )
    if load_config.hf_quantizer is None:
        _check_numbers(model, files)


def _check_numbers(model: PreTrainedModel, files: list[str]) -> None:
    state, prefix = model.state_dict(), f"{model.base_model_prefix}."
    file_of = {}
    for file in (file for file in files if file.endswith(".safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                ours = next((key for key in (name, prefix + name, name.removeprefix(prefix)) if key in state), None)
                dtype = tensors.get_slice(name).get_dtype()
                if ours and state[ours].is_floating_point() and not dtype.startswith(("F", "BF")):
                    raise WrongWeights(f"{file}: {name} holds {dtype}, not floating-point numbers. {GET_AGAIN}")
                file_of[ours] = file
    for name, tensor in state.items():
        if not _is_finite(tensor):
            raise WrongWeights(
                f"{file_of.get(name, files[0])}: {name} holds NaN or infinity (in {tensor.dtype}). The training run "
                "that wrote it diverged, or the file is damaged, or its numbers need another `dtype`."
            )


def _is_finite(tensor: Tensor) -> bool:
    tensor = getattr(tensor, "_local_tensor", tensor)  # this rank's part
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return all(bool(end.isfinite()) for end in torch.aminmax(tensor))  # NaN is both; no copy is made


def _first_names(names: Iterable[str]) -> str:
    """The first few names of many."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
