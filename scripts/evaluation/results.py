# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The JSON file of an evaluation: what is in it is not measured again, so that a run resumes where it broke off."""

import json
import re
from collections.abc import Iterable
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

from common.errors import UserError
from common.run_record import command, provenance, write_json


RECORD = ("command", "commit", "machine", "versions")  # of a run


class Results:
    """
    `models[label]` holds a description and, in `measured`, a value for each case: `task/length/depth/seed`. The records of
    runs whose results are kept stay in the file too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.models: dict[str, dict[str, Any]] = {}
        self.earlier_runs: list[dict[str, Any]] = []
        if path.is_file():
            try:
                saved = json.loads(path.read_text(encoding="utf-8"))
                # A file has its keys in the order of the alphabet; the first model is the one that others are compared with.
                self.models = {label: saved["models"][label] for label in saved["labels"]}
                self.earlier_runs = [*saved.get("earlier_runs", []), {name: saved[name] for name in RECORD}]
            except (ValueError, KeyError):
                raise UserError(f"--results {path} is no file of this program: name another, or delete it.") from None

    def begin(self, label: str, description: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the file has other results by this label.
        """
        known = self.models.setdefault(label, {"description": description, "measured": {}})
        if known["description"] != json.loads(json.dumps(description)):
            raise UserError(
                f"--results {self.path} has results of another model by the label '{label}': give the model another "
                "label, or name another file."
            )

    def has(self, label: str, case: str) -> bool:
        return case in self.models[label]["measured"]

    def put(self, label: str, case: str, value: dict[str, Any]) -> None:
        self.models[label]["measured"][case] = value
        self.write()

    def write(self) -> None:
        content = {"labels": list(self.models), "models": self.models, "summary": summary(self.models)}
        # Of a folder anywhere on this machine its name says enough.
        flags = [re.sub(r"(^|=)/[^?,]*/", r"\1", flag) for flag in command()]
        run = json.loads(json.dumps({**provenance(), "command": flags}))
        earlier = [record for record in self.earlier_runs if record != run]
        write_json(self.path, {**run, **content, "earlier_runs": earlier})


def summary(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """
    Per model: `perplexity`, of each part of the texts and of all; `worst_text`, the largest quotient of a text's
    perplexity and that by the first model; `task/length`: means over depths and seeds, and over seeds at each depth;
    `cost/length`.
    """
    first = next(iter(models.values()))["measured"] if models else {}
    return {label: _of_model(model["measured"], first) for label, model in models.items()}


def _of_model(measured: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    texts = {case: value for case, value in measured.items() if case.startswith("perplexity/")}
    if texts:
        ends = next(iter(texts.values()))["ends"]
        found["perplexity"] = {str(end): perplexity(texts.values(), part) for part, end in enumerate(ends)} | {
            "all": perplexity(texts.values())
        }
        ratios = [perplexity([value]) / perplexity([first[case]]) for case, value in texts.items() if case in first]
        if ratios:
            found["worst_text"] = max(ratios)
            found["texts"] = len(ratios)
    grids: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case, value in measured.items():
        task, length, *place = case.split("/")
        if task == "cost":
            found[case] = value
        elif task != "perplexity":
            grids.setdefault(f"{task}/{length}", {}).setdefault(place[0], []).append(value)
    for name, depths in grids.items():
        everything = [value for values in depths.values() for value in values]
        found[name] = {
            **_means(everything),
            "number": len(everything),
            "depths": {depth: _means(values) for depth, values in sorted(depths.items(), key=lambda x: float(x[0]))},
        }
    return found


def _means(values: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(value[name] for value in values) for name in ("given", "written", "nats")}


def perplexity(texts: Iterable[dict[str, Any]], part: int | None = None) -> float:
    """Of all tokens together, or of one part of each text."""
    parts = slice(None) if part is None else slice(part, part + 1)
    texts = list(texts)
    nats, tokens = (sum(sum(text[name][parts]) for text in texts) for name in ("nats", "tokens"))
    return exp(nats / tokens)
