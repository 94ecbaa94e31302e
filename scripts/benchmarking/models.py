# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The models that `benchmark.py` compares: all our variants, the same network without attention (the floor), and peers
from Transformers and PyPI. All have the same width, depth and heads, about the same number of feed-forward parameters,
and no dropout.

Each length gets a new model, with exactly as many positions. Some peers also make a choice in their first pass that
depends on the length: BigBird its kind of attention, Reformer its number of buckets.
"""

import importlib.metadata
import itertools
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdModel,
    LongformerConfig,
    LongformerModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    ReformerConfig,
    ReformerModel,
)

from base_attention_sinkhorn import SinkhornBaseAttention
from common.model_settings import recorded_settings, round_up
from configuration_sinkhorn import SinkhornConfig
from modeling_sinkhorn import SinkhornModel


HIDDEN, LAYERS, HEADS, BLOCK, VOCAB = 256, 4, 4, 64, 8000
GATED_WIDTH, PLAIN_WIDTH = 688, 1024  # three matrices of the first are about as large as two of the second
FIRST_TOKEN = 5  # tokens below are special in one model or another

FLOOR, SINKHORN_SOFT, FULL_ATTENTION = "floor", "sinkhorn soft", "full attention"
SINKHORN_VARIANTS: dict[str, dict[str, Any]] = {
    SINKHORN_SOFT: {},
    "sinkhorn hard": {"sort_assignment": "hard"},
    "sortcut": {"layer_types": ["sortcut_attention"] * LAYERS},
    "local": {"layer_types": ["local_attention"] * LAYERS},
    "mixture": {"layer_types": ["mixture_attention"] * LAYERS},
    FULL_ATTENTION: {"layer_types": ["full_attention"] * LAYERS},
    "causal sinkhorn soft": {"is_decoder": True},
    "causal sinkhorn hard": {"is_decoder": True, "sort_assignment": "hard"},
    "causal full attention": {"is_decoder": True, "layer_types": ["full_attention"] * LAYERS},
}
TOKEN_ROUTING = {
    "is_decoder": True,
    "sort_granularity": "token",
    "sort_assignment": "hard",
    "sort_net": "keys",
    "num_sorted_blocks": 4,
    "num_local_blocks": 2,
    "num_sink_blocks": 1,
}
SINKHORN_VARIANTS |= {
    "causal token": TOKEN_ROUTING | {"sinkhorn_iterations": 0},
    "causal token, balanced": TOKEN_ROUTING | {"sinkhorn_iterations": 2},
    "causal window of 7 blocks": {
        "is_decoder": True,
        "layer_types": ["local_attention"] * LAYERS,
        "num_local_blocks": 7,
    },
}
PYPI_PACKAGE = "sinkhorn-transformer"
PYPI_ROUTING = {
    "PyPI sinkhorn": {},  # its defaults: the two best blocks, no balancing
    "PyPI sinkhorn, balanced": {"non_permutative": False, "n_top_buckets": 1, "sinkhorn_iter": 8},
}


class BenchmarkModel(NamedTuple):
    """A model for one length, with the settings for the record."""

    model: nn.Module
    config: dict[str, Any]
    read: Callable[[Any], Tensor]  # from the model's outputs to hidden states (B, L, E)

    def __call__(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
        """`(B, L)` tokens to hidden states `(B, L, E)`."""
        return self.read(self.model(input_ids, **inputs))

    @property
    def ran_as(self) -> str | None:
        """The kind of attention that BigBird chose."""
        return getattr(self.model, "attention_type", None)

    def parameters(self) -> dict[str, int]:
        """`all`, and the number without embeddings of tokens and positions."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return {
            "all": sum(sizes.values()),
            "without_embeddings": sum(size for name, size in sizes.items() if "emb" not in name),
        }


def model_names() -> list[str]:
    """Every model: the floor first, then ours and the peers in alternation."""
    by_turns = itertools.chain.from_iterable(itertools.zip_longest(SINKHORN_VARIANTS, PEERS))
    return [FLOOR, *filter(None, by_turns)]


