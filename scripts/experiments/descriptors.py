# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Another descriptor of a block for causal SortNets, in place of all tokens up to its first one. For experiments only:
unpadded rows, without a cache and without packing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import sort_net_sinkhorn


def recent(first_tokens: Tensor, sums: Tensor, block_size: int, *rest) -> tuple[Tensor, Tensor]:
    """As `causal_block_descriptors`: the block's first token plus the mean of the block before it."""
    before = torch.cat((torch.zeros_like(sums[:, :1]), sums), dim=1)[:, :-1] / block_size
    return before + first_tokens, sums.cumsum(1)


@contextmanager
def causal_descriptor(name: str | None) -> Iterator[None]:
    """Inside it, causal SortNets read `"recent"`; `None` changes nothing."""
    own = sort_net_sinkhorn.causal_block_descriptors
    if name is not None:
        sort_net_sinkhorn.causal_block_descriptors = {"recent": recent}[name]
    try:
        yield
    finally:
        sort_net_sinkhorn.causal_block_descriptors = own
