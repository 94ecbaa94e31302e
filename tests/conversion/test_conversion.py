# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Converted models are the models that they were made from: each family, every kind of rotation, refusals in words."""

import itertools
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

import index_calibration_sinkhorn
from configuration_sinkhorn import SinkhornConfig
from conversion_sinkhorn import ConversionError, convert, converted_config
from helpers import assert_close
from index_calibration_sinkhorn import (
    Recorded,
    compared,
    divergence,
    far_shares,
    fit_to_shares,
    index_directions,
    index_projections,
    record,
    repeat_passages,
    second_moments,
    start_of_index,
)


SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SOURCES = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True, pad_token_id=0),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=12),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=16),
    "mistral, a window as long as its texts": MistralConfig(**SIZES, sliding_window=256),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=12, tie_word_embeddings=True),
}
ROPES = [
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]
BLOCKS = {"block_size": 4}
FULL = {"layer_types": ["full_attention"] * 2}
# More blocks than there are.
COVERING = BLOCKS | {"num_sorted_blocks": 40}


def make(config: PreTrainedConfig) -> PreTrainedModel:
    """Weights large enough that attention is far from uniform, and no norm or bias of one value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def text(rows: int = 1, length: int = 61) -> torch.Tensor:
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """What an index holds is tested apart."""
    monkeypatch.setattr(index_calibration_sinkhorn, "STEPS", 2)
    monkeypatch.setattr(index_calibration_sinkhorn, "FIT_STEPS", 2)


@pytest.fixture(scope="module", params=SOURCES)
def source(request) -> PreTrainedModel:
    return make(SOURCES[request.param])


@pytest.mark.parametrize("merged", [True, False])
def test_a_converted_model_is_converted_again(source, merged, monkeypatch):
    """Its weights stay, and its index is what the weights and the new text give, not what it was."""
    for steps in ("STEPS", "FIT_STEPS"):  # where the descent begins: it follows the last bit of a gradient
        monkeypatch.setattr(index_calibration_sinkhorn, steps, 0)
    choices = BLOCKS | {"num_sorted_blocks": 3, "num_index_heads": 2 if merged else 4}
    once = convert(source, text(2), **choices)
    twice, expected = convert(once, text(3), **BLOCKS), convert(source, text(3), **choices)
    assert twice.config.to_diff_dict() == expected.config.to_diff_dict()
    assert twice.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert_close(twice.state_dict()[name], weight)
    different = [
        name for name, weight in once.state_dict().items() if not torch.equal(weight, twice.state_dict()[name])
    ]
    assert different and all("index" in name for name in different)
    assert convert(once, None, sort_net="keys", key_piece_size=2, **BLOCKS).config.sort_net == "keys"
    assert_close(convert(once, **FULL)(text()).logits, source(text()).logits)


def test_other_sinkhorn_models_are_not_converted():
    for choices, found in (({}, "is_decoder=False"), ({"is_decoder": True}, "sort_net='bilinear'")):
        with pytest.raises(ConversionError, match=f"{found}.*is not a converted one"):
            converted_config(SinkhornConfig(**choices))


@pytest.mark.parametrize("choices", [FULL, COVERING, COVERING | {"sort_net": "keys", "key_piece_size": 2}], ids=str)
def test_what_reads_everything_gives_the_same_logits(source, choices):
    model, tokens = convert(source, text(), **choices), text(2)
    assert model.config.is_decoder and model.config.model_type == "sinkhorn"
    assert_close(model(tokens).logits, source(tokens).logits)
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    padded, expected = (each(tokens, attention_mask=mask).logits for each in (model, source))
    assert_close(padded[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("choices", [FULL, COVERING], ids=str)
def test_decoding_gives_the_same_tokens(source, choices):
    model, tokens = convert(source, text(), **choices), text(2, 9)
    options = {"max_new_tokens": 20, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = (each.generate(tokens, **options) for each in (model, source))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert_close(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_every_rotation(rope):
    source = make(LlamaConfig(**SIZES, rope_parameters=rope))
    for choices in (FULL, COVERING):
        model = convert(source, text(), **choices)
        assert_close(model(text()).logits, source(text()).logits)


def test_by_default_tokens_choose_by_an_index(source):
    """What they read is part of the text, and the model still agrees where that part is all."""
    model, tokens = convert(source, text(), num_sorted_blocks=2, **BLOCKS), text()
    config = model.config
    assert (config.sort_granularity, config.sort_net, config.sort_assignment) == ("token", "index", "hard")
    assert (config.num_local_blocks, config.num_sink_blocks, config.sinkhorn_iterations) == (2, 1, 0)
    assert config.num_index_heads == config.num_key_value_heads
    logits, expected = model(tokens).logits, source(tokens).logits
    assert_close(logits[:, :20], expected[:, :20])
    assert not torch.allclose(logits[:, 20:], expected[:, 20:], atol=1e-3)


def test_weights_are_shared_and_tied_as_before(source):
    model = convert(source, text(), **BLOCKS)
    assert model.model.layers[1].mlp.up_proj.weight.data_ptr() == source.model.layers[1].mlp.up_proj.weight.data_ptr()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == source.config.tie_word_embeddings
    assert model.generation_config is source.generation_config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(model.config, name) == getattr(source.config, name)


def test_the_source_is_left_as_it_was(source):
    source.train()
    index_projections(source, text(), converted_config(source.config))
    assert source.training and source.config._attn_implementation == "sdpa"
    source.eval()


def test_half_precision_is_kept():
    source = make(SOURCES["llama"]).bfloat16()
    model = convert(source, text(), **BLOCKS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    assert_close(convert(source, **FULL)(text()).logits, source(text()).logits, 0.03)


# The index ------------------------------------------------------------------------------------------------------------


def test_rotated_queries_and_keys_are_recorded():
    source, tokens = make(SOURCES["qwen3"]), text(2)
    same, seen = convert(source, **FULL), []
    attention = same.model.layers[1].self_attn
    attend = attention.attend
    attention.attend = lambda query, key, *rest, **kw: seen.append((query, key)) or attend(query, key, *rest, **kw)
    for row in tokens:
        same(row[None])
    rows = record(source, tokens, converted_config(source.config, **BLOCKS), torch.Generator().manual_seed(0))[1]
    for row, (query, key) in zip(rows, seen, strict=True):
        assert_close(row.key, key[0])
        assert sorted(row.place.tolist()) == list(range(12, 61))  # one sink, two local blocks
        assert_close(row.query.flatten(0, 1), query[0].transpose(0, 1)[:, row.place])
    query, key = second_moments(rows)
    keys = torch.cat([key for _, key in seen], dim=2)[0].double()
    queries = torch.cat([row.query.flatten(0, 1) for row in rows], dim=1).double()
    assert_close(key, torch.stack([sum(torch.outer(x, x) for x in head) / len(head) for head in keys]))
    both = queries.unflatten(0, (2, 2)).flatten(1, 2)
    assert_close(query, torch.stack([sum(torch.outer(x, x) for x in head) / len(head) for head in both]))


def test_passages_are_repeated():
    tokens = torch.arange(800).view(2, 400)
    rows = repeat_passages(tokens, torch.Generator().manual_seed(0))
    assert torch.equal(rows[:, :267], tokens[:, :267]) and rows.shape == tokens.shape
    for row, start in zip(rows, (0, 400)):
        assert set(row[267:].tolist()) <= set(range(start, start + 267))
        assert 133 / 64 - 1 < (row[267:].diff() != 1).sum() <= 133 / 8  # passages of 8 to 64 tokens


def test_shares_of_far_blocks_are_those_of_plain_loops():
    config = converted_config(SOURCES["llama"], num_local_blocks=2, num_sink_blocks=1, **BLOCKS)
    query, key = torch.randn(2, 3, 5, 6), torch.randn(2, 22, 6)
    place = torch.tensor([21, 3, 12, 16, 20])
    shares = far_shares(query, key, place, config)
    assert shares.shape == (2, 5, 6)
    for head, (number, t) in itertools.product(range(2), enumerate(place.tolist())):
        expected = [0.0] * 6
        for one in range(3):
            scores = [(query[head, one, number] @ key[head, s]).item() / config.head_dim**0.5 for s in range(t + 1)]
            total = sum(map(math.exp, scores))
            for s, score in enumerate(scores):
                if 1 <= s // 4 <= t // 4 - 2:
                    expected[s // 4] += math.exp(score) / total / 3
        assert shares[head, number].tolist() == pytest.approx(expected, rel=1e-4)


def test_divergence_is_that_of_the_formula():
    aim, found = (
        torch.tensor([[[0.0, 0.1, 0.3], [0.0, 0.0, 0.0]]]),
        torch.tensor([[[0.0, 0.5, 0.25], [0.0, 0.1, 0.1]]]),
    )
    expected = 0.1 * math.log(0.25 / (2 / 3)) + 0.3 * math.log(0.75 / (1 / 3))
    assert divergence(aim, found)[0].tolist() == pytest.approx([expected, 0.0])
    assert divergence(aim, aim).abs().max() < 1e-6


@pytest.mark.parametrize("heads", [4, 2], ids=["apart", "merged"])
def test_a_fitted_index_finds_what_is_lost_in_products(heads, monkeypatch):
    """One direction has large products, which are the same for all keys, and so change no share."""
    monkeypatch.setattr(index_calibration_sinkhorn, "STEPS", 100)
    monkeypatch.setattr(index_calibration_sinkhorn, "FIT_STEPS", 200)
    monkeypatch.setattr(index_calibration_sinkhorn, "FIT_RATE", 0.02)
    config = converted_config(SOURCES["llama"], num_index_heads=heads, **BLOCKS)
    generator = torch.Generator().manual_seed(0)

    def row():
        query, key = torch.randn(2, 2, 40, 4, generator=generator), torch.randn(2, 60, 4, generator=generator)
        key[..., 0], key[..., 2:] = 4, 0
        if heads == 2:  # one query says what two want, where they want the same
            query[:, 1] = query[:, 0]
        return Recorded(query * 2, key * 2, torch.randint(20, 60, (40,), generator=generator))

    *rows, other = (row() for _ in range(4))
    start = start_of_index(index_directions(*second_moments(rows), 1), config)
    fitted = fit_to_shares(start, rows, config, generator)
    aim = far_shares(other.query, other.key, other.place, config)
    left = []
    for directions in (start, fitted):
        found = far_shares(*compared(other.query, other.key, directions), other.place, config)
        left.append(divergence(aim, found).mean().item())
    assert left[1] < left[0] / 4


def test_a_text_without_a_block_to_choose_is_enough(source):
    config = converted_config(source.config, index_head_dim=4)  # blocks of 64
    for projection in index_projections(source, text(1, 70), config).values():
        assert projection.isfinite().all() and projection.is_contiguous()
        assert projection.untyped_storage().nbytes() == projection.nbytes


def test_directions_keep_products_of_queries_and_keys(monkeypatch):
    """Better than the first directions of keys alone, and than a start that is not improved."""
    query, key = torch.randn(2, 2, 500, 12, dtype=torch.double) @ torch.randn(2, 2, 12, 12, dtype=torch.double)
    moments = [x.mT @ x / 500 for x in (query, key)]
    products = query @ key.mT

    def left(directions):
        return ((query @ directions.double()) @ (key @ directions.double()).mT - products).square().mean().item()

    start = left(index_directions(*moments, 4))
    monkeypatch.setattr(index_calibration_sinkhorn, "STEPS", 300)
    found = left(index_directions(*moments, 4))
    assert found < start < products.square().mean()
    assert found < left(torch.linalg.eigh(moments[1])[1][..., -4:])


def test_an_index_of_all_dimensions_finds_what_matters(source):
    """With as many dimensions as a head has, its shares are those of attention."""
    width = (
        source.config.hidden_size // 4 if getattr(source.config, "head_dim", None) is None else source.config.head_dim
    )
    model = convert(source, text(4), index_head_dim=width, **BLOCKS)
    projection = model.model.layers[0].self_attn.sort_net.index_proj
    assert projection.shape == (2, width, width)
    vectors = torch.randn(2, 50, width)
    assert_close((vectors @ projection) @ (vectors @ projection).mT, vectors @ vectors.mT, 0.1)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, words",
    [
        (PreTrainedConfig(), "`model_type` is ''; conversion knows llama, mistral"),
        (MistralConfig(**SIZES, sliding_window=64), "`sliding_window` is 64.*0.2 or later"),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=1),
            "`sliding_window` is 64",
        ),
        (LlamaConfig(**SIZES, attn_logit_softcapping=50.0), "`attn_logit_softcapping` is 50.0.*not capped"),
        (LlamaConfig(**SIZES, num_local_experts=8), "`num_local_experts` is 8.*no experts"),
        (LlamaConfig(**SIZES, quantization_config={"quant_method": "gptq"}), "`quantization_config`.*dequantize"),
        (
            LlamaConfig(
                **SIZES,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            ),
            "`partial_rotary_factor` is 0.5",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_carried_over_is_refused(config, words):
    with pytest.raises(ConversionError, match=f"(?s){words}"):
        converted_config(config)


@pytest.mark.parametrize(
    "choices, error, words",
    [
        ({"hidden_size": 64}, ConversionError, "`hidden_size` cannot be chosen.*Leave it out"),
        ({"sort_net": "bilinear"}, ConversionError, "`sort_net='bilinear'` learns weights.*use 'index' or 'keys'"),
        ({"layer_types": ["mixture_attention"] * 2}, ConversionError, r"`layer_types` holds \['mixture_attention'\]"),
        ({"layer_types": ["full_attention"]}, StrictDataclassError, "`layer_types` has 1 entries"),
        ({"block_size": 0}, StrictDataclassError, "`block_size` must be at least 1"),
    ],
    ids=str,
)
def test_choices_that_cannot_be_are_refused(choices, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        converted_config(SOURCES["llama"], **choices)


def test_an_index_needs_a_text():
    with pytest.raises(ConversionError, match="give the tokens of one as `calibration`, or use `sort_net='keys'`"):
        convert(make(SOURCES["llama"]))


def test_weights_of_another_architecture_are_refused():
    source = make(SOURCES["llama"])
    source.model.layers[0].self_attn.q_norm = torch.nn.RMSNorm(8)
    with pytest.raises(ConversionError, match="left over.*q_norm"):
        convert(source, text())
