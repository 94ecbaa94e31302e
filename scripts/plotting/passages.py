# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The passages that were sorted next to each other, in words."""

from typing import Any

import numpy as np
from torch import Tensor

from plotting.recording import LayerSorting, strongest_pairs


FIRST_WORDS = 8


def first_words(tokenizer: Any, input_ids: Tensor, block_size: int) -> list[str]:
    """The first words of each block of `(1, L)` tokens."""
    blocks = input_ids[0].split(block_size)
    texts = [tokenizer.decode(block, skip_special_tokens=True).split() for block in blocks]
    return [" ".join(words[:FIRST_WORDS]) + (" ..." if len(words) > FIRST_WORDS else "") for words in texts]


def describe_pairs(
    layers: dict[int, LayerSorting], heads: list[int], config: Any, passages: list[str], num_pairs: int
) -> str:
    """Markdown: for each layer and head the strongest pairs, with the first words of both blocks."""
    lines = []
    for number, sorting in layers.items():
        for head in heads:
            found = strongest_pairs(sorting, head, config)
            lines += [f"## Layer {number} (`{sorting.layer_type}`), head {head}", ""]
            if not found:
                lines += ["No block was sorted beside another.", ""]
                continue
            weight, baseline = (np.mean([getattr(pair, name) for pair in found]) for name in ("weight", "baseline"))
            lines += [
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
            lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
