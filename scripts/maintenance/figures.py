# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Draws the figures of `docs/lesson.md` and `docs/lesson.zh.md`.

    python scripts/maintain.py figures
    python scripts/maintain.py figures --only 05-balancing 11-causal --output_dir runs/figures

A figure shows numbers from `results/`, numbers computed by the project's own functions, or a scheme; its title says
which. The data is also in the PNG's field `Description` as JSON, so that a test can check whether a figure is up to
date.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarking.plots import STYLES
from common.command_line import make_parser
from common.pyplot import plt
from maintenance.figure_data import (
    architecture,
    balancing,
    causal,
    classification,
    conversion,
    cost,
    decoding,
    each_token,
    interface,
    language,
    layer_types,
    memory,
    principle,
    routing,
    temperature,
    time,
)


FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#888888"
BLOCK_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#999999")


# --------------------------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------------------------


def canvas(
    width: float, height: float, columns: int = 1, rows: int = 1, widths: list[float] | None = None
) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, panels = plt.subplots(
        rows, columns, figsize=(width, height), width_ratios=widths, squeeze=False, layout="constrained"
    )
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
    for block, colour in enumerate(BLOCK_COLOURS):
        text.add_patch(Rectangle((0, block), 1, 0.9, color=colour))
        text.text(0.5, block + 0.45, f"block {block}", ha="center", va="center", color="white", fontsize=8)
        source = order[block]
        for place, (number, shade) in enumerate(((source, BLOCK_COLOURS[source]), (block, colour))):
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
        "Measured: a needle encoder learns to sort, one seed, results/experiments/routing.json. "
        "Box: block 0 asks for this one",
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
    for (name, curve), colour in zip(data.items(), (ORANGE, "#56B4E9", BLUE, PURPLE), strict=True):
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


def bars(panel: plt.Axes, data: dict[str, dict[str, Any]], colours: tuple[str, ...], label: str) -> None:
    """A group for each inner key, a colour for each outer one; a value is a number, or a mean and a spread."""
    names = list(next(iter(data.values())))
    width = 0.8 / len(data)
    for place, (series, colour) in enumerate(zip(data, colours)):
        values = [data[series][name] for name in names]
        means, spreads = zip(*(value if isinstance(value, list) else (value, 0) for value in values))
        places = [number + width * place for number in range(len(names))]
        panel.bar(
            places,
            means,
            width * 0.94,
            yerr=spreads if any(spreads) else None,
            capsize=2,
            color=colour,
            alpha=0.8,
            label=series,
        )
    panel.set_xticks([number + 0.4 - width / 2 for number in range(len(names))], names, fontsize=7)
    panel.set_ylabel(label, fontsize=8)
    panel.grid(True, axis="y", linewidth=0.4)
    panel.set_axisbelow(True)


def draw_each_token(data: dict[str, Any]) -> plt.Figure:
    figure, (found, busiest, time_of_a_pass) = canvas(9, 3.2, columns=3, widths=[2, 1.15, 1])
    bars(found, data["accuracy"], (BLUE, GREEN), "accuracy")
    found.axhline(1 / 8, color="black", linewidth=0.6, linestyle=":")
    found.set_ylim(0, 1.25)
    bars(busiest, data["busiest block"], (BLUE, GREY), "work of the busiest block, even share = 1")
    busiest.set_ylim(0, 5)
    bars(time_of_a_pass, {"8,192 tokens": data["time"]}, (BLUE,), "time, floor = 1")
    time_of_a_pass.set_ylim(0, 5.5)
    for panel in (found, busiest, time_of_a_pass):
        panel.legend(fontsize=7, loc="upper left")
    figure.suptitle(
        "Measured: who chooses, and by what: the needle of a decoder, the work of its blocks, a forward and backward pass",
        fontsize=9,
    )
    return figure


