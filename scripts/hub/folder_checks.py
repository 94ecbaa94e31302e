# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Which files of a model folder belong on the Hub, and whether the model can be opened from there. Nothing is sent.

The code in the folder is run, as it will be where the model is used: it builds the model from config.json, without
memory for the weights, and the names and shapes of the weights are compared with it.
"""

import ast
import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from common.errors import UserError
from hub.card_checks import check_card


def check_folder(folder: Path, make_card: Callable[[Path], Path | None] = lambda folder: None) -> dict[str, Path]:
    """
    The files to upload, by path in the repository. Prints them and what is left out. Sends nothing. `make_card`
    makes a file for a folder that has no README.md.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.")
    try:
        files, left_out = plan_upload(folder)
        config = check_config(folder)
        check_code(folder, config["auto_map"])
        weights = check_weight_files(folder, files, left_out)
        notes = []
        if "README.md" not in files and (card := make_card(folder)):
            files["README.md"] = card
            notes.append("none in the folder, so this one was made from run.json; write your own there to replace it")
        notes += check_card(files["README.md"]) if "README.md" in files else ["none, so the repository gets no card"]
        check_model(folder, config, weights)
        sizes = {path: file.stat().st_size for path, file in files.items()}
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error.strerror or error}.") from None
    width = max(map(len, sizes))
    for path, size in sizes.items():
        print(f"{path:{width}}  {readable_size(size):>8}")
    print(f"{len(sizes)} files, {readable_size(sum(sizes.values()))}")
    if left_out:
        print("left out: " + ", ".join(f"{path} ({reason})" for path, reason in left_out.items()))
    for note in notes:
        print(f"README.md: {note}")
    if "tokenizer_config.json" not in files:
        print("tokenizer_config.json: none, so text pipelines will not open this repository")
    return files


