# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Attention of one layer where each token reads blocks of its own choice, alone, beside the library's kernels: SDPA
(FlashAttention) of the whole past, and FlexAttention where each block of queries reads as many blocks.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarking.gpu.device import milliseconds
from benchmarking.gpu.operators import FLEX_TILES, HEADS, WIDTH
from benchmarking.models import BLOCK
from benchmarking.passes import FORWARD, FORWARD_BACKWARD
from routed_attention_sinkhorn import Sources, attend_by_block
from sorting_sinkhorn import HardSort, always_read, local_offsets


NUM_CHOSEN, NUM_LOCAL, NUM_SINKS = 4, 2, 1


class Inputs:
    """Random ones, in the shapes of the small model; a token chooses among the blocks before its local ones."""

    def __init__(self, length: int, device: str, dtype: torch.dtype):
        self.blocks, self.scaling = length // BLOCK, WIDTH**-0.5
        shape = (1, self.blocks, BLOCK, HEADS, WIDTH)
        self.tensors = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in "qkv"]
        own = torch.arange(self.blocks, device=device)
        # Of destinations and sources: what may be chosen, and of it what is, at random.
        candidates = (own >= NUM_SINKS) & (own <= own.unsqueeze(-1) - NUM_LOCAL)
        self.of_tokens = _draw(candidates.repeat_interleave(BLOCK, dim=0))
        self.of_blocks = _draw(candidates)
        # In which token of the own block, and of what always is read, a query stands.
        number = torch.arange(BLOCK, device=device)
        before = torch.ones(BLOCK, (NUM_LOCAL - 1) * BLOCK, dtype=torch.bool, device=device)
        local = torch.cat((before, number <= number.unsqueeze(-1)), dim=-1)
        exists = own.unsqueeze(-1) + torch.tensor(local_offsets(NUM_LOCAL, True), device=device) >= 0
        local = local & exists.repeat_interleave(BLOCK, dim=1).unsqueeze(1)  # (M, Q, K)
        sinks = (own >= NUM_LOCAL).view(-1, 1, 1).expand(-1, BLOCK, NUM_SINKS * BLOCK)
        self.always_mask = torch.cat((sinks, local), dim=-1).unsqueeze(0)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(B, H, L, D)` each."""
        return tuple(x.flatten(1, 2).transpose(1, 2) for x in self.tensors)


def _draw(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, H, n, S)`: of `(n, N)` candidates the numbers of some, and which of the numbers count."""
    chances = torch.rand(1, HEADS, *candidates.shape, device=candidates.device).masked_fill_(~candidates, -1.0)
    found = chances.topk(min(NUM_CHOSEN, candidates.shape[-1]), dim=-1)
    return found.indices, found.values >= 0


def by_token(inputs: Inputs) -> Tensor:
    query, key, value = inputs.tensors
    offsets, sink_index = local_offsets(NUM_LOCAL, True), None
    always = (always_read(x, offsets, NUM_SINKS, sink_index).transpose(2, 3) for x in (key, value))
    sources = Sources(*(x.permute(0, 3, 1, 2, 4) for x in (key, value)), None, *always, inputs.always_mask)
    index, chosen = inputs.of_tokens
    choice = HardSort(index.masked_fill(~chosen, 0), chosen, torch.ones(index.shape, device=index.device))
    return attend_by_block(query, choice, sources, inputs.scaling).flatten(1, 2).transpose(1, 2)


def flex_mask(inputs: Inputs) -> BlockMask:
    """Sinks, local blocks, and what each block of queries has drawn; the own block causally."""
    index, chosen = inputs.of_blocks
    read = torch.zeros(1, HEADS, inputs.blocks, inputs.blocks, dtype=torch.bool, device=index.device)
    read.scatter_(-1, index.masked_fill(~chosen, 0), chosen)
    own = torch.arange(inputs.blocks, device=index.device)
    distance = own.unsqueeze(-1) - own
    read |= ((own < NUM_SINKS) | (distance < NUM_LOCAL)) & (distance >= 0)
    order = read.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        read.sum(-1, dtype=torch.int32),
        order,
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda batch, head, query, key: key <= query,
    )


def token_routing(arguments: argparse.Namespace, device: str = "cuda") -> dict[str, Any]:
    """Milliseconds of each, in bfloat16, without the choice itself."""
    return {str(length): _at(length, arguments.seconds, device) for length in arguments.lengths}


def _at(length: int, seconds: float, device: str) -> dict[str, Any]:
    torch._dynamo.reset()
    inputs = Inputs(length, device, torch.bfloat16)
    mask, compiled = flex_mask(inputs), torch.compile(flex_attention, dynamic=False)

    def flex() -> Tensor:
        return compiled(*inputs.rows(), block_mask=mask, scale=inputs.scaling, kernel_options=FLEX_TILES)

    def full() -> Tensor:
        return nn.functional.scaled_dot_product_attention(*inputs.rows(), is_causal=True, scale=inputs.scaling)

    calls = {"each token chooses": lambda: by_token(inputs), "each block, FlexAttention": flex, "all, SDPA": full}
    return {label: _measure(call, inputs.tensors, seconds) for label, call in calls.items()}


def _measure(call: Callable[[], Tensor], tensors: list[Tensor], seconds: float) -> dict[str, Any]:
    try:
        upstream = torch.randn_like(call())
        with torch.no_grad():
            forward = milliseconds(call, seconds)
        both = milliseconds(lambda: torch.autograd.grad(call(), tensors, upstream), seconds)
    except Exception as error:  # noqa: BLE001  a compiler may raise anything
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    return {FORWARD: forward, FORWARD_BACKWARD: both}
