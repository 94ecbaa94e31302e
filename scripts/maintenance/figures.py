# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Draws the figures of `docs/lesson.md` and `docs/lesson.zh.md`.

    python scripts/maintain.py figures
    python scripts/maintain.py figures --only 05-balancing 11-causal --output_dir runs/figures

A figure shows numbers from `results/`, numbers that the project's own functions compute from a formula, or a scheme. Its
title says which. What is drawn is also written into the file, as JSON in the PNG's field `Description`, so that a test can
tell whether a figure is the one that the command would draw now.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")  # draws to a file, without a display

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Rectangle  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402

from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance  # noqa: E402
from benchmarking.plots import STYLES, points  # noqa: E402
from configuration_sinkhorn import SinkhornConfig  # noqa: E402
from modeling_sinkhorn import SinkhornModel  # noqa: E402


ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
SIX = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#999999")

# A matrix for the formulas: block 0 wants block 3 clearly, blocks 1 and 2 both want block 5, block 4 wants nothing.
LOGITS = [
    [0.1, 0.3, -0.2, 2.4, 0.0, 0.4],
    [0.2, -0.1, 0.5, 0.3, 0.1, 1.9],
    [1.2, 0.0, -0.3, 0.2, 0.4, 1.7],
    [0.3, 1.4, 0.2, 0.9, -0.2, 0.1],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [-0.1, 0.2, 1.6, 0.1, 0.8, 0.3],
]
TEMPERATURE, ITERATIONS = 0.75, 8  # the defaults of SinkhornConfig


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def as_list(tensor: torch.Tensor) -> list:
    return [as_list(part) for part in tensor] if tensor.dim() else round(float(tensor), 4)


# --------------------------------------------------------------------------------------------------------------------
# What is drawn
# --------------------------------------------------------------------------------------------------------------------


