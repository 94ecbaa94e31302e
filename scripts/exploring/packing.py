# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sort matrices as few bytes: the largest weights of each row, quantized. `page.js` reads what is written here.

Shape letters: `R` rows (blocks or tokens), `N` source blocks, `k` weights kept of each row, `S` chosen blocks.
"""

import base64
from typing import NamedTuple

import numpy as np


# Tried in this order, until all matrices fit: bits of a weight, and how many of a row are kept (`None`: all).
FORMATS = ((16, None), (16, 32), (16, 16), (8, 16), (8, 8), (8, 4), (8, 2), (8, 1))


class Format(NamedTuple):
    bits: int
    kept: int | None  # of each row; None for all, in the order of the blocks


def choose_format(
    rows: int, num_blocks: int, matrices: int, at_least: int, limit: int, kinds: int = 2
) -> Format | None:
    """
    The most exact format in which `matrices` of `(rows, num_blocks)` take no more than `limit` bytes, with `at_least`
    weights of each row; `None` where there is none. `kinds`: 2 for before and after balancing, 1 where both are one.
    """
    for bits, kept in FORMATS:
        if kept is not None and (kept >= num_blocks or kept < min(at_least, num_blocks)):
            continue
        numbers = num_blocks if kept is None else kept
        index = 0 if kept is None else _index_bytes(num_blocks)
        if matrices * rows * numbers * (kinds * bits // 8 + index) <= limit:
            return Format(bits, kept)
    return None


def _index_bytes(num_blocks: int) -> int:
    return 1 if num_blocks <= 256 else 2


def quantize(weights: np.ndarray, bits: int) -> np.ndarray:
    """
    Weights from 0 to 1 as integers: 16 bits in equal steps of 1.5e-5; 8 bits in steps that grow with the root of the
    weight, so that small ones keep their order (at most 0.004 off).
    """
    weights = np.clip(weights.astype(np.float64), 0, 1)
    if bits == 16:
        return np.round(weights * 65535).astype("<u2")
    return np.round(np.sqrt(weights) * 255).astype("u1")


def pack_matrix(
    after: np.ndarray, before: np.ndarray | None, chosen: np.ndarray | None, form: Format
) -> dict[str, str]:
    """
    `(R, N)` each, `before` `None` where it is the same, and `chosen` `(R, S)`, the blocks of a hard assignment, -1 for none. With `form.kept` the chosen
    blocks come first in a row, in their order, then the largest weights, after or before balancing.
    """
    packed = {}
    if form.kept is None:
        if chosen is not None:
            packed["chosen"] = encode(chosen.astype("<i2"))
    else:
        index = _largest(after if before is None else np.maximum(after, before), chosen, form.kept)
        packed["index"] = encode(index.astype("u1" if _index_bytes(after.shape[1]) == 1 else "<u2"))
        after, before = (None if x is None else np.take_along_axis(x, index, axis=1) for x in (after, before))
    packed["after"] = encode(quantize(after, form.bits))
    if before is not None:
        packed["before"] = encode(quantize(before, form.bits))
    return packed


def _largest(weights: np.ndarray, chosen: np.ndarray | None, kept: int) -> np.ndarray:
    """`(R, k)` blocks: those chosen, then those with the largest weights."""
    priority = weights.astype(np.float64)
    if chosen is not None:
        for place in range(chosen.shape[1]):
            rows = np.flatnonzero(chosen[:, place] >= 0)
            priority[rows, chosen[rows, place]] = 1e6 - place
    # `argpartition` finds the largest, whose order a sort of few then gives.
    index = np.argpartition(-priority, kept - 1, axis=1)[:, :kept]
    order = np.argsort(-np.take_along_axis(priority, index, axis=1), axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1)


def encode(numbers: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode("ascii")
