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


BLOCK, VOCAB = 64, 8000


class Size(NamedTuple):
    """What all models share."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    gated_width: int
    plain_width: int  # two matrices of this width are about as large as three of the gated one

    @property
    def common(self) -> dict[str, int]:
        """As fields of most configurations."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        return {"vocab_size": VOCAB} | {name: getattr(self, name) for name in names}


SMALL = "small"
SIZES = {SMALL: Size(256, 4, 4, 688, 1024), "base": Size(768, 12, 12, 2048, 3072)}
FIRST_TOKEN = 5  # tokens below are special in one model or another

FLOOR, SINKHORN_SOFT, FULL_ATTENTION = "floor", "sinkhorn soft", "full attention"
# One type of layer stands for all.
SINKHORN_VARIANTS: dict[str, dict[str, Any]] = {
    SINKHORN_SOFT: {},
    "sinkhorn hard": {"sort_assignment": "hard"},
    "sortcut": {"layer_types": ["sortcut_attention"]},
    "local": {"layer_types": ["local_attention"]},
    "mixture": {"layer_types": ["mixture_attention"]},
    FULL_ATTENTION: {"layer_types": ["full_attention"]},
    "causal sinkhorn soft": {"is_decoder": True},
    "causal sinkhorn hard": {"is_decoder": True, "sort_assignment": "hard"},
    "causal full attention": {"is_decoder": True, "layer_types": ["full_attention"]},
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
        "layer_types": ["local_attention"],
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


def make_model(
    name: str,
    length: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: str = SMALL,
    compiled: bool = False,
) -> BenchmarkModel:
    """The model `name` for rows of `length` tokens, weights drawn from a fixed seed. `size`: one of `SIZES`."""
    torch.manual_seed(0)
    benchmark_model = PEERS[name](length, SIZES[size]) if name in PEERS else _ours(name, length, size)
    benchmark_model.model.to(device, dtype)
    if compiled:
        benchmark_model.model.compile()
    return benchmark_model


def _ours(name: str, length: int, size: str) -> BenchmarkModel:
    model = SinkhornModel(sinkhorn_config(name, size, max_position_embeddings=length))
    if name == FLOOR:
        take_attention_out(model)
    return _of_transformers(model)


def sinkhorn_config(name: str, size: str = SMALL, **overrides: Any) -> SinkhornConfig:
    """The configuration of one of our variants, or of the floor."""
    settings = SIZES[size].common | {
        "intermediate_size": SIZES[size].gated_width,
        "block_size": BLOCK,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    settings |= SINKHORN_VARIANTS[FULL_ATTENTION if name == FLOOR else name] | overrides
    if len(settings.get("layer_types", ())) == 1:
        settings["layer_types"] = settings["layer_types"] * settings["num_hidden_layers"]
    return SinkhornConfig(**settings)


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

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _bert(length: int, size: Size) -> BenchmarkModel:
    config = BertConfig(
        **size.common,
        **NO_DROPOUT,
        intermediate_size=size.plain_width,
        max_position_embeddings=length,
        attn_implementation="sdpa",
    )
    return _of_transformers(BertModel(config, add_pooling_layer=False))


def _modernbert(length: int, size: Size) -> BenchmarkModel:
    """Gated, like ours. Layers and window are its defaults: one global layer in three, a window of 128."""
    config = ModernBertConfig(
        **size.common,
        intermediate_size=size.gated_width,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        attn_implementation="sdpa",
    )
    return _of_transformers(ModernBertModel(config))


def _longformer(length: int, size: Size) -> BenchmarkModel:
    window = 256
    config = LongformerConfig(
        **size.common,
        **NO_DROPOUT,
        intermediate_size=size.plain_width,
        attention_window=window,
        max_position_embeddings=round_up(length, window) + 2,  # it counts positions from 2
    )
    return _of_transformers(LongformerModel(config, add_pooling_layer=False))


def _big_bird(length: int, size: Size) -> BenchmarkModel:
    """Block-sparse, except for rows of 11 blocks or fewer: there it uses full attention (see `ran_as`)."""
    config = BigBirdConfig(
        **size.common,
        **NO_DROPOUT,
        intermediate_size=size.plain_width,
        attention_type="block_sparse",
        block_size=BLOCK,
        max_position_embeddings=round_up(length, BLOCK),
    )
    return _of_transformers(BigBirdModel(config, add_pooling_layer=False))


def _reformer(length: int, size: Size) -> BenchmarkModel:
    """Reversible layers, local and LSH in alternation. It returns both streams: together twice as wide."""
    settings = {field: value for field, value in size.common.items() if field != "num_hidden_layers"}
    config = ReformerConfig(
        **settings,
        attn_layers=["local", "lsh"] * (size.num_hidden_layers // 2),
        attention_head_size=size.hidden_size // size.num_attention_heads,
        feed_forward_size=size.plain_width,
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


def _pypi(routing: dict[str, Any]) -> Callable[[int, Size], BenchmarkModel]:
    def build(length: int, size: Size) -> BenchmarkModel:
        try:
            from sinkhorn_transformer import SinkhornTransformerLM
        except ImportError as error:
            raise ImportError(f'{error}; it comes with `pip install -e ".[benchmark]"`') from error
        settings = {
            "num_tokens": VOCAB,
            "dim": size.hidden_size,
            "depth": size.num_hidden_layers,
            "heads": size.num_attention_heads,
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


PEERS: dict[str, Callable[[int, Size], BenchmarkModel]] = {
    "BERT": _bert,
    "ModernBERT": _modernbert,
    "Longformer": _longformer,
    "BigBird": _big_bird,
    "Reformer": _reformer,
    **{name: _pypi(routing) for name, routing in PYPI_ROUTING.items()},
}
