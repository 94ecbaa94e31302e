# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Pushes a model folder to the Hugging Face Hub, in one commit, after checking that it can be opened from there.

    python scripts/push_to_hub.py --model_folder runs/clm --repo_id USER/NAME --dry_run
    python scripts/push_to_hub.py --model_folder runs/clm --repo_id USER/NAME --private --tag v1.0
    python scripts/push_to_hub.py --model_folder runs/clm --repo_id OTHER/NAME --create_pr

The token is HF_TOKEN, or that of `hf auth login`. What a training run leaves behind (checkpoints, optimizer, logs,
pickles) stays here, and is listed. The code in the folder is run, as it will be where the model is used: its model is
built from config.json, without memory for the weights, and compared with them by name and shape.
"""

import ast
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import torch
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    RepoFile,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import HfArgumentParser
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from user_errors import UserError


@dataclass
class PushArguments:
    model_folder: str = field(metadata={"help": "Folder that `save_pretrained` or a training script wrote."})
    repo_id: str = field(metadata={"help": "USER/NAME or ORGANIZATION/NAME; NAME alone is yours. Made if missing."})
    commit_message: str = field(default="Upload model", metadata={"help": "First line of the commit."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to; made from main if missing."})
    tag: str | None = field(default=None, metadata={"help": "Tag to put on the commit, such as v1.0."})
    private: bool = field(default=False, metadata={"help": "A repository that is made is seen by you alone."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of a commit on the branch."})
    dry_run: bool = field(default=False, metadata={"help": "Check, and list what would go; send nothing."})

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise UserError(f"--repo_id {self.repo_id}: {error}") from None
        if not self.commit_message.strip():
            raise UserError("--commit_message is empty; a commit needs one.")
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            raise UserError("--revision names a commit; a push goes to a branch.")
        if self.create_pr and self.tag:
            raise UserError("--tag and --create_pr exclude each other: tag the commit once it is merged.")


def main() -> None:
    (args,) = HfArgumentParser(PushArguments).parse_args_into_dataclasses()
    folder = Path(args.model_folder)
    files = check_folder(folder)
    if args.dry_run:
        print(f"dry run: this would go to {args.repo_id}; nothing was sent.")
    else:
        Push(args, files).run()


def check_folder(folder: Path) -> dict[str, Path]:
    """Everything that goes up, by its path in the repository. Prints it, with what stays here. Sends nothing."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.")
    try:
        files, left_out = plan(folder)
        config = check_config(folder)
        check_code(folder, config["auto_map"])
        weights = check_weight_files(folder, files, left_out)
        notes = check_card(folder / "README.md") if "README.md" in files else ["none, so the repository gets no card"]
        check_model(folder, config, weights)
        sizes = {path: file.stat().st_size for path, file in files.items()}
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error.strerror or error}.") from None
    width = max(map(len, sizes))
    for path, size in sizes.items():
        print(f"{path:{width}}  {readable(size):>8}")
    print(f"{len(sizes)} files, {readable(sum(sizes.values()))}")
    if left_out:
        print("left out: " + ", ".join(f"{path} ({reason})" for path, reason in left_out.items()))
    for note in notes:
        print(f"README.md: {note}")
    if "tokenizer_config.json" not in files:
        print("tokenizer_config.json: none, so text pipelines will not open this repository")
    return files


def readable(size: int) -> str:
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

PICKLE, TRAINER, LOGS, CACHE, UNFINISHED, HIDDEN = (
    "pickle",
    "state of the Trainer",
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
    "events.out.tfevents.*": LOGS,
    "*.log": LOGS,
    "*.py[co]": CACHE,
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib"), PICKLE),
    **dict.fromkeys(("*.tmp", "*.temp", "*.incomplete", "*.lock", "*.swp", "*.bak", "*.orig", "*~"), UNFINISHED),
    ".*": HIDDEN,
}


