# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
How evenly the tokens of a trained model that routes by token choose blocks. A kernel, or a device, that serves the tokens
of one block at a time waits for the block that most tokens choose.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel


def loads(sort_matrix: Tensor, num_chosen: int) -> Tensor:
    """
    How many tokens choose each block, as a multiple of what they were if each token chose evenly among its candidates.

    Args:
        sort_matrix: `(B, G, L, N)` of a layer, above 0 at the candidates of a token.

    Returns:
        `(B, G, N)`; NaN at blocks that are nobody's candidates.
    """
    candidates = sort_matrix > 0
    index = sort_matrix.topk(min(num_chosen, sort_matrix.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(candidates).scatter_(-1, index, True) & candidates
    number = candidates.sum(-1, keepdim=True)
    even = candidates * number.clamp(max=num_chosen) / number.clamp(min=1)
    return chosen.sum(-2) / even.sum(-2)


@torch.no_grad()
def evenness(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over rows, heads and layers: the load of the busiest block, and the share of blocks that nobody chooses."""
    model.eval()
    batch = {name: value.to(model.device) for name, value in batch.items()}
    matrices = model(**batch, output_sort_matrices=True).sort_matrices
    found = [loads(matrix.float(), model.config.num_sorted_blocks) for matrix in matrices if matrix is not None]
    found = torch.stack(found).flatten(0, -2)
    unused = (found == 0).sum(-1) / found.isfinite().sum(-1)
    return {"busiest_block": float(found.nan_to_num(0).amax(-1).mean()), "unused_blocks": float(unused.mean())}