def readable_size(size: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{size} B" if unit == "B" else f"{number:.3g} {unit}"


# --------------------------------------------------------------------------------------------------------------------
# What goes up
# --------------------------------------------------------------------------------------------------------------------

PICKLE, TRAINER, RECORD, LOGS, CACHE, UNFINISHED, HIDDEN = (
    "pickle",
    "state of the Trainer",
    "record of a run, with paths of this machine",
    "logs",
    "cache",
    "unfinished or temporary",
    "hidden",
)
LEFT_OUT_FOLDERS = {
    "checkpoint-*": TRAINER,
    "global_step*": TRAINER,
    "runs": LOGS,
    "logs": LOGS,
    "wandb": LOGS,
    "mlruns": LOGS,
    "__pycache__": CACHE,
    ".eval_results": None,  # hidden by name, but the Hub reads evaluation results from it
    ".*": HIDDEN,
}
LEFT_OUT_FILES = {
    "trainer_state.json": TRAINER,  # has paths of this machine, and only helps to resume
    **dict.fromkeys(
        ("run.json", "scores.json", "model_and_data.json", "*_results.json", "predict_results.tsv"), RECORD
    ),
    "events.out.tfevents.*": LOGS,
    "*.log": LOGS,
    "*.py[co]": CACHE,
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib"), PICKLE),
    **dict.fromkeys(("*.tmp", "*.temp", "*.incomplete", "*.lock", "*.swp", "*.bak", "*.orig", "*~"), UNFINISHED),
    ".*": HIDDEN,
}


def plan_upload(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files to upload, by path in the repository, and what is left out with the reason."""
    files, left_out = {}, {}
    for root, folders, names in os.walk(folder):
        here = Path(root)
        for name in sorted(folders):
            reason = "link to a folder" if (here / name).is_symlink() else reason_for(name, LEFT_OUT_FOLDERS)
            if reason:
                folders.remove(name)
                left_out[f"{(here / name).relative_to(folder).as_posix()}/"] = reason
        folders.sort()
        for name in sorted(names):
            reason = reason_for(name, LEFT_OUT_FILES) if (here / name).is_file() else "not a file"
            path = (here / name).relative_to(folder).as_posix()
            if reason:
                left_out[path] = reason
            else:
                files[path] = here / name
    return files, left_out


def reason_for(name: str, patterns: dict[str, str | None]) -> str | None:
    return next((reason for pattern, reason in patterns.items() if fnmatch.fnmatch(name, pattern)), None)


# --------------------------------------------------------------------------------------------------------------------
# Configuration and code
# --------------------------------------------------------------------------------------------------------------------


def check_config(folder: Path) -> dict:
    """Checks config.json: it is of this model and names the code that opens it."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"there is no config.json in {folder}. {_better_folder(folder)}")
    config = read_json(path)
    if config.get("model_type") != "sinkhorn":
        raise UserError(f"{path}: `model_type` is {config.get('model_type')!r}; this script pushes 'sinkhorn' models.")
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or "AutoConfig" not in auto_map or len(auto_map) < 2:
        raise UserError(
            f"{path}: `auto_map` does not name the code for AutoConfig and a model, so the repository would not open "
            f"anywhere. {SAVE_AGAIN}"
        )
    for name, reference in auto_map.items():
        if isinstance(reference, str) and "--" in reference:
            raise UserError(
                f"{path}: `auto_map` takes {name} from another repository ({reference}). Load the model after `import "
                f"modeling_sinkhorn`, so that its code is this one, and save it again."
            )
        if not isinstance(reference, str) or not re.fullmatch(r"\w+\.\w+", reference):
            raise UserError(f"{path}: `auto_map` has {reference!r} for {name}; it must be FILE.CLASS. {SAVE_AGAIN}")
    classes = [reference.split(".")[1] for name, reference in auto_map.items() if name != "AutoConfig"]
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in classes:
        raise UserError(
            f"{path}: `architectures` is {architectures}; it must name the one class that was saved, of {classes}. "
            f"{SAVE_AGAIN}"
        )
    return config


SAVE_AGAIN = "Save the model again with `model.save_pretrained`, after `import modeling_sinkhorn`."


def _better_folder(folder: Path) -> str:
    """A hint where the model may be if it is not in `folder`."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if checkpoints:
        return f"The training run did not end; push its last checkpoint with --model_folder {checkpoints[-1]}."
    return "Give the folder that `save_pretrained` wrote."


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} in line {error.lineno}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object.")
    return content


def check_code(folder: Path, auto_map: dict[str, str]) -> None:
    """Every class of `auto_map`, and every file that its code imports, is in the folder."""
    trees = read_code(folder, auto_map)
    for name, reference in auto_map.items():
        module, class_name = reference.split(".")
        if not any(isinstance(node, ast.ClassDef) and node.name == class_name for node in trees[module].body):
            raise UserError(
                f"{folder / module}.py has no class {class_name}, which `auto_map` names for {name}. {SAVE_AGAIN}"
            )


def read_code(folder: Path, auto_map: dict[str, str]) -> dict[str, ast.Module]:
    """The modules of `folder` that `auto_map` names, and those that they import, directly or not."""
    trees: dict[str, ast.Module] = {}
    waiting = [(reference.split(".")[0], "`auto_map` in config.json") for reference in auto_map.values()]
    while waiting:
        module, asked_by = waiting.pop()
        if module in trees:
            continue
        path = folder / f"{module}.py"
        if not path.is_file():
            raise UserError(f"{path} is missing, which {asked_by} needs. {SAVE_AGAIN}")
        try:
            trees[module] = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise UserError(f"{path}{line} is not Python: {error.args[0]}.") from None
        waiting += [(name, path.name) for name in relative_imports(trees[module])]
    return trees


def relative_imports(tree: ast.Module) -> Iterator[str]:
    """The modules of the same folder that it imports: `x` of `from .x import y`."""
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from [node.module] if node.module else [alias.name for alias in node.names]
        # Expressions, most of a tree, hold no import.
        inside = (ast.stmt, ast.ExceptHandler, ast.match_case)
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, inside)]


# --------------------------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------------------------

WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
Shapes = dict[str, tuple[int, ...]]


def is_weights(path: str) -> bool:
    """`path` is one that `from_pretrained` looks for."""
    return path in (WEIGHTS_FILE, WEIGHTS_INDEX) or WEIGHTS_SHARD.fullmatch(path) is not None


def check_weight_files(folder: Path, files: dict[str, Path], left_out: dict[str, str]) -> Shapes:
    """Names and shapes of all weights. Moves shards that the index does not name from `files` to `left_out`."""
    if WEIGHTS_FILE in files and WEIGHTS_INDEX in files:
        raise UserError(f"{folder} holds both {WEIGHTS_FILE} and {WEIGHTS_INDEX}; delete those of an earlier save.")
    if WEIGHTS_FILE in files:
        names, where = [WEIGHTS_FILE], None
    elif WEIGHTS_INDEX in files:
        where = read_json(files[WEIGHTS_INDEX]).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise UserError(f"{files[WEIGHTS_INDEX]} has no `weight_map`. {SAVE_AGAIN}")
        names = sorted(set(where.values()))
    else:
        pickled = [path for path, reason in left_out.items() if reason == PICKLE and "model" in path]
        if pickled:
            raise UserError(
                f"the weights in {folder} are pickled ({', '.join(pickled)}); a pickle can run code where it is "
                "opened. Load the model and save it again: `save_pretrained` writes safetensors."
            )
        raise UserError(f"there are no weights in {folder}: no {WEIGHTS_FILE}. {_better_folder(folder)}")

    shapes: Shapes = {}
    for name in names:
        if name not in files:
            raise UserError(f"{folder / name} is missing, which {WEIGHTS_INDEX} names. {SAVE_AGAIN}")
        found = read_shapes(files[name])
        strange = set(found) ^ {key for key, file in where.items() if file == name} if where else ()
        if strange:
            raise UserError(f"{WEIGHTS_INDEX} and {name} do not agree on {first_few(strange)}. {SAVE_AGAIN}")
        shapes |= found
    for path in [path for path in files if is_weights(path) and path not in (*names, WEIGHTS_INDEX)]:
        del files[path]
        left_out[path] = "of an earlier save"
    for path, file in files.items():
        if path.endswith(".safetensors") and path not in names:
            read_shapes(file)
    return shapes


def read_shapes(path: Path) -> Shapes:
    """Reads all of a safetensors file, and refuses numbers that are not finite."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is a Git LFS pointer, not the weights; get them with `git lfs pull`.")
    shapes = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                tensor = tensors.get_tensor(name)
                if not torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all():
                    raise UserError(f"{path}: {name} holds NaN or infinity; the training run that wrote it diverged.")
                shapes[name] = tuple(tensor.shape)
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged, or is no safetensors file ({error}). Save the model again, or copy the file again."
        ) from None
    return shapes


