# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
How fast attention on blocks could be: the time of its matrix products alone, each measured as a plain product of the same
shape on the same machine, added to the floor's. Softmaxes, masks, rotations, balancing and what moves memory take no time
here, so that no implementation made of such products can be faster.
"""

import statistics
import time
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarking.models import FLOOR, SINKHORN_SOFT, SMALL, sinkhorn_config
from benchmarking.passes import FORWARD, FORWARD_BACKWARD


LIMITED = ("local", SINKHORN_SOFT, "sinkhorn hard")
REPEATS = 7


class Product(NamedTuple):
    """`count` products of `(m, k)` and `(k, n)`."""

    count: int
    m: int
    k: int
    n: int

    def backward(self) -> tuple["Product", "Product"]:
        """Those that give the gradients of both factors."""
        count, m, k, n = self
        return Product(count, m, n, k), Product(count, k, m, n)


def products(name: str, length: int, size: str = SMALL) -> list[Product]:
    """The products of one layer of the model of that name, but for its four projections, on a row of `length` tokens."""
    config = sinkhorn_config(name, size)
    b, heads, groups, width = (
        config.block_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    blocks = -(-length // b)
    keys = b if name == "local" else 2 * b
    found = [Product(heads * blocks, b, width, keys), Product(heads * blocks, b, keys, width)]
    if name != "local":  # SortNet: two projections of descriptors, and their comparison
        found += 2 * [Product(1, blocks, config.hidden_size, groups * width)]
        found.append(Product(groups, blocks, width, blocks))
    if name == SINKHORN_SOFT:  # keys and values are mixed
        found += 2 * [Product(groups, blocks, blocks, b * width)]
    return found


def seconds_of(product: Product, dtype: torch.dtype = torch.float32) -> float:
    """The median time of the product on the CPU."""
    left = torch.randn(product.count, product.m, product.k).to(dtype)
    right = torch.randn(product.count, product.k, product.n).to(dtype)
    out = torch.empty(product.count, product.m, product.n, dtype=dtype)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        torch.bmm(left, right, out=out)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def limits(
    rows: dict[str, Any], lengths: list[int], size: str = SMALL, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """`{model: {length: {pass: multiple of the floor's time}}}` of the `LIMITED` models that `rows` has."""
    cases = [(name, length) for name in LIMITED if name in rows for length in lengths if str(length) in rows[name]]
    found: dict[str, Any] = {}
    for name, length in tqdm(cases, desc="Limits by products"):
        layers, floor = sinkhorn_config(name, size).num_hidden_layers, rows[FLOOR][str(length)]
        forward = backward = 0.0
        for product in products(name, length, size):
            forward += layers * seconds_of(product, dtype)
            backward += layers * sum(seconds_of(other, dtype) for other in product.backward())
        times = {FORWARD: forward, FORWARD_BACKWARD: forward + backward}
        found.setdefault(name, {})[str(length)] = {
            kind: 1 + seconds / floor[kind]["seconds"] for kind, seconds in times.items()
        }
    return found


def limits_table(found: dict[str, Any], rows: dict[str, Any], lengths: list[int]) -> str:
    """Markdown: each limit of a pass forward and backward, and how many times as long the model takes."""
    lines = [
        "limit by matrix products alone, forward and backward, in times of the floor (the model's time by it)",
        "",
        f"| {'model':14} | " + " | ".join(f"{length:>11,}" for length in lengths) + " |",
        f"|-{'-' * 14}-|" + "".join(f"-{'-' * 11}:|" for _ in lengths),
    ]
    for name, cells in found.items():
        printed = []
        for length in map(str, lengths):
            cell = rows[name].get(length, {})
            if length not in cells or FORWARD_BACKWARD not in cell or "skipped" in cell:
                printed.append("-")
                continue
            limit = cells[length][FORWARD_BACKWARD]
            printed.append(f"{limit:.2f} ({cell[FORWARD_BACKWARD]['ratio_to_floor'] / limit:.2f})")
        lines.append(f"| {name:14} | " + " | ".join(f"{text:>11}" for text in printed) + " |")
    return "\n".join(lines)