def make_model(name: str, length: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> BenchmarkModel:
    """The model `name` for rows of `length` tokens, weights drawn from a fixed seed."""
    torch.manual_seed(0)
    benchmark_model = PEERS[name](length) if name in PEERS else _ours(name, length)
    benchmark_model.model.to(device, dtype)
    return benchmark_model


def _ours(name: str, length: int) -> BenchmarkModel:
    model = SinkhornModel(sinkhorn_config(name, max_position_embeddings=length))
    if name == FLOOR:
        take_attention_out(model)
    return _of_transformers(model)


def sinkhorn_config(name: str, **overrides: Any) -> SinkhornConfig:
    """The configuration of one of our variants, or of the floor."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": GATED_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "block_size": BLOCK,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    return SinkhornConfig(**(settings | SINKHORN_VARIANTS[FULL_ATTENTION if name == FLOOR else name] | overrides))


def take_attention_out(model: SinkhornModel) -> None:
    """Keeps the four projections of each layer, so no attention in the same network can be faster."""

    def forward(self: SinkhornBaseAttention, inputs: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None, None]:
        return self.o_proj(self.q_proj(inputs) + self.k_proj(inputs) + self.v_proj(inputs)), None, None

    for module in model.modules():
        if isinstance(module, SinkhornBaseAttention):
            module.forward = MethodType(forward, module)


def _of_transformers(model: PreTrainedModel) -> BenchmarkModel:
    return BenchmarkModel(model, recorded_settings(model.config), lambda outputs: outputs.last_hidden_state)


# Peers ---------------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _bert(length: int) -> BenchmarkModel:
    config = BertConfig(
        **SIZES,
        **NO_DROPOUT,
        intermediate_size=PLAIN_WIDTH,
        max_position_embeddings=length,
        attn_implementation="sdpa",
    )
    return _of_transformers(BertModel(config, add_pooling_layer=False))


def _modernbert(length: int) -> BenchmarkModel:
    """Gated, like ours. Layers and window are its defaults: one global layer in three, a window of 128."""
    config = ModernBertConfig(
        **SIZES,
        intermediate_size=GATED_WIDTH,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        attn_implementation="sdpa",
    )
    return _of_transformers(ModernBertModel(config))


def _longformer(length: int) -> BenchmarkModel:
    window = 256
    config = LongformerConfig(
        **SIZES,
        **NO_DROPOUT,
        intermediate_size=PLAIN_WIDTH,
        attention_window=window,
        max_position_embeddings=round_up(length, window) + 2,  # it counts positions from 2
    )
    return _of_transformers(LongformerModel(config, add_pooling_layer=False))


def _big_bird(length: int) -> BenchmarkModel:
    """Block-sparse, except for rows of 11 blocks or fewer: there it uses full attention (see `ran_as`)."""
    config = BigBirdConfig(
        **SIZES,
        **NO_DROPOUT,
        intermediate_size=PLAIN_WIDTH,
        attention_type="block_sparse",
        block_size=BLOCK,
        max_position_embeddings=round_up(length, BLOCK),
    )
    return _of_transformers(BigBirdModel(config, add_pooling_layer=False))


def _reformer(length: int) -> BenchmarkModel:
    """Reversible layers, local and LSH in alternation. It returns both streams: together `2 * HIDDEN` wide."""
    settings = {field: value for field, value in SIZES.items() if field != "num_hidden_layers"}
    config = ReformerConfig(
        **settings,
        attn_layers=["local", "lsh"] * (LAYERS // 2),
        attention_head_size=HIDDEN // HEADS,
        feed_forward_size=PLAIN_WIDTH,
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
        axial_pos_embds=False,  # axial ones need a length known in advance
        max_position_embeddings=round_up(length, BLOCK),
        local_attn_chunk_length=BLOCK,
        lsh_attn_chunk_length=BLOCK,
        use_cache=False,
    )
    return _of_transformers(ReformerModel(config))


def _pypi(routing: dict[str, Any]) -> Callable[[int], BenchmarkModel]:
    def build(length: int) -> BenchmarkModel:
        try:
            from sinkhorn_transformer import SinkhornTransformerLM
        except ImportError as error:
            raise ImportError(f'{error}; it comes with `pip install -e ".[benchmark]"`') from error
        settings = {
            "num_tokens": VOCAB,
            "dim": HIDDEN,
            "depth": LAYERS,
            "heads": HEADS,
            "bucket_size": BLOCK,
            "max_seq_len": round_up(length, BLOCK),
            "return_embeddings": True,
        }
        # Its feed-forward network is four times as wide as the model: without a gate, as large as the others'.
        model = SinkhornTransformerLM(**settings, **routing, ff_glu=False)
        return BenchmarkModel(
            model,
            {"package": importlib.metadata.version(PYPI_PACKAGE), **settings, **routing},
            lambda hidden_states: hidden_states,
        )

    return build


def _multiple(length: int, of: int) -> int:
    return -(-length // of) * of


PEERS: dict[str, Callable[[int], BenchmarkModel]] = {
    "BERT": _bert,
    "ModernBERT": _modernbert,
    "Longformer": _longformer,
    "BigBird": _big_bird,
    "Reformer": _reformer,
    **{name: _pypi(routing) for name, routing in PYPI_ROUTING.items()},
}