def plan(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files that go up by their path in the repository, and what stays here with the reason."""
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
    """config.json: of this model, and with the names of the code that opens it."""
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
    """A hint where the model may be, when it is not in `folder`."""
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
    for name, reference in auto_map.items():
        module, class_name = reference.split(".")
        if not any(isinstance(node, ast.ClassDef) and node.name == class_name for node in trees[module].body):
            raise UserError(
                f"{folder / module}.py has no class {class_name}, which `auto_map` names for {name}. {SAVE_AGAIN}"
            )


def relative_imports(tree: ast.Module) -> Iterator[str]:
    """The modules beside this one that it imports: `x` of `from .x import y`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


# --------------------------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------------------------

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
Shapes = dict[str, tuple[int, ...]]


def is_weights(path: str) -> bool:
    """`path` is one that `from_pretrained` looks for."""
    return path in (SINGLE, INDEX) or SHARD.fullmatch(path) is not None


def check_weight_files(folder: Path, files: dict[str, Path], left_out: dict[str, str]) -> Shapes:
    """Names and shapes of all weights. Moves shards that the index does not name from `files` to `left_out`."""
    if SINGLE in files and INDEX in files:
        raise UserError(f"{folder} holds both {SINGLE} and {INDEX}; delete those of an earlier save.")
    if SINGLE in files:
        names, where = [SINGLE], None
    elif INDEX in files:
        where = read_json(files[INDEX]).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise UserError(f"{files[INDEX]} has no `weight_map`. {SAVE_AGAIN}")
        names = sorted(set(where.values()))
    else:
        pickled = [path for path, reason in left_out.items() if reason == PICKLE and "model" in path]
        if pickled:
            raise UserError(
                f"the weights in {folder} are pickled ({', '.join(pickled)}); a pickle can run code where it is opened. "
                "Load the model and save it again: `save_pretrained` writes safetensors."
            )
        raise UserError(f"there are no weights in {folder}: no {SINGLE}. {_better_folder(folder)}")

    shapes: Shapes = {}
    for name in names:
        if name not in files:
            raise UserError(f"{folder / name} is missing, which {INDEX} names. {SAVE_AGAIN}")
        found = read_shapes(files[name])
        strange = set(found) ^ {key for key, file in where.items() if file == name} if where else ()
        if strange:
            raise UserError(f"{INDEX} and {name} do not agree on {some(strange)}. {SAVE_AGAIN}")
        shapes |= found
    for path in [path for path in files if is_weights(path) and path not in (*names, INDEX)]:
        del files[path]
        left_out[path] = "of an earlier save"
    for path, file in files.items():
        if path.endswith(".safetensors") and path not in names:
            read_shapes(file)
    return shapes


def read_shapes(path: Path) -> Shapes:
    """Opens a safetensors file, reads it whole, and refuses numbers that are not finite."""
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
    except Exception as error:  # the code is the user's: whatever it raises is what its users would see
        raise UserError(
            f"{folder}: its code does not build a {architecture} from config.json "
            f"({type(error).__name__}: {str(error).strip()})."
        ) from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = []
    if missing := set(expected) - set(weights) - set(model.all_tied_weights_keys):
        problems.append(f"lack {some(missing)}")
    if unexpected := set(weights) - set(expected):
        problems.append(f"have {some(unexpected)}, which the model has not")
    for name in sorted(set(weights) & set(expected)):
        if weights[name] != expected[name]:
            problems.append(f"have {name} of shape {weights[name]}, the model {expected[name]}")
            break
    if problems:
        raise UserError(
            f"{folder}: the weights are not those of the {architecture} of config.json: they {'; they '.join(problems)}. "
            "Save model and configuration again, together."
        )


def some(names) -> str:
    """The first few names of many."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --------------------------------------------------------------------------------------------------------------------
# Model card
# --------------------------------------------------------------------------------------------------------------------

# Identifiers of https://huggingface.co/docs/hub/repositories-licenses. The Hub adds to its list, so an unknown one is
# refused only where it is plainly one of these, spelled otherwise; the Hub itself decides on the rest.
LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
    llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql
    unknown unlicense wtfpl zlib
""".split()


class _UniqueKeyLoader(yaml.SafeLoader):
    """The Hub's YAML reader refuses a key that comes twice; Python's takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"`{key_node.value}` comes twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node))
        return super().construct_mapping(node, deep)


def check_card(path: Path) -> list[str]:
    """
    Refuses metadata of a README.md that the Hub is known to refuse, as far as that can be told without asking it, with
    file, field and cure. Returns remarks on what it would take but probably should not be so.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        if text.lstrip().startswith("---"):
            raise UserError(f"{path}: the metadata that begins with --- does not end; close it with a line ---.")
        return ["no metadata; the Hub takes it, but shows no license, task or tags"]
    try:
        data = yaml.load(block[2], Loader=_UniqueKeyLoader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = block[1].count("\n") + error.problem_mark.line + 1
        raise UserError(f"{path}, line {line}: the metadata is not YAML: {error.problem}.") from None
    if data is None:
        return ["empty metadata; the Hub takes it, but shows no license, task or tags"]
    if not isinstance(data, dict):
        raise UserError(f"{path}: the metadata is a {type(data).__name__}; it must be lines of `field: value`.")
    problems = [*_field_problems(data), *_license_problems(data), *_results_problems(data)]
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    remarks = []
    for name in _as_list(data.get("license")):
        if name not in LICENSES:
            remarks.append(f"`license: {name}` is none that this script knows; the Hub has the last word")
    if "other" in _as_list(data.get("license")) and not data.get("license_name"):
        remarks.append("`license: other` goes with a `license_name`, and with a LICENSE file or a `license_link`")
    return remarks


def _as_list(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _field_problems(data: dict) -> Iterator[str]:
    for name in ("pipeline_tag", "library_name", "license_name", "license_link", "model_name"):
        if name in data and not (isinstance(data[name], str) and data[name]):
            yield f"`{name}` must be a text, got {data[name]!r}."
    for name in ("license", "base_model", "datasets", "language", "metrics", "tags"):
        if name not in data:
            continue
        if data[name] in (None, "", []):
            yield f"`{name}` is empty; fill it in or delete the line."
        for index, value in enumerate(_as_list(data[name])):
            if not isinstance(value, str):
                yield f"`{name}[{index}]` must be a text, got {value!r}; put it in quotes."
    for name in ("datasets", "base_model"):
        for index, value in enumerate(_as_list(data.get(name))):
            if isinstance(value, str) and value and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value):
                yield f"`{name}[{index}]` is {value!r}; it must be an id on the Hub, NAME or OWNER/NAME, not a path."
    if "tags" in data and isinstance(data["tags"], str):
        yield "`tags` must be a list, one `- tag` a line."


def _license_problems(data: dict) -> Iterator[str]:
    known = {_bare(name): name for name in LICENSES}
    for name in _as_list(data.get("license")):
        if not isinstance(name, str) or name in LICENSES:
            continue
        if _bare(name) in known:
            yield f"`license` is {name!r}, which the Hub does not know; write {known[_bare(name)]!r}."


def _bare(name: str) -> str:
    """Apache-2.0, apache 2.0 and Apache License 2.0 are one."""
    return re.sub(r"license|version|[^a-z0-9+]", "", name.lower())


def _results_problems(data: dict) -> Iterator[str]:
    """`model-index`: the results, whose form the Hub checks closely."""
    index = data.get("model-index", [])
    if not isinstance(index, list):
        yield "`model-index` must be a list, one entry a model."
        return
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f"`{where}.name` must be a text."
        if not isinstance(model, dict) or not isinstance(model.get("results"), list):
            yield f"`{where}.results` must be a list."
            continue
        for j, result in enumerate(model["results"]):
            yield from _result_problems(result, f"{where}.results[{j}]")


def _result_problems(result, where: str) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f"`{where}` must have `task`, `dataset` and `metrics`."
        return
    needed = {"task": ("type",), "dataset": ("type", "name")}
    for part, names in needed.items():
        fields = result.get(part)
        for name in names:
            if not isinstance(fields, dict) or not (isinstance(fields.get(name), str) and fields[name]):
                yield f"`{where}.{part}.{name}` must be a text."
        for name in ("config", "split", "revision"):
            if isinstance(fields, dict) and not isinstance(fields.get(name, ""), str):
                yield f"`{where}.{part}.{name}` must be a text, got {fields[name]!r}; put it in quotes."
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f"`{where}.metrics` must be a list of at least one metric."
        return
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            yield f"`{where}.metrics[{k}].type` must be a text."
        if not isinstance(metric, dict) or metric.get("value") is None:
            yield f"`{where}.metrics[{k}].value` is missing."


# --------------------------------------------------------------------------------------------------------------------
# The Hub
# --------------------------------------------------------------------------------------------------------------------

NETWORK_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)


class Push:
    """
    One push. `written` says in words what has changed on the Hub so far, so that an error can tell what stands there.
    """

    def __init__(self, args: PushArguments, files: dict[str, Path]):
        self.args, self.files = args, files
        self.token = get_token()
        if not self.token:
            raise UserError(
                f"there is no token. Make one that may write at {constants.ENDPOINT}/settings/tokens, and set HF_TOKEN "
                "or run `hf auth login`."
            )
        self.api = HfApi(token=self.token)
        self.user = ""
        self.repo_id = args.repo_id
        self.branch = args.revision or "main"
        self.head: str | None = None  # commit that the branch was at
        self.doing = "reach the Hub"
        self.written: list[str] = []

    def run(self) -> None:
        try:
            self._run()
        except (*NETWORK_ERRORS, KeyboardInterrupt) as error:
            message = f"could not {self.doing}: {self._explain(error)} {self._what_stands()}"
            raise UserError(message.replace(self.token, "<token>")) from None

    def _run(self) -> None:
        self._sign_in()
        self._check_card()
        self.doing = f"look at {self.repo_id}"
        info = self._repository()
        refs = self.api.list_repo_refs(self.repo_id)
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        if self.branch in tags:
            raise UserError(f"--revision {self.branch} is a tag of {self.repo_id}; a push goes to a branch.")
        exists = self._find_branch(info, {branch.name: branch.target_commit for branch in refs.branches})
        there = self._tree(self.head)
        self.doing = "read the files again"
        changed = [path for path, file in self.files.items() if not same(file, there.get(path))]
        stale = [path for path in there if is_weights(path) and path not in self.files]
        self._check_tag(tags, will_commit=bool(changed or stale))
        if not exists:
            self.doing = f"make the branch {self.branch}"
            self.api.create_branch(self.repo_id, branch=self.branch, revision=self.head, exist_ok=True)
            self.written.append(f"The branch {self.branch} was made.")
        commit = self._commit(changed, stale) if changed or stale else self.head
        if not (changed or stale):
            print(f"nothing changed: {self.repo_id} has these files at commit {commit}; no commit was made.")
        if self.args.tag and self.args.tag not in tags:
            self.doing = f"set the tag {self.args.tag}"
            self.api.create_tag(self.repo_id, tag=self.args.tag, revision=commit)
            print(f"tag {self.args.tag} is at {commit}")
        print(f'open it with revision="{commit}", trust_remote_code=True')

    def _sign_in(self) -> None:
        self.doing = f"sign in at {constants.ENDPOINT}"
        answer = self.api.whoami()
        self.user = answer["name"]
        if "/" not in self.repo_id:
            self.repo_id = f"{self.user}/{self.repo_id}"
        if answer.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"the token of {self.user} may only read. Make one that may write at "
                f"{constants.ENDPOINT}/settings/tokens."
            )

    def _check_card(self) -> None:
        """The Hub's own check of the metadata, before anything is made there."""
        self.doing = "have README.md checked by the Hub"
        if "README.md" not in self.files:
            return
        text = self.files["README.md"].read_text(encoding="utf-8")
        if not REGEX_YAML_BLOCK.search(text):
            return
        try:
            card = ModelCard(text)
        except ValueError as error:
            raise UserError(f"{self.files['README.md']}: {error}") from None
        try:
            card.validate()
        except HfHubHTTPError:
            raise
        except ValueError as error:
            message = f"{self.files['README.md']}: the Hub refuses the metadata: {error}"
            raise UserError(message.replace(self.token, "<token>")) from None

    def _repository(self) -> ModelInfo:
        try:
            info = self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            if self.args.create_pr:
                raise UserError(f"there is no repository {self.repo_id} to open a pull request in.") from None
            self.doing = f"make the repository {self.repo_id}"
            self.api.create_repo(self.repo_id, private=self.args.private or None, exist_ok=True)
            self.written.append(f"The repository {self.repo_id} was made, and is empty.")
            print(f"made {'the private repository' if self.args.private else 'the repository'} {self.repo_id}")
            return self.api.model_info(self.repo_id)
        if self.args.private and info.private is False:
            raise UserError(
                f"{self.repo_id} exists and is public, which --private does not change. Make it private at "
                f"{constants.ENDPOINT}/{self.repo_id}/settings, or leave --private out."
            )
        return info

    def _find_branch(self, info: ModelInfo, branches: dict[str, str]) -> bool:
        """Sets `head`. False: the branch has to be made."""
        if self.branch.startswith("refs/"):
            self.head = self.api.model_info(self.repo_id, revision=self.branch).sha
            return True
        self.head = branches.get(self.branch, info.sha)
        if self.branch in branches or self.branch == "main":
            return True
        if self.args.create_pr:
            raise UserError(f"{self.repo_id} has no branch {self.branch} to open a pull request for.")
        return False

    def _check_tag(self, tags: dict[str, str], will_commit: bool) -> None:
        tag = self.args.tag
        if tag in tags and (will_commit or tags[tag] != self.head):
            raise UserError(
                f"{self.repo_id} has a tag {tag} already, at commit {tags[tag]}. Nothing was pushed; choose another --tag."
            )

    def _tree(self, revision: str | None) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _commit(self, changed: list[str], stale: list[str]) -> str:
        """All in one commit, which stands whole or not at all. `head` as its parent: nobody else's work is undone."""
        unchanged = len(self.files) - len(changed)
        if unchanged:
            print(f"{unchanged} of {len(self.files)} files are there already")
        if stale:
            print(f"removed from the repository, because from_pretrained might open them instead: {', '.join(stale)}")
        operations = [
            *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(self.files[path])) for path in changed),
            *(CommitOperationDelete(path_in_repo=path) for path in stale),
        ]
        self.doing = "upload"
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.args.commit_message,
            revision=self.args.revision,
            create_pr=self.args.create_pr,
            parent_commit=self.head,
        )
        self.written = [f"The files are in commit {commit.oid}."]
        print(f"pull request {commit.pr_url}" if self.args.create_pr else f"commit {commit.commit_url}")
        self.doing = "look at what arrived"
        there = self._tree(commit.pr_revision if self.args.create_pr else commit.oid)
        wrong = [path for path, file in self.files.items() if not same(file, there.get(path))]
        if wrong:
            raise UserError(
                f"commit {commit.oid} was made, but {some(wrong)} did not arrive as it is here. See whether the "
                "repository's .gitignore names it, or whether the folder changed meanwhile; then run this again."
            )
        return commit.oid

    def _explain(self, error: BaseException) -> str:
        """What went wrong, for someone who does not know the protocol."""
        if isinstance(error, KeyboardInterrupt):
            return "interrupted."
        chain: list[BaseException | None] = [error]
        while chain[-1] is not None:
            chain.append(chain[-1].__cause__)
        known = [cause for cause in chain if isinstance(cause, (httpx2.HTTPError, OfflineModeIsEnabled))]
        if not known:
            return f"{error}."
        cause = known[0]
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and forbids it; unset it."
        if not isinstance(cause, HfHubHTTPError):
            what = "no connection to" if isinstance(cause, httpx2.ConnectError) else "the connection broke to"
            return f"{what} {constants.ENDPOINT} ({cause or type(cause).__name__})."
        status = cause.response.status_code
        if status == 401:
            return (
                f"the Hub does not accept your token. Make a new one at {constants.ENDPOINT}/settings/tokens, and set "
                "HF_TOKEN or run `hf auth login`."
            )
        if status == 403:
            return (
                f"{self.user} may not write to {self.repo_id}: it belongs to someone else, or the token may not write "
                "there. Use a --repo_id of yours, a token that may write, or --create_pr."
            )
        if status == 412:
            return f"someone else has pushed to {self.branch} meanwhile; run this again."
        if isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError)):
            return f"{self.repo_id} has no {self.branch}, or the token may not see it."
        return f"the server answered {status} ({(cause.server_message or str(cause)).splitlines()[0]})."

    def _what_stands(self) -> str:
        """What this push has left on the Hub. Asks, where an upload was cut off: the commit may have been made."""
        if self.doing != "upload":
            return " ".join(self.written) or "Nothing was written."
        if self.args.create_pr:
            return f"No commit of {self.branch} was touched; see {constants.ENDPOINT}/{self.repo_id}/discussions."
        try:
            now = self.api.model_info(self.repo_id, revision=self.branch).sha
        except NETWORK_ERRORS:
            return f"Whether the commit was made is not known, since the Hub does not answer; {self.branch} was at {self.head}."
        if now == self.head:
            stands = f"No commit was made: {self.branch} is still at {now}. The same command tries again."
        else:
            stands = f"But {self.branch} is at commit {now} now; the same command tells whether the files are in it."
        return " ".join([*self.written, stands])


def same(file: Path, remote: RepoFile | None) -> bool:
    """The repository has this very content: by SHA-256 for a large file, else by git's object id."""
    if remote is None or remote.size != file.stat().st_size:
        return False
    with file.open("rb") as stream:
        if remote.lfs is not None:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
        digest = hashlib.sha1(b"blob %d\0" % remote.size)
        digest.update(stream.read())
        return digest.hexdigest() == remote.blob_id


if __name__ == "__main__":
    main()