LFS_POINTER = b"version https://git-lfs"


def check_model(folder: Path, config: dict, weights: Shapes) -> None:
    """The folder's own code builds the model of its config.json, and the weights are those of that model."""
    architecture = config["architectures"][0]
    reference = next(value for value in config["auto_map"].values() if value.endswith(f".{architecture}"))
    try:
        config_class = get_class_from_dynamic_module(config["auto_map"]["AutoConfig"], str(folder.resolve()))
        model_class = get_class_from_dynamic_module(reference, str(folder.resolve()))
        settings = config_class.from_pretrained(folder)
        with torch.device("meta"):
            model = model_class(settings)
    except Exception as error:  # the code is the user's and may raise anything
        raise UserError(
            f"{folder}: its code does not build a {architecture} from config.json "
            f"({type(error).__name__}: {str(error).strip()})."
        ) from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = []
    if missing := set(expected) - set(weights) - set(model.all_tied_weights_keys):
        problems.append(f"lack {first_few(missing)}")
    if unexpected := set(weights) - set(expected):
        problems.append(f"have {first_few(unexpected)}, which the model lacks")
    for name in sorted(set(weights) & set(expected)):
        if weights[name] != expected[name]:
            problems.append(f"have {name} of shape {weights[name]}, the model {expected[name]}")
            break
    if problems:
        raise UserError(
            f"{folder}: the weights are not those of the {architecture} of config.json: they "
            f"{'; they '.join(problems)}. Save model and configuration again, together."
        )


def first_few(names) -> str:
    """The first few names of many."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
