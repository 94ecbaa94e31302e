# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Makes one published checkpoint, from training to card, by its recipe in `recipes.py`.

    python scripts/maintain.py checkpoint sinkhorn-sotu-encoder
    python scripts/maintain.py checkpoint sinkhorn-sotu-lm --trained_in runs/causal_lm      # a run that ended before
    python scripts/maintain.py checkpoint sinkhorn-sotu-lm --refresh      # new code, generation config and card, old weights
    python scripts/maintain.py checkpoint sinkhorn-sotu-lm --evaluate_again      # the same, and new scores

An interrupted training run goes on where it was. The weights are stored in bfloat16 and opened in float32: they take
half the room, and give the same numbers on every machine. The folder that ships is then evaluated, as its users would do
it, and everything that the card tells goes to `results/checkpoints/`.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, HfArgumentParser

import modeling_sinkhorn  # noqa: F401  registers the classes
from common.errors import UserError
from common.run_record import write_json
from maintenance.cards import write_card
from maintenance.code_links import code_set_aside
from maintenance.recipes import RECIPES, Recipe


ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"


@dataclass
class CheckpointArguments:
    name: str = field(metadata={"help": f"One of {', '.join(RECIPES)}."})
    trained_in: str | None = field(
        default=None, metadata={"help": "Folder of the training run, from the root; default: runs/NAME."}
    )
    refresh: bool = field(
        default=False, metadata={"help": "Renew code, configuration and card of the folder; weights and scores stay."}
    )
    evaluate_again: bool = field(
        default=False, metadata={"help": "Renew these and the scores; weights and the record of training stay."}
    )

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise UserError(f"--name must be one of {', '.join(RECIPES)}, got {self.name}.")


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--name", *arguments]
    parser = HfArgumentParser(CheckpointArguments, prog="maintain.py checkpoint")
    (args,) = parser.parse_args_into_dataclasses(arguments)
    recipe, folder = RECIPES[args.name], ROOT / "checkpoints" / args.name
    results = ROOT / "results" / "checkpoints" / f"{args.name}.json"
    if args.refresh or args.evaluate_again:
        export(recipe, folder, folder)
    if args.evaluate_again:
        write_json(results, {"training": read(results)["training"], **evaluate(recipe, folder)})
    elif not args.refresh:
        trained_in = args.trained_in or f"runs/{args.name}"
        if not (ROOT / trained_in / "run.json").exists():  # written when a run ends
            run([*recipe.training_command(trained_in), "--resume_from_checkpoint", "last"])
        export(recipe, ROOT / trained_in, folder)
        write_json(results, {"training": read(ROOT / trained_in / "run.json"), **evaluate(recipe, folder)})
    write_card(args.name)
    print(f"The checkpoint is in checkpoints/{args.name}, its card beside it and in model_cards/{args.name}.md")


def run(command: list[str]) -> None:
    """One of our scripts, in a process of its own."""
    print("$", *command, flush=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if result.returncode:
        raise UserError(f"{command[0]} failed (status {result.returncode}); its words are above.")


def evaluate(recipe: Recipe, folder: Path) -> dict[str, dict]:
    """The runs that evaluate the folder that ships, and which weights they were."""
    records = {"weights": describe(folder / WEIGHTS)}
    for part in ("evaluation", "evaluation_on_books") if recipe.evaluate_on_books else ("evaluation",):
        output_dir = f"runs/{folder.name}-{part}"
        run(recipe.evaluation_command(f"checkpoints/{folder.name}", output_dir, part == "evaluation_on_books"))
        records[part] = read(ROOT / output_dir / "run.json")
    return records


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def export(recipe: Recipe, source: Path, folder: Path) -> None:
    """Model, tokenizer and links to the code of `source`, complete for the Hub, in `folder`."""
    config = AutoConfig.from_pretrained(source)
    model = getattr(transformers, recipe.auto_class).from_pretrained(source, config=config, dtype=torch.bfloat16)
    if recipe.generation:
        ids = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        model.generation_config = GenerationConfig(**ids, **recipe.generation)
    tokenizer = AutoTokenizer.from_pretrained(source)
    for name in ("is_local", "local_files_only"):  # how it was opened on this machine, which a save would write down
        tokenizer.init_kwargs.pop(name, None)
    with code_set_aside(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # `from_pretrained` opens weights in the type that the configuration names.
    settings = read(folder / "config.json") | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def describe(weights: Path) -> dict:
    return {"bytes": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
