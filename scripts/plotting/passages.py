# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The passages that were sorted next to each other, in words."""

from typing import Any

import numpy as np
from torch import Tensor

from plotting.recording import LEARNED, LayerSorting, moved_weight, strongest_pairs


FIRST_WORDS = 8


def first_words(tokenizer: Any, input_ids: Tensor, block_size: int) -> list[str]:
    """The first words of each block of `(1, L)` tokens."""
    blocks = input_ids[0].split(block_size)
    texts = [tokenizer.decode(block, skip_special_tokens=True).split() for block in blocks]
    return [" ".join(words[:FIRST_WORDS]) + (" ..." if len(words) > FIRST_WORDS else "") for words in texts]


def describe_pairs(
    layers: dict[int, LayerSorting],
    heads: list[int],
    config: Any,
    passages: list[str],
    num_tables: int,
    num_pairs: int,
) -> str:
    """
    Markdown: how far each layer and head sorts, and for the `num_tables` that sort most the strongest pairs, with the
    first words of both blocks.
    """
    moved = {
        (number, head): float(share)
        for number, sorting in layers.items()
        for head, share in enumerate(moved_weight(sorting))
        if head in heads
    }
    lines = [
        "How much of a row's weight is elsewhere than with equal logits, in percent:",
        "",
        f"| layer | {' | '.join(f'head {head}' for head in heads)} |",
        "|---" * (len(heads) + 1) + "|",
        *(f"| {number} | {' | '.join(f'{100 * moved[number, head]:.1f}' for head in heads)} |" for number in layers),
        "",
    ]
    if max(moved.values(), default=0) < LEARNED:
        lines += [f"No sorting learned: all are below {100 * LEARNED:.0f}.", ""]
    described = sorted(sorted(moved, key=moved.get, reverse=True)[:num_tables])
    if len(described) < len(moved):
        lines += [f"The {len(described)} that sort most (--num_tables) follow.", ""]
    for number, head in described:
        lines += [f"## Layer {number} (`{layers[number].layer_type}`), head {head}", ""]
        if moved[number, head] < LEARNED:
            lines += ["No sorting learned.", ""]
        lines += _table_of_pairs(layers[number], head, config, passages, num_pairs)
    return "\n".join(lines)


def _table_of_pairs(sorting: LayerSorting, head: int, config: Any, passages: list[str], num_pairs: int) -> list[str]:
    found = strongest_pairs(sorting, head, config)
    if not found:
        return ["No block was sorted beside another.", ""]
    weight, baseline = (np.mean([getattr(pair, name) for pair in found]) for name in ("weight", "baseline"))
    lines = [
        f"All {len(found)} pairs: mean weight {weight:.3f}; with equal logits {baseline:.3f}.",
        "",
        "| block | begins | reads block | begins | weight | with equal logits |",
        "|---|---|---|---|---|---|",
    ]
    for pair in found[:num_pairs]:
        destination, begins = str(pair.destination), _cell(passages[pair.destination])
        if sorting.layer_type == "sortcut_attention":
            destination, begins = f"all, in place {pair.destination}", ""
        lines.append(
            f"| {destination} | {begins} | {pair.source} | {_cell(passages[pair.source])} | {pair.weight:.3f} "
            f"| {pair.baseline:.3f} |"
        )
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
