# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Writes the model cards of the published checkpoints from `results/checkpoints/` and `model_cards/templates/`: to
`model_cards/` and, with the evaluation results in the form that the Hub reads, into each checkpoint's folder.

    python scripts/maintain.py cards
    python scripts/maintain.py cards --names sinkhorn-sotu-lm

`USER` stands for whoever pushes; `push_to_hub.py` puts the name in. A figure that a template asks for and the results
lack is an error.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import HfArgumentParser

from common.errors import UserError
from hub.card_checks import check_card
from maintenance.recipes import BOOKS_ENCODER, CAUSAL_LM, CLASSIFIER, ENCODER, MADE_FROM, RECIPES


ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "model_cards"
# What the shipped language model uses its sorting for.
INTERVENTIONS = ROOT / "results" / "experiments" / "interventions.json"
# Where their owner pushed data/sotu and data/books, and what is in them.
ADDRESSES, BOOKS = "USER/state-of-the-union", "USER/public-domain-books"
DATASETS = {
    ADDRESSES: "State of the Union addresses, 1790 to 2026",
    BOOKS: "Shakespeare, the King James Bible and Moby Dick",
}
PIPELINES = {
    ENCODER: "fill-mask",
    BOOKS_ENCODER: "fill-mask",
    CLASSIFIER: "text-classification",
    CAUSAL_LM: "text-generation",
}
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "perplexity": ("perplexity", "Perplexity"),
    "bits_per_byte": ("bits_per_byte", "Bits per byte"),
}


@dataclass
class CardArguments:
    names: list[str] = field(default_factory=lambda: list(RECIPES), metadata={"help": "Checkpoints; default: all."})


def main(arguments: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(CardArguments, prog="maintain.py cards").parse_args_into_dataclasses(arguments)
    for name in args.names:
        for path in write_card(name):
            print(path.relative_to(ROOT))


def write_card(name: str) -> list[Path]:
    """The card in `model_cards/` and in the checkpoint's folder, and its `.eval_results`; the files written."""
    path = ROOT / "results" / "checkpoints" / f"{name}.json"
    if name not in RECIPES or not path.is_file():
        raise UserError(f"there is no {path}; `python scripts/maintain.py checkpoint {name}` makes it.")
    results = json.loads(path.read_text(encoding="utf-8"))
    text, folder = card(name, results), ROOT / "checkpoints" / name
    files = {
        CARDS / f"{name}.md": text,
        folder / "README.md": text,
        **{folder / ".eval_results" / file: content for file, content in evaluation_files(name, results).items()},
    }
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    check_card(CARDS / f"{name}.md")
    return list(files)


def test_scores(name: str, results: dict) -> dict[str, dict[str, float]]:
    """The scores of the folder that ships on held-out text, by dataset and metric."""
    if name == CLASSIFIER:
        return {ADDRESSES: results["evaluation"]["scores"]["this model"]}
    runs = {ADDRESSES: results["evaluation"]}
    if RECIPES[name].evaluate_on_books:
        runs[BOOKS] = results["evaluation_on_books"]
    return {dataset: run["models"]["this model"]["scores"]["test"] for dataset, run in runs.items()}


def card(name: str, results: dict) -> str:
    """The card's text."""
    training, evaluation, recipe = results["training"], results["evaluation"], RECIPES[name]
    model = training.get("models", {}).get("this model", training)
    environment = Environment(
        loader=FileSystemLoader(CARDS / "templates"), undefined=StrictUndefined, keep_trailing_newline=True
    )

    evaluated = evaluation.get("models", {}).get("this model", {})
    values: dict[str, Any] = {
        "name": name,
        "repo_id": f"USER/{name}",
        "metadata": metadata(name, results),
        "training": training,
        "evaluation": evaluation,
        "books": results.get("evaluation_on_books"),
        "evaluation_sample": evaluated.get("sample"),
        "scores": evaluated.get("scores"),
        "chunks": training["data"],
        "model": model,
        "weights": results["weights"],
        "config": model["config"],
        "machine": training["machine"],
        "hours": model["seconds" if name == CLASSIFIER else "train_seconds"] / 3600,
        "command": "python " + " ".join(training["command"]),
        "evaluation_commands": [
            "python " + " ".join(recipe.evaluation_command(f"checkpoints/{name}", "runs/check", on_books))
            for on_books in (False, True)
            if recipe.evaluate_on_books or not on_books
        ],
        "base_model": base_model(name),
        "interventions": json.loads(INTERVENTIONS.read_text(encoding="utf-8")),
        "quote": lambda text: text.replace("\n", "\n> "),
    }
    text = environment.get_template(f"{name}.md").render(values)
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    text = re.sub(r"\n{3,}", "\n\n", text)  # templates leave empty lines around their blocks
    return re.sub(r"\n+```\n", "\n```\n", re.sub(r"```(\w+)\n+", r"```\1\n", text))


def base_model(name: str) -> str | None:
    return f"USER/{MADE_FROM[name]}" if name in MADE_FROM else None


def metadata(name: str, results: dict) -> str:
    """The YAML at the head of the card, with the `model-index`."""
    task = PIPELINES[name]
    evaluations = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=DATASETS[dataset],
            dataset_split="test",
            metric_type=METRICS[metric][0],
            metric_name=METRICS[metric][1],
            metric_value=value,
        )
        for dataset, scores in test_scores(name, results).items()
        for metric, value in scores.items()
    ]
    data = ModelCardData(
        model_name=name,
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=task,
        base_model=base_model(name),
        datasets=[ADDRESSES, BOOKS] if name == BOOKS_ENCODER else [ADDRESSES],
        metrics=[METRICS[metric][0] for metric in test_scores(name, results)[ADDRESSES]],
        tags=["sinkhorn", "sparse-attention", "long-context", "custom_code"],
        eval_results=evaluations,
    )
    return data.to_yaml()


def evaluation_files(name: str, results: dict) -> dict[str, str]:
    """The same results as files of `.eval_results`, one a dataset, one entry a metric."""
    files = {}
    for dataset, scores in test_scores(name, results).items():
        entries = [
            EvalResultEntry(
                dataset_id=dataset,
                task_id=f"{PIPELINES[name]}-{metric}",
                value=value,
                notes=f"{METRICS[metric][1]}, float32, weights {results['weights']['sha256'][:12]}",
            )
            for metric, value in scores.items()
        ]
        content = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        files[f"{dataset.removeprefix('USER/')}.yaml"] = content
    return files