def cost() -> dict[str, Any]:
    """Scores that one head of one layer computes for `L` tokens, by formula."""
    lengths, b = [2**power for power in range(6, 17)], 64
    return {
        "tokens": lengths,
        "full: L²": [length**2 for length in lengths],
        "local: bL": [b * length for length in lengths],
        "Sinkhorn: 2bL + (L/b)²": [2 * b * length + (length // b) ** 2 for length in lengths],
    }


def principle() -> dict[str, Any]:
    return {"sorted beside each block": [3, 5, 0, 1, 4, 2]}


def architecture() -> dict[str, Any]:
    return {
        "model": ["tokens", "embedding", "layers x n", "RMSNorm", "head"],
        "layer": ["RMSNorm", "attention", "+", "RMSNorm", "gated MLP", "+"],
        "attention": ["blocks", "descriptors", "SortNet", "balancing", "sorted + local", "softmax"],
    }


def layer_types() -> dict[str, Any]:
    """Attention maps of head 0 of one untrained layer of each type, 20 tokens in blocks of 4."""
    kinds = {
        "full": ("full_attention", "soft"),
        "local": ("local_attention", "soft"),
        "Sinkhorn, soft": ("sinkhorn_attention", "soft"),
        "Sinkhorn, hard": ("sinkhorn_attention", "hard"),
        "mixture": ("mixture_attention", "soft"),
        "SortCut, hard": ("sortcut_attention", "hard"),
    }
    drawn = {}
    for causal in (False, True):
        for name, (layer_type, assignment) in kinds.items():
            if not (causal and layer_type == "sortcut_attention"):
                torch.manual_seed(1)
                config = SinkhornConfig(
                    vocab_size=50,
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    block_size=4,
                    initializer_range=0.3,
                    layer_types=[layer_type],
                    sort_assignment=assignment,
                    sortcut_blocks=1,
                    is_decoder=causal,
                )
                config._attn_implementation = "eager"
                model = SinkhornModel(config).eval()
                with torch.no_grad():
                    outputs = model(torch.arange(5, 25).unsqueeze(0), output_attentions=True, use_cache=False)
                drawn[f"{name}, causal" if causal else name] = as_list(outputs.attentions[0][0, 0])
    return drawn


def balancing() -> dict[str, Any]:
    logits = torch.tensor(LOGITS)[None, None] / TEMPERATURE
    return {f"{number} iterations": as_list(sinkhorn_balance(logits, None, number)[0, 0]) for number in (0, 1, 2, 8)}


def temperature() -> dict[str, Any]:
    logits = torch.tensor(LOGITS)[None, None]
    return {
        f"temperature {value}": as_list(sinkhorn_balance(logits / value, None, ITERATIONS)[0, 0])
        for value in (2.0, 0.75, 0.25, 0.1)
    }


def causal() -> dict[str, Any]:
    """Equal logits, 16 blocks."""
    allowed = torch.ones(16, 16, dtype=torch.bool).tril(-1)[None, None]
    equal = torch.zeros(1, 1, 16, 16)
    return {
        f"{number} iterations": as_list(causal_sinkhorn_balance(equal, allowed, number)[0][0, 0])
        for number in (0, 1, 2, 8)
    }


def epochs(log: list[dict[str, Any]], score: str) -> list[list[float]]:
    """`[epoch, score]`; the last evaluation repeats the best one, so the first of each epoch counts."""
    found: dict[float, float] = {}
    for entry in log:
        found.setdefault(entry["epoch"], entry[score])
    return [[epoch, round(value, 4)] for epoch, value in found.items()]


def routing() -> dict[str, Any]:
    """Of each layer, the head that ends with the largest weight on the page with the answer."""
    seen = results("experiments/routing.json")
    points, last = seen["points"], seen["points"][-1]["weights"]
    drawn: dict[str, Any] = {"steps": [point["step"] for point in points]}
    drawn["accuracy"] = [round(point["accuracy"], 4) for point in points]
    for layer, heads in enumerate(last):
        head = heads.index(max(heads))
        drawn[f"weight, layer {layer}"] = [round(point["weights"][layer][head], 4) for point in points]
    return drawn | {"pages": seen["pages"], "page": seen["shown"]["page"], "matrices": seen["shown"]["matrices"]}


def memory() -> dict[str, Any]:
    rows = results("benchmarks/cpu.json")["rows"]
    names = ("floor", "local", "sinkhorn hard", "sinkhorn soft", "full attention", "Longformer", "BigBird")
    return {name: [[length, round(value, 1)] for length, value in points(rows[name], "megabytes")] for name in names}


def time() -> dict[str, Any]:
    rows = results("benchmarks/cpu.json")["rows"]
    drawn = {}
    for name in ("sinkhorn soft", "sinkhorn hard", "local", "full attention", "BERT", "ModernBERT", "Longformer"):
        cells = {int(length): cell.get("forward_backward", {}) for length, cell in rows[name].items()}
        drawn[name] = [
            [length, round(cells[length]["ratio_to_floor"], 3)]
            for length in sorted(cells)
            if "ratio_to_floor" in cells[length]
        ]
    return drawn


def decoding() -> dict[str, Any]:
    rows = results("benchmarks/decoding.json")["rows"]
    return {
        name: [
            [
                int(length),
                round(cells[length]["milliseconds_per_token"], 3),
                *(round(x, 3) for x in cells[length]["spread"]),
            ]
            for length in sorted(cells, key=int)
        ]
        for name, cells in rows.items()
    }


def classification() -> dict[str, Any]:
    found = results("classification/sotu.json")
    return {
        f"by {split}": {
            name: [round(found[split]["summary"][name]["accuracy"][part], 4) for part in ("mean", "std")]
            for name in ("majority class", "TF-IDF, first 512 words", "TF-IDF, whole text", "this model")
        }
        for split in ("address", "president")
    }


def language() -> dict[str, Any]:
    models = results("language_modeling/sotu.json")["models"]
    names = {"this model": "Sinkhorn, soft", "local_attention": "local", "full_attention": "full"}
    return {
        label: {
            "validation": epochs(models[name]["log"], "eval_bits_per_byte"),
            "test": round(models[name]["scores"]["test"]["bits_per_byte"], 4),
        }
        for name, label in names.items()
    }


# --------------------------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------------------------


def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, panels = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for panel in panels.flat:
        panel.tick_params(labelsize=7)
    return figure, list(panels.flat)


def by_length(panel: plt.Axes, lengths: list[int], label: str) -> None:
    panel.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
    panel.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45)
    panel.xaxis.set_minor_formatter(NullFormatter())
    if panel.get_ylim()[1] < 10:
        panel.set_yticks([1, 1.5, 2, 3, 4, 6])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:,g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, linewidth=0.4)
    panel.legend(fontsize=7, loc="upper left")


def draw_cost(data: dict[str, Any]) -> plt.Figure:
    figure, (panel,) = canvas(6, 3.6)
    for (name, values), colour in zip(list(data.items())[1:], (ORANGE, GREEN, BLUE)):
        panel.plot(data["tokens"], values, color=colour, label=name)
    by_length(panel, data["tokens"][::2], "scores of one head")
    figure.suptitle("Formula: scores that one head computes, blocks of b = 64 tokens", fontsize=9)
    return figure


