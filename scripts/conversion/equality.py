# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The check before a converted model is written: with full attention it is the model that it was made from."""

import torch
from transformers import PreTrainedModel

from common.errors import UserError
from conversion_sinkhorn import convert, is_sinkhorn


LENGTH = 96
# Of the largest logit. Half precision rounds after every operation, and the two do not have the same ones.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}


@torch.no_grad()
def check_equality(source: PreTrainedModel) -> float:
    """
    Returns:
        The largest difference of logits, as a share of the largest logit.

    Raises:
        UserError: it is not small.
    """
    config, length = source.config, LENGTH
    if is_sinkhorn(config):  # of as many tokens it reads everything
        length = min(length, config.num_local_blocks * config.block_size)
    same = convert(source, layer_types=["full_attention"] * config.num_hidden_layers)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (1, length), generator=generator).to(source.device)
    expected, logits = (model(tokens, use_cache=False).logits.float() for model in (source, same))
    error = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not error <= TOLERANCE[source.dtype]:
        raise UserError(
            f"the converted model is not the old one: with full attention its logits differ by {error:.3g} of the "
            "largest. Something in this checkpoint is not known here; nothing was written. Please report its "
            "config.json."
        )
    return error
