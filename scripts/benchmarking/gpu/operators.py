# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Attention and balancing of one layer alone, next to what the device can do at most."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from balancing_sinkhorn import sinkhorn_balance
from benchmarking.gpu.device import ceilings, kernels_enabled, milliseconds
from benchmarking.models import BLOCK, SIZES, SMALL
from benchmarking.passes import FORWARD, FORWARD_BACKWARD
from block_attention_sinkhorn import GatheredBlocks, MixedBlocks, block_attention
from rotary_sinkhorn import RotaryTables, apply_rotary
from sorting_sinkhorn import gather_blocks


HEADS = SIZES[SMALL].num_attention_heads
WIDTH = SIZES[SMALL].hidden_size // HEADS

ITERATIONS = 8

FLEX_TILES = {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK}  # its default is larger than a block, which it refuses


def attention(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Attention of one layer alone, with the rotation of queries and keys, in bfloat16: milliseconds, and the share of
    the GPU's bytes and operations per second. Each tensor counts once, and only the matrix products count.
    """
    ceiling = ceilings(arguments)
    return {str(length): _attention_at(length, ceiling, arguments.seconds) for length in arguments.lengths}


def _attention_at(length: int, ceiling: dict[str, float], seconds: float) -> dict[str, Any]:
    blocks, size = length // BLOCK, (length // BLOCK, BLOCK)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_()

    query = random(1, *size, HEADS, WIDTH)
    key, value = (random(1, *size, HEADS, WIDTH) for _ in "kv")
    own = [x.permute(0, 3, 1, 2, 4) for x in (key, value)]
    mixed = [random(1, HEADS, *size, WIDTH) for _ in "kv"]
    angles = torch.rand(1, *size, WIDTH // 2, device="cuda").repeat(1, 1, 1, 2)
    tables = RotaryTables(angles.cos().bfloat16(), angles.sin().bfloat16())
    index = torch.stack([other_blocks_at_random(blocks) for _ in range(HEADS)]).view(1, HEADS, blocks, 1).to("cuda")
    weight = torch.ones(index.shape, device="cuda").requires_grad_()
    scaling = WIDTH**-0.5

    def rotated(x: Tensor) -> Tensor:
        """`(B, N, b, H, D)` to `(B, H, L, D)`, rotated."""
        x = apply_rotary(x, tables.cos.unsqueeze(3), tables.sin.unsqueeze(3))
        return x.flatten(1, 2).transpose(1, 2)

    def attend_by_blocks(sorted_blocks: MixedBlocks | GatheredBlocks) -> Tensor:
        """As `SinkhornAttention` does without kernels."""
        local_key = apply_rotary(own[0], tables.cos.unsqueeze(1), tables.sin.unsqueeze(1))
        if isinstance(sorted_blocks, MixedBlocks):
            keys = apply_rotary(mixed[0], tables.cos.unsqueeze(1), tables.sin.unsqueeze(1))
            values = mixed[1]
        else:
            gathered = (
                gather_blocks(sorted_blocks.index, x) * sorted_blocks.weight[..., None, None]
                for x in (local_key, own[1])
            )
            keys, values = (x.flatten(3, 4).to(x.dtype) for x in gathered)
        keys, values = (
            torch.cat((x, y), dim=3).transpose(1, 2).flatten(0, 1).to(query.dtype)
            for x, y in ((keys, local_key), (values, own[1]))
        )
        queries = apply_rotary(query, tables.cos.unsqueeze(3), tables.sin.unsqueeze(3)).flatten(0, 1).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(queries, keys, values, scale=scaling)

    def full() -> Tensor:
        values = value.flatten(1, 2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(rotated(query), rotated(key), values, scale=scaling)

    torch._dynamo.reset()  # otherwise it stops compiling after several lengths
    compiled = torch.compile(flex_attention, dynamic=False)
    block_index = torch.zeros(
        1, HEADS, blocks, blocks, device="cuda", dtype=torch.int32
    )  # of which the first two count
    block_index[..., 0], block_index[..., 1] = index.squeeze(-1), torch.arange(blocks, device="cuda")
    num_blocks = torch.full((1, HEADS, blocks), 2, device="cuda", dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(num_blocks, block_index, BLOCK_SIZE=BLOCK)

    def flex() -> Tensor:
        """The pattern of hard sorting: each query reads its own block and the chosen one."""
        values = value.flatten(1, 2).transpose(1, 2)
        return compiled(
            rotated(query), rotated(key), values, block_mask=block_mask, scale=scaling, kernel_options=FLEX_TILES
        )

    def full_flex() -> Tensor:
        values = value.flatten(1, 2).transpose(1, 2)
        return compiled(rotated(query), rotated(key), values, scale=scaling)

    soft, hard = MixedBlocks(*mixed, tables), GatheredBlocks(index, weight)
    calls = {
        "soft": (lambda: block_attention(query, *own, tables, soft, None, scaling), [query, key, value, *mixed], 2),
        "soft, without kernels": (lambda: attend_by_blocks(soft), [query, key, value, *mixed], 2),
        "hard": (lambda: block_attention(query, *own, tables, hard, None, scaling), [query, key, value, weight], 2),
        "hard, without kernels": (lambda: attend_by_blocks(hard), [query, key, value, weight], 2),
        "hard pattern, FlexAttention": (flex, [query, key, value], 2),
        "full, SDPA": (full, [query, key, value], blocks),
        "full, FlexAttention": (full_flex, [query, key, value], blocks),
    }
    return {label: _measure(*call, ceiling, seconds) for label, call in calls.items()}


def other_blocks_at_random(blocks: int) -> Tensor:
    """`(blocks,)`: another block for each block, each used once: the next one on a random tour."""
    tour = torch.randperm(blocks)
    return torch.empty_like(tour).scatter_(0, tour, tour.roll(-1))


def _measure(
    call: Callable[[], Tensor], inputs: list[Tensor], blocks_seen: int, ceiling: dict[str, float], seconds: float
) -> dict[str, Any]:
    try:
        with torch.no_grad():
            output = call()
    except Exception as error:  # noqa: BLE001  a compiler may raise anything
        return {"failed": _failure(error)}
    upstream = torch.randn_like(output)
    tokens = inputs[0].shape[1] * inputs[0].shape[2]
    products = 4 * tokens * blocks_seen * BLOCK * HEADS * WIDTH
    bytes_of_inputs = sum(x.numel() * x.element_size() for x in inputs)
    bytes_of_output = output.numel() * output.element_size()

    def forward() -> None:
        with torch.no_grad():
            call()

    costs = {
        FORWARD: (forward, products, bytes_of_inputs + bytes_of_output),
        # Backward: two and a half times the products; it reads inputs, output and its gradient, and writes gradients.
        FORWARD_BACKWARD: (
            lambda: torch.autograd.grad(call(), inputs, upstream),
            3.5 * products,
            3 * bytes_of_inputs + 3 * bytes_of_output,
        ),
    }
    found = {}
    for kind, (timed, operations, moved) in costs.items():
        try:
            took = milliseconds(timed, seconds)
        except Exception as error:  # noqa: BLE001
            found[kind] = {"failed": _failure(error)}
            continue
        found[kind] = {
            "milliseconds": took,
            "bytes": moved,
            "flops": operations,
            "share_of_bytes_per_second": moved / took * 1e3 / ceiling["bytes_per_second"],
            "share_of_flops_per_second": operations / took * 1e3 / ceiling["flops_per_second"],
        }
    return found


def _failure(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def balancing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Balancing of one layer's matrices alone, 8 iterations: milliseconds with kernels and without."""
    found: dict[str, Any] = {}
    for length in arguments.lengths:
        blocks = length // BLOCK
        logits = torch.randn(1, HEADS, blocks, blocks, device="cuda").requires_grad_()
        upstream = torch.randn_like(logits)
        found[str(length)] = {"blocks": blocks}
        for label, enabled in (("kernels", True), ("without kernels", False)):
            with kernels_enabled(enabled):
                forward = milliseconds(
                    lambda logits=logits: sinkhorn_balance(logits.detach(), None, ITERATIONS), arguments.seconds
                )
                both = milliseconds(
                    lambda logits=logits, upstream=upstream: torch.autograd.grad(
                        sinkhorn_balance(logits, None, ITERATIONS), logits, upstream
                    ),
                    arguments.seconds,
                )
            found[str(length)][label] = {FORWARD: forward, FORWARD_BACKWARD: both}
    return found
