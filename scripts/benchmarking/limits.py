# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
How fast attention on blocks could be: the time of its matrix products alone, each measured as a plain product of the same
shape on the same machine, added to the floor's. Softmaxes, masks, rotations, balancing and what moves memory take no time
here, so that no implementation made of such products can be faster.

And how fast made of torch's operations: with the scores once more for backward, which are not kept, and with the least
that must pass over weights and tokens, in the processor's cache: softmaxes, rotations, copies into and out of chunks.
Balancing, sums of gradients, masks and calls still take no time.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarking.models import FLOOR, SINKHORN_SOFT, SMALL, sinkhorn_config
from benchmarking.passes import FORWARD, FORWARD_BACKWARD
from block_attention_sinkhorn import CHUNK_TOKENS, rotate_into


LIMITED = ("local", SINKHORN_SOFT, "sinkhorn hard")
REPEATS = 7
WITH_PASSES = "with_passes"  # the second limit, beside the first one's passes


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
    return median_seconds(lambda: torch.bmm(left, right, out=out))


def median_seconds(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_of_passes(name: str, length: int, size: str = SMALL, dtype: torch.dtype = torch.float32) -> list[float]:
    """What one layer on a row of `length` tokens takes beside its products, forward and backward."""
    config = sinkhorn_config(name, size)
    b, width, heads = config.block_size, config.head_dim, config.num_attention_heads
    num_blocks = -(-length // b)
    blocks = min(CHUNK_TOKENS // b, num_blocks)
    keys = b if name == "local" else 2 * b
    weights = torch.rand(blocks * heads, b, keys).to(dtype)
    grad = torch.rand_like(weights)
    cos, sin = torch.randn(2, blocks, 1, b, width).to(dtype)
    of_query, of_key = (
        torch.randn(blocks, b, n, width).to(dtype).transpose(1, 2) for n in (heads, config.num_key_value_heads)
    )
    query, key = torch.empty_like(of_query), torch.empty_like(of_key)

    softmax, softmax_backward, rotate_query, rotate_key, copy_query, copy_key = (
        num_blocks / blocks * median_seconds(run)
        for run in (
            lambda: torch.softmax(weights, -1, out=weights),
            lambda: torch.ops.aten._softmax_backward_data.out(grad, weights, -1, dtype, grad_input=grad),
            lambda: rotate_into(query, of_query, cos, sin),
            lambda: rotate_into(key, of_key, cos, sin),
            lambda: query.copy_(of_query),
            lambda: key.copy_(of_key),
        )
    )
    sources = keys // b  # the block itself, and what is sorted next to it
    load = rotate_query + sources * (rotate_key + copy_key) + softmax
    scores = seconds_of(products(name, length, size)[0], dtype)
    store = rotate_query + sources * (rotate_key + copy_key)
    return [load + copy_query, scores + load + copy_query + softmax_backward + store]


def limits(
    rows: dict[str, Any], lengths: list[int], size: str = SMALL, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """
    `{model: {length: {pass: multiple of the floor's time}}}` of the `LIMITED` models that `rows` has, of products alone;
    under `"with_passes"`, of what else torch's operations must do.
    """
    cases = [(name, length) for name in LIMITED if name in rows for length in lengths if str(length) in rows[name]]
    found: dict[str, Any] = {}
    for name, length in tqdm(cases, desc="Limits"):
        layers, floor = sinkhorn_config(name, size).num_hidden_layers, rows[FLOOR][str(length)]
        forward = backward = 0.0
        for product in products(name, length, size):
            forward += layers * seconds_of(product, dtype)
            backward += layers * sum(seconds_of(other, dtype) for other in product.backward())
        more_forward, more_backward = (layers * seconds for seconds in seconds_of_passes(name, length, size, dtype))
        found.setdefault(name, {})[str(length)] = {
            **_multiples(forward, backward, floor),
            WITH_PASSES: _multiples(forward + more_forward, backward + more_backward, floor),
        }
    return found


def _multiples(forward: float, backward: float, floor: dict[str, Any]) -> dict[str, float]:
    times = {FORWARD: forward, FORWARD_BACKWARD: forward + backward}
    return {kind: 1 + seconds / floor[kind]["seconds"] for kind, seconds in times.items()}


def limits_tables(found: dict[str, Any], rows: dict[str, Any], lengths: list[int]) -> str:
    """Markdown: each limit of a pass forward and backward, and how many times as long the model takes."""
    alone = {name: {length: cell[FORWARD_BACKWARD] for length, cell in cells.items()} for name, cells in found.items()}
    passes = {
        name: {length: cell[WITH_PASSES][FORWARD_BACKWARD] for length, cell in cells.items()}
        for name, cells in found.items()
    }
    return "\n\n".join(
        (
            _limits_table("limit by matrix products alone", alone, rows, lengths),
            _limits_table("limit by products, softmaxes, rotations and copies", passes, rows, lengths),
        )
    )


def _limits_table(title: str, found: dict[str, dict[str, float]], rows: dict[str, Any], lengths: list[int]) -> str:
    lines = [
        f"{title}, forward and backward, in times of the floor (the model's time by it)",
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
            printed.append(f"{cells[length]:.2f} ({cell[FORWARD_BACKWARD]['ratio_to_floor'] / cells[length]:.2f})")
        lines.append(f"| {name:14} | " + " | ".join(f"{text:>11}" for text in printed) + " |")
    return "\n".join(lines)