def draw_principle(data: dict[str, Any]) -> plt.Figure:
    order = data["sorted beside each block"]
    figure, (text, matrix, attend) = canvas(7.5, 2.9, columns=3)
    for block, colour in enumerate(SIX):
        text.add_patch(Rectangle((0, block), 1, 0.9, color=colour))
        text.text(0.5, block + 0.45, f"block {block}", ha="center", va="center", color="white", fontsize=8)
        source = order[block]
        for place, (number, shade) in enumerate(((source, SIX[source]), (block, colour))):
            attend.add_patch(Rectangle((place * 1.05, block), 1, 0.9, color=shade))
            attend.text(
                place * 1.05 + 0.5, block + 0.45, str(number), ha="center", va="center", color="white", fontsize=8
            )
    matrix.imshow(torch.nn.functional.one_hot(torch.tensor(order)).numpy(), cmap="Blues", vmax=1.3)
    matrix.set(xlabel="source block", ylabel="block")
    for panel, width in ((text, 1), (attend, 2.05)):
        panel.set(xlim=(-0.05, width + 0.05), ylim=(6, -0.1))
        panel.axis("off")
    text.set_title("1. cut into blocks", fontsize=9)
    matrix.set_title("2. learn a permutation", fontsize=9)
    attend.set_title("3. attend to sorted | own", fontsize=9)
    figure.suptitle("Scheme: one sorted block beside each block", fontsize=9)
    return figure


def draw_architecture(data: dict[str, Any]) -> plt.Figure:
    figure, (panel,) = canvas(7.5, 3.2)
    for line, ((name, boxes), colour) in enumerate(zip(data.items(), (GREY, GREEN, BLUE))):
        panel.text(0, line + 0.35, name, fontsize=9, va="center", fontweight="bold")
        step = 8.6 / len(boxes)
        for place, box in enumerate(boxes):
            left = 1.3 + place * step
            panel.add_patch(
                FancyBboxPatch(
                    (left, line + 0.1), step - 0.45, 0.5, boxstyle="round,pad=0.03", color=colour, alpha=0.25
                )
            )
            panel.text(left + (step - 0.45) / 2, line + 0.35, box, ha="center", va="center", fontsize=7.5)
            if place:
                panel.annotate(
                    "",
                    (left - 0.05, line + 0.35),
                    (left - 0.4, line + 0.35),
                    arrowprops={"arrowstyle": "->", "lw": 0.8},
                )
    panel.set(xlim=(0, 10), ylim=(3, 0))
    panel.axis("off")
    figure.suptitle("Scheme: the model, one of its layers, the attention of that layer", fontsize=9)
    return figure


def draw_layer_types(data: dict[str, Any]) -> plt.Figure:
    figure, panels = canvas(9, 3.6, columns=6, rows=2)
    for panel, (name, matrix) in zip(panels, data.items()):
        panel.imshow(matrix, cmap="magma_r", vmin=0, vmax=0.4)
        panel.set_title(name, fontsize=8)
        panel.set_xticks([edge - 0.5 for edge in range(4, 20, 4)], [])
        panel.set_yticks([edge - 0.5 for edge in range(4, 20, 4)], [])
        panel.grid(True, linewidth=0.3)
    for panel in panels[len(data) :]:
        panel.set_visible(False)
    title = (
        "Measured: source-token maps of one untrained layer: 20 tokens, blocks of 4 (rows: queries; dark: much weight)"
    )
    figure.suptitle(title, fontsize=9)
    return figure


