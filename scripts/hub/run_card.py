# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""A model card for a folder that has none, from the `run.json` that the training scripts leave in it."""

import re
from pathlib import Path
from typing import Any

import yaml

from hub.folder_checks import read_json


TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
}
NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}


def card_from_run(folder: Path, title: str, license_name: str) -> str | None:
    """The text of the card of the repository `title`; `None` where there is no `run.json`."""
    if not (folder / "run.json").is_file():
        return None
    run = read_json(folder / "run.json")
    config = read_json(folder / "config.json")
    architecture = (config.get("architectures") or [""])[0]
    task = next((task for name, task in TASKS.items() if architecture.endswith(name)), None)
    metadata: dict[str, Any] = {"license": license_name, "library_name": "transformers"}
    if task:
        metadata["pipeline_tag"] = task
    metadata["tags"] = ["sinkhorn"]
    base = run.get("base_model", _named_in(run.get("command", [])))
    if base and "/" in base:  # a Hub id: of a folder the record has the last part alone
        metadata["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {title}\n",
        f"A {architecture or 'model'} with Sparse Sinkhorn Attention, "
        + (f"fine-tuned from `{base}`." if base else "trained from scratch."),
        _data(run),
        _scores(run),
        f"## How it was made\n\n```bash\n{' '.join(_without_paths(run.get('command', [])))}\n```\n",
        _versions(run),
    ]
    if _takes_mean_of_tokens(config):
        parts.append(_use_of_mean(config, f"USER/{title}"))
    elif task:
        parts.append(
            f'## Use\n\n```py\npipeline("{task}", model="USER/{title}", trust_remote_code=True)\n```\n\n'
            "The code comes with the model; pin a `revision` to run only what you have read.\n"
        )
    return "\n".join(part for part in parts if part)


def _takes_mean_of_tokens(config: dict[str, Any]) -> bool:
    kind = (config.get("architectures") or [""])[0]
    return kind.endswith("ForTokenClassification") and config.get("classifier_pooling") == "mean"


def _use_of_mean(config: dict[str, Any], name: str) -> str:
    """No pipeline takes a mean over tokens."""
    sparse = "sinkhorn_attention" in config
    lines = [
        *(["import interface_sinkhorn  # of the package; it registers the attention"] if sparse else []),
        "from transformers import AutoModelForTokenClassification, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForTokenClassification.from_pretrained("{name}"'
        + (', attn_implementation="sinkhorn").eval()' if sparse else ").eval()"),
        'logits = model(**tokenizer(text, return_tensors="pt")).logits.mean(1)  # of all tokens of the document',
        "print(model.config.id2label[logits.argmax(-1).item()])",
    ]
    return "## Use\n\n```py\n" + "\n".join(lines) + "\n```\n"


def _named_in(command: list[str]) -> str | None:
    """The model that a run without a note of it was started from; of a folder, the last part."""
    for flag, value in zip(command, command[1:]):
        if flag.replace("-", "_") == "__model_name_or_path":
            return value if re.fullmatch(r"[\w.-]+/[\w.-]+", value) else Path(value).name
    return None


def _data(run: dict[str, Any]) -> str:
    sizes = {name: size for name, size in run.get("data", {}).items() if name in ("train", "validation", "test")}
    unit = "rows" if "models" in run else "documents"
    told = ", ".join(f"{sizes[name]:,} {name}" for name in ("train", "validation", "test") if name in sizes)
    return f"\nData: {told} {unit}.\n" if told else ""


def _scores(run: dict[str, Any]) -> str:
    part = run.get("part", "validation")
    if "models" in run:  # of a language model
        found = run["models"].get("this model", {}).get("scores", {})
        part = part if part in found else next(iter(found), part)
        rows = {"this model": found.get(part, {})}
    else:
        rows = run.get("scores", {})
    columns = [name for name in NAMES if any(name in row for row in rows.values())]
    if not columns:
        return ""
    lines = [f"## Scores on the {part} data\n", f"| | {' | '.join(NAMES[name] for name in columns)} |"]
    lines.append("|---|" + "---|" * len(columns))
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{row[key]:.4f}' if key in row else '' for key in columns)} |")
    return "\n".join(lines) + "\n"


def _without_paths(command: list[str]) -> list[str]:
    """Folders of this machine are nobody's business: of a path outside the repository's own, the name alone."""
    shown = []
    for index, argument in enumerate(map(str, command)):
        flag, separator, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        if index and re.match(r"(/|~|\.\.?/|[A-Za-z]:\\)", value):
            value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        shown.append(f"{flag}{separator}{value}")
    return ["python", *shown] if shown else []


def _versions(run: dict[str, Any]) -> str:
    versions = run.get("versions", {})
    told = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name))
    return f"Seed {run.get('seed')}; {told}.\n" if told else ""
