# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Sort matrices and attention maps as figures."""

from pathlib import Path

import torch
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from common.pyplot import plt
from plotting.recording import LEARNED, LayerSorting, moved_weight


MAXIMUM_CELLS = 256  # a side of a drawn attention map; longer texts are drawn in tiles of several tokens


def draw_sorting(states: dict[str, LayerSorting], heads: list[int], title: str) -> plt.Figure:
    """
    With one state (its key is not shown), one row of panels for each head: before and after balancing. With several,
    such as checkpoints, two rows for each head and a column for each state.

    The scale of each head begins at 0 and reaches to four times the even weight 1/N or beyond, so that even weights stay
    dark. Its numbers are multiples of 1/N. Heads that have learned no sorting say so.
    """
    kinds = {"before": "before balancing", "after": "after"}
    columns = (
        [(name, kind) for name in states for kind in kinds] if len(states) == 1 else [(name, "") for name in states]
    )
    rows = [(head, "") for head in heads] if len(states) == 1 else [(head, kind) for head in heads for kind in kinds]
    figure, panels = plt.subplots(
        len(rows),
        len(columns),
        figsize=(0.9 + 2.3 * len(columns), 0.7 + 2.3 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for line, (head, row_kind) in zip(panels, rows):
        even = 1 / next(iter(states.values())).after.shape[-1]
        highest = max(float(getattr(state, kind)[head].max()) for state in states.values() for kind in kinds)
        highest = max(highest, 4 * even)
        for panel, (name, column_kind) in zip(line, columns):
            kind = row_kind or column_kind
            image = panel.imshow(
                getattr(states[name], kind)[head].numpy(), vmin=0, vmax=highest, cmap="viridis", aspect="equal"
            )
            panel.set_title(kinds[kind] if len(states) == 1 else f"{name}, {kinds[kind]}", fontsize=8)
            panel.tick_params(labelsize=6)
        line[0].set_ylabel(f"head {head}: block", fontsize=8)
        most = highest / even
        multiples = [1, *(x for x in MaxNLocator(4).tick_values(0, most) if most / 10 + 1 < x <= most)]
        bar = figure.colorbar(image, ax=list(line))
        bar.set_ticks([x * even for x in multiples], labels=[f"{x:g}" for x in multiples])
        bar.ax.tick_params(labelsize=6)
        bar.set_label("weight in multiples of 1/N", fontsize=7)
        last = list(states.values())[-1]
        if float(moved_weight(last)[head]) < LEARNED and row_kind != "after":
            line[0].set_ylabel(f"head {head}: block\n(no sorting learned)", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("source block", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def tile_attention(attention: Tensor, most: int = MAXIMUM_CELLS) -> Tensor:
    """
    A map `(L, L)` with at most `most` rows and columns: the attention from the queries of one tile to another tile.
    """
    size = -(-len(attention) // most)
    if size == 1:
        return attention
    short = -len(attention) % size
    padded = nn.functional.pad(attention, (0, short, 0, short))
    tiles = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size)).sum((1, 3))
    queries = torch.full((len(tiles),), float(size))
    queries[-1] -= short
    return tiles / queries.unsqueeze(-1)


def draw_attention(attention: Tensor, heads: list[int], block_size: int, title: str) -> plt.Figure:
    """`attention` `(H, L, L)`, a panel for each query head; lines between blocks where there are few."""
    columns = min(len(heads), 4)
    rows = -(-len(heads) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(0.7 + 2.9 * columns, 0.7 + 2.9 * rows), squeeze=False, layout="constrained"
    )
    length = attention.shape[-1]
    for panel, head in zip(panels.flat, heads):
        tiles = tile_attention(attention[head])
        image = panel.imshow(
            tiles.numpy(), norm=PowerNorm(0.5, vmin=0), cmap="magma", extent=(0, length, length, 0), aspect="equal"
        )
        if length <= 16 * block_size:
            for edge in range(block_size, length, block_size):
                panel.axhline(edge, color="white", linewidth=0.3, alpha=0.5)
                panel.axvline(edge, color="white", linewidth=0.3, alpha=0.5)
        figure.colorbar(image, ax=panel, shrink=0.8).ax.tick_params(labelsize=6)
        panel.set_title(f"query head {head}", fontsize=8)
        panel.tick_params(labelsize=6)
    for panel in panels.flat[len(heads) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("query token", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("source token", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def save_figure(figure: plt.Figure, path: Path) -> str:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path.name