def draw_matrices(data: dict[str, Any], title: str, sums: bool = True) -> plt.Figure:
    figure, panels = canvas(8.4, 2.7, columns=len(data))
    for panel, (name, matrix) in zip(panels, data.items()):
        panel.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
        panel.set_title(name, fontsize=8)
        if sums:
            columns = [sum(row[column] for row in matrix) for column in range(len(matrix))]
            panel.set_xticks(range(len(matrix)), [f"{total:.2f}" for total in columns], rotation=60, fontsize=6)
            panel.set_xlabel("sums of the columns", fontsize=7)
        else:
            panel.set_xlabel("source block", fontsize=7)
    panels[0].set_ylabel("block", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def draw_routing(data: dict[str, Any]) -> plt.Figure:
    figure, panels = canvas(8.4, 2.2, columns=1 + len(data["matrices"]))
    lines, matrices = panels[0], panels[1:]
    for name, colour in (("accuracy", ORANGE), ("weight, layer 0", BLUE), ("weight, layer 1", GREY)):
        lines.plot(data["steps"], data[name], color=colour, linewidth=1.2, label=name)
    lines.axhline(1 / data["pages"], color="black", linewidth=0.6, linestyle=":")
    lines.set_xlabel("steps", fontsize=7)
    lines.set_box_aspect(1)
    lines.grid(True, linewidth=0.4)
    lines.legend(fontsize=5, loc="center right")
    for panel, (step, matrix) in zip(matrices, data["matrices"].items()):
        panel.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
        panel.add_patch(Rectangle((data["page"] - 0.5, -0.5), 1, 1, fill=False, edgecolor=ORANGE, clip_on=False))
        panel.set_title(f"step {step}", fontsize=8)
        panel.set_xlabel("source block", fontsize=7)
    matrices[0].set_ylabel("block", fontsize=7)
    figure.suptitle(
        "Measured: a needle encoder learns to sort, one seed, results/experiments/routing.json. Box: block 0 asks for this one",
        fontsize=9,
    )
    return figure


def draw_by_length(data: dict[str, Any], label: str, title: str) -> plt.Figure:
    figure, (panel,) = canvas(6, 3.8)
    for name, curve in data.items():
        colour, marker, line = STYLES[name]
        panel.plot(*zip(*curve), line, color=colour, marker=marker or None, markersize=4, label=name)
    by_length(panel, sorted({point[0] for curve in data.values() for point in curve}), label)
    figure.suptitle(title, fontsize=9)
    return figure


def draw_decoding(data: dict[str, Any]) -> plt.Figure:
    figure, (panel,) = canvas(6, 3.6)
    for (name, curve), colour in zip(data.items(), (ORANGE, "#56B4E9", BLUE)):
        lengths, middle, lowest, highest = zip(*curve)
        panel.plot(lengths, middle, "o-", color=colour, markersize=4, label=name)
        panel.fill_between(lengths, lowest, highest, color=colour, alpha=0.2, linewidth=0)
    by_length(panel, list(lengths), "ms per token")
    panel.set_xlabel("tokens of context")
    figure.suptitle("Measured: what one more token costs, results/benchmarks/decoding.json", fontsize=9)
    return figure


def draw_classification(data: dict[str, Any]) -> plt.Figure:
    figure, (panel,) = canvas(6, 3.4)
    names = list(data["by address"])
    for place, (split, colour) in enumerate(zip(data, (BLUE, GREY))):
        means, spreads = zip(*(data[split][name] for name in names))
        places = [number + 0.36 * place for number in range(len(names))]
        panel.bar(places, means, 0.34, yerr=spreads, capsize=2, color=colour, alpha=0.8, label=split)
    panel.set_xticks([number + 0.18 for number in range(len(names))], names, fontsize=7)
    panel.set(ylabel="accuracy", ylim=(0, 1))
    panel.legend(fontsize=7)
    figure.suptitle("Measured: test passages, three seeds, mean ± standard deviation, by kind of split", fontsize=9)
    return figure


def draw_language(data: dict[str, Any]) -> plt.Figure:
    figure, (panel,) = canvas(6, 3.4)
    for (name, found), colour in zip(data.items(), (BLUE, GREEN, ORANGE)):
        panel.plot(*zip(*found["validation"]), "o-", color=colour, markersize=4, label=f"{name}: validation")
        panel.plot([2.15], [found["test"]], "*", color=colour, markersize=9, label=f"{name}: test")
    panel.set(xlabel="passes over the training text", ylabel="bits per byte", xticks=[1, 2])
    panel.grid(True, linewidth=0.4)
    panel.legend(fontsize=7)
    figure.suptitle("Measured: language models, one seed, results/language_modeling/sotu.json", fontsize=9)
    return figure


LESSON: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], plt.Figure]]] = {
    "01-cost": (cost, draw_cost),
    "02-principle": (principle, draw_principle),
    "03-architecture": (architecture, draw_architecture),
    "04-layer-types": (layer_types, draw_layer_types),
    "05-balancing": (
        balancing,
        lambda data: draw_matrices(data, "Formula: Sinkhorn balancing of six blocks, temperature 0.75"),
    ),
    "06-routing": (routing, draw_routing),
    "07-temperature": (
        temperature,
        lambda data: draw_matrices(data, "Formula: the same logits, 8 iterations, four temperatures"),
    ),
    "08-memory": (
        memory,
        lambda data: draw_by_length(data, "peak MB", "Measured: forward and backward, results/benchmarks/cpu.json"),
    ),
    "09-time": (
        time,
        lambda data: draw_by_length(
            data,
            "time, floor = 1",
            "Measured: forward and backward, multiples of the floor, results/benchmarks/cpu.json",
        ),
    ),
    "10-decoding": (decoding, draw_decoding),
    "11-causal": (
        causal,
        lambda data: draw_matrices(data, "Formula: causal balancing of 16 blocks with equal logits", sums=False),
    ),
    "12-classification": (classification, draw_classification),
    "13-language": (language, draw_language),
}


def path_of(name: str, folder: Path = FIGURES) -> Path:
    return folder / f"lesson-{name}.png"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="maintain.py figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=LESSON, help=f"Some of: {', '.join(LESSON)}.")
    parser.add_argument("--output_dir", type=Path, default=FIGURES, help="Where they go; default: docs/figures.")
    options = parser.parse_args(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name in options.only or LESSON:
        compute, draw = LESSON[name]
        data = compute()
        figure = draw(data)
        figure.savefig(
            path_of(name, options.output_dir), dpi=100, metadata={"Software": None, "Description": json.dumps(data)}
        )
        plt.close(figure)
