# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Tiny random models of other people's types, whose attention is far from uniform."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel


TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "bos_token_id": 1, "eos_token_id": 2}
# As they are named in the library, with what differs.
TYPES = {
    "bert": TEXT | WITHOUT_DROPOUT,
    "roberta": TEXT | WITHOUT_DROPOUT | {"max_position_embeddings": 162},
    "distilbert": {
        "vocab_size": 60,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 160,
        "initializer_range": 0.5,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "modernbert": TEXT
    | {
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "num_hidden_layers": 3,
        "initializer_cutoff_factor": 3.0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "electra": TEXT | WITHOUT_DROPOUT | {"embedding_size": 8},
    "llama": TEXT | DECODER,
    "qwen3": TEXT
    | DECODER
    | {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "sliding_window": 9},
    "vit": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 18,
        "patch_size": 2,
        "num_channels": 1,
        "initializer_range": 0.5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
DECODERS = ("llama", "qwen3")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "electra")
# Every block is read by every token: 4 tokens each, and more of them than any input has.
WHOLE = {"block_size": 4, "num_sorted_blocks": 40}
SPARSE = {"block_size": 4, "num_sorted_blocks": 2, "num_local_blocks": 2, "num_sink_blocks": 1}


def make(
    kind: str, settings: dict | None = None, attn_implementation: str = "sinkhorn", **overrides
) -> PreTrainedModel:
    """In evaluation mode and double precision; the same weights at every call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(TYPES[kind] | overrides))
    model = AutoModel.from_config(config, attn_implementation=attn_implementation).eval().double()
    if settings is not None:
        model.config.sinkhorn_attention = dict(settings)
    return model


def inputs_of(kind: str, num_tokens: int = 75, rows: int = 1, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Random inputs. With padding, positions count the tokens that are there, as the types define them."""
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(rows, 1, 18, 18, generator=generator, dtype=torch.double)}
    inputs = {"input_ids": torch.randint(3, 60, (rows, num_tokens), generator=generator)}
    if mask is None:
        return inputs
    inputs |= {"input_ids": inputs["input_ids"].expand(len(mask), -1), "attention_mask": mask}
    if kind != "distilbert":  # it has no such argument
        first = 1 if kind == "roberta" else 0  # after its padding index
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + first
    return inputs
