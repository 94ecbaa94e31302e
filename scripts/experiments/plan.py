# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Turns config files into runs. A run is one model, on one condition of one experiment, at one budget, from one seed.

A config file gives `task`, and under `data`, `model` and `training` the settings of all its runs. Each entry of
`conditions` (what varies in the task), then of `budgets` (how much is run), then of `variants` (what varies in the
model) may change them. A budget, `full` or `smoke`, names the seeds, models and conditions (`run`) to run, and in its
own `conditions` the differences for one of them.
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError


CONFIGS = Path(__file__).resolve().parent / "configs"
BUDGETS = ("full", "smoke")
SETTINGS = ("task", "data", "model", "training")


@dataclass(frozen=True)
class Run:
    experiment: str
    budget: str
    condition: str
    model: str
    seed: int
    settings: dict[str, Any] = field(hash=False)  # those of SETTINGS, and `as`, `serve`, `descriptor` of a variant

    @property
    def name(self) -> str:
        return f"{self.experiment}.{self.condition}.{self.model}.seed{self.seed}"

    @property
    def work_folder(self) -> str:
        """For its checkpoints; another one once the settings are others."""
        settings = json.dumps(self.settings, sort_keys=True).encode()
        return f"{self.name}.{hashlib.sha256(settings).hexdigest()[:8]}"

    @property
    def command(self) -> list[str]:
        """What makes this one run again, from the root of the repository."""
        flags = {"conditions": self.condition, "only": self.model, "seeds": str(self.seed)}
        flags = itertools.chain.from_iterable((f"--{name}", value) for name, value in flags.items())
        return [
            "scripts/run_experiments.py",
            self.experiment,
            *flags,
            *(["--smoke"] if self.budget == "smoke" else []),
        ]


def experiments() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_config(experiment: str) -> dict[str, Any]:
    path = CONFIGS / f"{experiment}.yaml"
    if not path.is_file():
        raise UserError(f"there is no experiment '{experiment}'; there are {', '.join(experiments())}, and all.")
    # The same loader in C, where there is one, takes a tenth of the time.
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def merged(base: dict, *changes: dict | None) -> dict:
    """A copy of `base` with each of `changes` laid over it, level by level."""
    result = copy.deepcopy(base)
    for change in changes:
        for name, value in (change or {}).items():
            nested = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if nested else copy.deepcopy(value)
    return result


def _settings_in(part: dict | None) -> dict:
    return {name: value for name, value in (part or {}).items() if name in SETTINGS}


def runs_of(
    experiment: str,
    budget: str,
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    models: list[str] | None = None,
    conditions: list[str] | None = None,
) -> Iterator[Run]:
    """The runs of an experiment: those of the budget, or other seeds, models and conditions of the file by name."""
    config = config or load_config(experiment)
    plan = config["budgets"][budget]
    variants = config.get("variants", {})
    for condition in conditions or plan.get("run", list(config["conditions"])):
        if condition not in config["conditions"]:
            continue
        own = plan.get("conditions", {}).get(condition, {})
        names = own.get("models") or plan.get("models") or config.get("models") or list(variants)
        if models is not None:
            names = [name for name in models if name in names or name in config.get("models", variants)]
        for seed, model in itertools.product(seeds or own.get("seeds") or plan["seeds"], names):
            variant = variants.get(model, {})
            settings = merged(
                _settings_in(config),
                _settings_in(config["conditions"][condition]),
                _settings_in(plan),
                _settings_in(own),
                _settings_in(variant),
            )
            settings["as"] = variant.get("as", "soft" if variants else model)
            settings["serve"] = variant.get("serve", {})
            if "descriptor" in variant:
                settings["descriptor"] = variant["descriptor"]
            yield Run(experiment, budget, condition, model, seed, settings)


def all_runs(names: list[str], budget: str, first: Sequence[str] = (), **choice: Any) -> list[Run]:
    """
    Of several experiments; the first seed of each before the second of any, so that a stopped set is of use. Before
    them, all seeds of the conditions that are named `first`.
    """
    runs = [run for name in names for run in runs_of(name, budget, **choice)]
    return sorted(runs, key=lambda run: (run.condition not in first, run.seed))
