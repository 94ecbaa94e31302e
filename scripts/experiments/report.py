# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Makes `docs/experiments.md` and its figures from the JSON files of runs, and `results/experiments/summary.json`: means
and spreads over seeds for other documents to quote. The conclusions in words are in the config files (`says`), next to
the settings; a number in them is written `{condition/model/score}` and filled in from the files.

    python scripts/maintain.py experiments
    python scripts/maintain.py experiments --results_dir runs/experiments_smoke --output runs/report/experiments.md
"""

import os
import re
from pathlib import Path
from typing import Any

from common.command_line import make_parser
from common.errors import UserError
from common.run_record import write_json
from experiments.plan import BUDGETS, experiments, load_config
from experiments.results import cell, load_records, select, summary
from experiments.tables import table


ROOT = Path(__file__).resolve().parents[2]


TITLES = {
    "sorting": "Sorting integers",
    "needle": "Needles",
    "listops": "ListOps",
    "imdb": "IMDb reviews",
    "sotu_party": "Long documents: the president's party",
    "byte_lm": "Language modelling of bytes",
    "sotu_qa": "Question answering",
    "ablations": "One factor at a time",
    "token_routing": "Routing by token",
    "token_settings": "Settings of routing by token",
}
INTRODUCTION = """\
# Experiments

What sorting is worth: the same small model with each kind of attention, at equal parameters, steps and data. Each number
comes from the JSON files in `results/experiments/`, one for a run, which hold its command, commit, versions and machine.
This page and its figures are made from them by

```bash
python scripts/maintain.py experiments
```

and the runs by `python scripts/run_experiments.py all --jobs 2` (`--help` tells the rest).

| model | |
|---|---|
| `full` | full attention |
| `local`, `local2`, `local3`, `local4` | block-local attention: the block itself, with one block before (encoder: on each side), with two, with three |
| `soft`, `hard` | Sinkhorn attention that mixes blocks (the paper's), or that gathers the best one |
| `hard2` | hard, two sorted blocks |
| `soft0`, `hard0` | without balancing |
| `token_bilinear`, `token_keys`, `token_index` | each token chooses two blocks for itself, without balancing; `_balanced`: with it; `_four`: four blocks |
| `quiet` | soft, without Gumbel noise in training |
| `far` | soft, with two local blocks, balanced by capacity, the first token as descriptor |
| `sortcut` | every query reads the first two sorted blocks |
| `mixture` | Sinkhorn attention and full attention |
| `longformer`, `bigbird` | from Transformers; in Longformer the first token, or all that of a question, reads everything |
| `synthesizer_dense`, `synthesizer_random` | [Synthesizers](https://arxiv.org/abs/2005.00743): a row of the attention map made from its token and place alone, or learned for each pair of places; no token is compared with another |

A cell is the mean over seeds ± the standard deviation, where there are several seeds; the best mean of a column is bold, of the
models with the most seeds, which with few seeds proves little. Parameters do not count tables of learned positions, which Longformer, BigBird and Synthesizers have.
"""


def render(records: list[dict[str, Any]], figures: dict[tuple[str, str], list[str]]) -> str:
    """The page. `figures`: paths of figures, relative to it, by experiment and budget."""
    parts = [INTRODUCTION]
    if not records:
        parts.append("No run has been made yet.\n")
    for name in [*TITLES, *(name for name in experiments() if name not in TITLES)]:
        if not select(records, experiment=name):
            continue
        config = load_config(name)
        parts.append(f"## {TITLES.get(name, name)}\n\n{config['about'].strip()}\n")
        for budget in BUDGETS:
            found = select(records, experiment=name, budget=budget)
            if not found:
                continue
            if budget == "smoke":
                parts.append("A few steps of each, which show that the code runs and nothing else.\n")
            elif config.get("says"):
                parts.append(fill_in_scores(config["says"], found).strip() + "\n")
            parts.append(f"{describe_training(found)}\n\n{table(found, config)}\n")
            parts += [
                f"![{TITLES.get(name, name)}: {Path(path).stem}]({path})\n" for path in figures.get((name, budget), ())
            ]
    return "\n".join(parts)


def fill_in_scores(text: str, records: list[dict[str, Any]]) -> str:
    """`text` with each `{condition/model/score}`, such as `{256/soft/test.accuracy}`, replaced by mean and spread."""

    def number(match: re.Match) -> str:
        condition, model, path = match.groups()
        found = cell(select(records, condition=condition, model=model), path)
        if found is None:
            raise UserError(f"no run gives {match.group()}; a sentence in a config file asks for it.")
        return str(found)

    return re.sub(r"\{([^/{}]+)/([^/{}]+)/([^/{}]+)\}", number, text)


def describe_training(records: list[dict[str, Any]]) -> str:
    """Steps and rows a step of each condition, as trained."""
    trained = {}
    for record in records:
        trained.setdefault(record["condition"], set()).add(
            (record["steps"], record["training"]["per_device_train_batch_size"])
        )
    texts = [
        f"{condition.replace('_', ' ')}: "
        + ", ".join(f"{steps:,} steps of {rows} rows" for steps, rows in sorted(found))
        for condition, found in sorted(trained.items())
    ]
    return "Training: " + "; ".join(texts) + "."


def figure_names(records: list[dict[str, Any]], folder: str) -> dict[tuple[str, str], list[str]]:
    """Where `draw` puts the figures of these runs."""
    return {
        (name, budget): [f"{folder}/{name}-{budget}-{kind}.png" for kind in load_config(name).get("figures", ())]
        for name, budget in sorted({(record["experiment"], record["budget"]) for record in records})
    }


def draw(records: list[dict[str, Any]], folder: Path) -> None:
    from experiments.figures import draw_all  # the page alone needs no matplotlib

    for name, budget in sorted({(record["experiment"], record["budget"]) for record in records}):
        found = select(records, experiment=name, budget=budget)
        draw_all(found, load_config(name), folder / f"{name}-{budget}")


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py experiments")
    parser.add_argument(
        "--results_dir", type=Path, default=ROOT / "results" / "experiments", help="Files of run_experiments.py."
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "experiments.md", help="Page to write.")
    parser.add_argument("--figures_dir", type=Path, help="Default: figures/ next to the page.")
    options = parser.parse_args(arguments)
    folder = options.figures_dir or options.output.parent / "figures"
    records = load_records(options.results_dir)
    draw(records, folder)
    relative = Path(os.path.relpath(folder, options.output.parent)).as_posix()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(render(records, figure_names(records, relative)), encoding="utf-8")
    write_json(options.results_dir / "summary.json", summary(records))
    print(f"{len(records)} runs: {options.output}")