def draw_conversion(data: dict[str, Any]) -> plt.Figure:
    figure = plt.figure(figsize=(9, 5.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 2])
    perplexity, found = above.subplots(1, 2)
    more = {
        label: {end if end == "all" else f"to {int(end):,}": 100 * (value - 1) for end, value in values.items()}
        for label, values in list(data["perplexity"].items())[1:]
    }
    bars(
        perplexity,
        more,
        (BLUE, "tab:gray", "tab:cyan", "tab:purple", "tab:olive", GREEN),
        "more perplexity than as it was, %",
    )
    perplexity.set_xlabel("tokens", fontsize=7)
    lines = {
        label: {f"{name.partition('/')[0]}\n{int(name.partition('/')[2]):,}": value for name, value in values.items()}
        for label, values in data["found"].items()
    }
    bars(found, lines, (ORANGE, BLUE, GREEN), "tokens of the answer right")
    found.set_ylim(0, 1.35)
    found.set_yticks([0, 0.25, 0.5, 0.75, 1])
    for panel in (perplexity, found):
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6.5, loc="upper left")
    panels = below.subplots(1, len(data["passkey"]), sharey=True)
    for panel, (label, by_length_and_depth) in zip(panels, data["passkey"].items()):
        depths = list(next(iter(by_length_and_depth.values())))
        cells = [[by_depth[depth] for by_depth in by_length_and_depth.values()] for depth in depths]
        image = panel.imshow(cells, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        panel.set_title(label, fontsize=8)
        panel.set_xticks(range(len(cells[0])), [f"{int(n) // 1024}k" for n in by_length_and_depth], fontsize=7)
        panel.set_yticks(range(len(depths)), depths, fontsize=7)
    panels[0].set_ylabel("depth of the passkey", fontsize=7)
    below.supxlabel("tokens", fontsize=7)
    below.colorbar(image, ax=panels, label="digits right").ax.tick_params(labelsize=7)
    figure.suptitle("Measured: SmolLM2-135M-Instruct, nothing trained, results/conversion/", fontsize=9)
    return figure


def draw_interface(data: dict[str, Any]) -> plt.Figure:
    figure, (faster, seconds) = canvas(7.2, 2.9, columns=2)
    for number, (name, curve) in enumerate(data["times faster"].items()):
        colour = (BLUE, GREEN, PURPLE)[number // 2]
        faster.plot(*zip(*curve), "o-" if number % 2 else "o--", color=colour, markersize=4, label=name)
    faster.axhline(1, color="black", linewidth=0.6, linestyle=":")
    for name, curve in data["seconds"].items():
        lengths, middle, lowest, highest = zip(*curve)
        colour = ORANGE if name.startswith("SDPA") else BLUE
        seconds.plot(
            lengths, middle, "o-" if "backward" in name else "o--", color=colour, markersize=4, label=f"{name}"
        )
        seconds.fill_between(lengths, lowest, highest, color=colour, alpha=0.2, linewidth=0)
    by_length(faster, sorted({point[0] for curve in data["times faster"].values() for point in curve}), "")
    faster.set_ylabel("times as fast as with SDPA")
    by_length(seconds, list(lengths), "seconds, ModernBERT")
    lowest, highest = seconds.get_ylim()
    seconds.set_yticks([1, 2, 5, 10, 20, 50, 100])
    # Room for the legends.
    seconds.set_ylim(lowest, 4 * highest)
    faster.set_ylim(top=(1 + 0.2 * len(data["times faster"])) * faster.get_ylim()[1])
    for panel in (faster, seconds):
        panel.legend(fontsize=7, loc="upper left", handlelength=3.5)
    figure.suptitle("Measured: random weights, two CPU cores, results/benchmarks/interface.json", fontsize=9)
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
    "14-each-token": (each_token, draw_each_token),
    "15-conversion": (conversion, draw_conversion),
    "16-interface": (interface, draw_interface),
}


def path_of(name: str, folder: Path = FIGURES) -> Path:
    return folder / f"lesson-{name}.png"


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py figures")
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
