# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`attn_implementation="sinkhorn"`, in tiny random models of other people's types."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    DynamicCache,
    T5Config,
    T5EncoderModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask, sdpa_mask
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

import interface_sinkhorn
from compatibility_sinkhorn import CACHE_NAME
from helpers import assert_close, padding_masks, tiny_config
from interface_sinkhorn import InterfaceError, Settings, SparseMask, attention_settings, sinkhorn_mask
from modeling_sinkhorn import SinkhornModel
from reference import reference_attention
from tiny_models import DECODERS, ENCODERS, SPARSE, TYPES, WHOLE, inputs_of, make


every_type = pytest.mark.parametrize("kind", TYPES)
every_granularity = pytest.mark.parametrize("granularity", ["block", "token"])


@pytest.fixture(autouse=True)
def small_blocks_in_windows(monkeypatch):
    """Otherwise one would hold these inputs."""
    monkeypatch.setattr(interface_sinkhorn, "WINDOW_BLOCK", 8)


@pytest.fixture
def never_short(monkeypatch):
    """Inputs that would be read whole go the same way as longer ones."""
    monkeypatch.setattr(Settings, "whole_length", 0)


def gradients(model, inputs, weight_of_tokens=None):
    """The output, and the gradient of every parameter."""
    output = model(**inputs).last_hidden_state
    if weight_of_tokens is not None:
        output = output * weight_of_tokens.unsqueeze(-1)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    model.zero_grad()
    (output * direction).sum().backward()
    return output, {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


# Full coverage ----------------------------------------------------------------------------------------------------


@every_type
@every_granularity
def test_full_coverage_equals_sdpa_forward_and_backward(never_short, kind, granularity):
    inputs = inputs_of(kind, rows=2)
    output, grads = gradients(make(kind, WHOLE | {"sort_granularity": granularity}), inputs)
    expected, expected_grads = gradients(make(kind, attn_implementation="sdpa"), inputs)
    assert_close(output, expected, 1e-6)  # some types have norms in single precision
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert_close(grad, expected_grads[name], 1e-5)


@pytest.mark.parametrize("kind", ENCODERS + DECODERS)
def test_full_coverage_equals_sdpa_with_padding(never_short, kind):
    mask = padding_masks(75)
    inputs = inputs_of(kind, mask=mask)
    output, grads = gradients(make(kind, WHOLE), inputs, mask)
    expected, expected_grads = gradients(make(kind, attn_implementation="sdpa"), inputs, mask)
    assert_close(output, expected, 1e-6)
    for name, grad in grads.items():
        assert_close(grad, expected_grads[name], 1e-5)


@every_type
def test_short_inputs_are_exactly_sdpa(kind):
    settings = {"block_size": 16, "num_sorted_blocks": 3, "num_local_blocks": 3}
    mask = None if kind == "vit" else padding_masks(75)
    inputs = inputs_of(kind, mask=mask)
    output = make(kind, settings)(**inputs).last_hidden_state
    expected = make(kind, attn_implementation="sdpa")(**inputs).last_hidden_state
    assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
@pytest.mark.parametrize("padded", [False, True])
def test_sliding_layers_keep_their_window(kind, padded):
    layers = TYPES[kind]["num_hidden_layers"]
    inputs = inputs_of(kind, mask=padding_masks(75) if padded else None)
    sliding = {"layer_types": ["sliding_attention"] * layers}
    output = make(kind, SPARSE, **sliding)(**inputs).last_hidden_state
    expected = make(kind, attn_implementation="sdpa", **sliding)(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool() if padded else slice(None)
    assert_close(output[real], expected[real], 1e-6)


def test_a_window_as_long_as_the_input_is_exactly_sdpa():
    inputs = inputs_of("qwen3", mask=padding_masks(75))
    fields = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 70}
    output = make("qwen3", SPARSE, **fields)(**inputs).last_hidden_state
    expected = make("qwen3", attn_implementation="sdpa", **fields)(**inputs).last_hidden_state
    assert torch.equal(output, expected)


# The oracle -------------------------------------------------------------------------------------------------------

HEADS, GROUPS, WIDTH, HIDDEN = 4, 2, 4, 12


def oracle_config(is_decoder, granularity, iterations, num_global_blocks=0):
    """What the oracle reads of a configuration."""
    return SimpleNamespace(
        **SPARSE,
        num_global_blocks=num_global_blocks,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS if is_decoder else HEADS,
        head_dim=WIDTH,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        is_decoder=is_decoder,
        sort_granularity=granularity,
        sort_assignment="hard",
        sort_net="keys",
        key_piece_size=4,
        sort_capacity=2.0,
        causal_balancing="capacity",
        sinkhorn_iterations=iterations,
        sinkhorn_temperature=0.75,
    )


def other_attention(kind, settings):
    """The attention of one layer of another model, and its weights by the names of the oracle."""
    fields = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "attn_implementation": "sinkhorn"}
    if kind == "bert":
        fields |= {"hidden_size": HEADS * WIDTH, "attention_probs_dropout_prob": 0.0}
        config = AutoConfig.for_model(kind, **fields, sinkhorn_attention=settings)
        attention = BertSelfAttention(config)
    else:
        fields |= {"num_key_value_heads": GROUPS, "head_dim": WIDTH, "num_hidden_layers": 1}
        config = AutoConfig.for_model(kind, **fields, sinkhorn_attention=settings)
        attention = {"llama": LlamaAttention, "qwen3": Qwen3Attention}[kind](config, 0)
    attention = attention.double()
    torch.manual_seed(0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    weights = {
        name.replace("query.", "q_proj.").replace("key.", "k_proj.").replace("value.", "v_proj."): x
        for name, x in attention.named_parameters()
    }
    if kind == "bert":
        weights["o_proj.weight"] = torch.eye(HEADS * WIDTH, dtype=torch.double)
    return attention, weights, config


@pytest.mark.parametrize(
    "kind, granularity, iterations, num_global_blocks",
    [
        ("llama", "block", 0, 1),
        ("llama", "token", 2, 0),
        ("qwen3", "token", 0, 2),
        ("bert", "block", 2, 0),
        ("bert", "token", 0, 2),
        ("bert", "block", 0, 1),
    ],
)
def test_sparse_attention_equals_the_oracle(kind, granularity, iterations, num_global_blocks):
    settings = SPARSE | {
        "sort_granularity": granularity,
        "sinkhorn_iterations": iterations,
        "num_global_blocks": num_global_blocks,
    }
    attention, weights, config = other_attention(kind, settings)
    num_tokens = 29
    masks = torch.ones(1, num_tokens, dtype=torch.long)
    masks[0, [0, 11]] = 0
    hidden_states = torch.randn(1, num_tokens, config.hidden_size, dtype=torch.double, requires_grad=True)
    mask = sinkhorn_mask(1, num_tokens, num_tokens, attention_mask=masks.bool(), config=config, **direction_of(kind))
    assert isinstance(mask, SparseMask)
    positions = torch.arange(num_tokens).unsqueeze(0)
    arguments = {}
    if kind == "bert":  # it has no rotary positions: at position 0 nothing is rotated
        positions = positions * 0
    else:
        arguments["position_embeddings"] = tuple(
            x.double() for x in LlamaRotaryEmbedding(config)(hidden_states, positions)
        )
    output = attention(hidden_states, attention_mask=mask, **arguments)[0]
    expected = reference_attention(
        hidden_states,
        weights,
        oracle_config(kind != "bert", granularity, iterations, num_global_blocks),
        "sinkhorn_attention",
        masks,
        positions,
    ).output
    real = masks.bool()
    assert_close(output[real], expected[real], 1e-6)
    grads = [
        torch.autograd.grad(x[real].sin().sum(), [hidden_states, *attention.parameters()]) for x in (output, expected)
    ]
    for grad, expected_grad in zip(*grads):
        assert_close(grad, expected_grad, 1e-5)


def direction_of(kind):
    function = interface_sinkhorn.bidirectional_mask_function if kind == "bert" else None
    return {} if function is None else {"mask_function": function}


@every_type
def test_reading_few_blocks_differs_from_reading_all(kind):
    """Otherwise the tests above would show nothing."""
    inputs = inputs_of(kind)
    outputs = [make(kind, settings)(**inputs).last_hidden_state for settings in (SPARSE, WHOLE)]
    assert (outputs[0] - outputs[1]).abs().max() > 0.01


# Padding and packing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS + DECODERS)
@every_granularity
def test_a_padded_row_equals_the_row_alone(kind, granularity):
    """Also a row that is read whole, since it is short, in a batch that is not."""
    mask = padding_masks(75)
    mask[4] = 0
    mask[4, 40:53] = 1
    model = make(kind, SPARSE | {"sort_granularity": granularity})
    if kind == "distilbert":  # its positions are places, so that only padding on the right is none
        mask = mask.sort(descending=True).values
    if kind in ("modernbert", "qwen3"):  # windows are between places: padding in between moves tokens apart
        mask[3] = mask[3].sort().values
    inputs = inputs_of(kind, mask=mask)
    output = model(**inputs).last_hidden_state
    for row in range(len(mask)):
        real = mask[row].bool()
        alone = {name: x[row : row + 1, real] for name, x in inputs.items()}
        assert_close(output[row, real], model(**alone).last_hidden_state[0], 1e-6)


def test_a_row_of_padding_alone_gives_numbers():
    for kind in ("bert", "modernbert", "llama"):
        mask = torch.ones(2, 75, dtype=torch.long)
        mask[1] = 0
        output, grads = gradients(make(kind, SPARSE), inputs_of(kind, mask=mask))
        assert output[0].isfinite().all() and all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("kind", DECODERS)
def test_packed_documents_equal_each_alone(kind):
    model, ids = make(kind, SPARSE), inputs_of(kind, 90)["input_ids"]
    lengths = [41, 3, 46]
    packed = model(input_ids=ids, position_ids=torch.cat([torch.arange(n) for n in lengths])[None], use_cache=False)
    for part, expected in zip(ids.split(lengths, 1), packed.last_hidden_state.split(lengths, 1)):
        assert_close(model(input_ids=part).last_hidden_state, expected, 1e-6)


def test_a_decoder_reads_nothing_that_comes_later():
    model, ids = make("llama", SPARSE), inputs_of("llama")["input_ids"]
    changed = ids.clone()
    changed[:, 50:] = 5
    before, after = (model(input_ids=x).last_hidden_state for x in (ids, changed))
    assert_close(before[:, :50], after[:, :50], 1e-12)


# The mask ---------------------------------------------------------------------------------------------------------


def tensors_of(mask):
    if isinstance(mask, torch.Tensor):
        return [mask]
    return [tensor for part in mask for tensor in tensors_of(part)] if isinstance(mask, tuple) else []


@every_type
def test_no_mask_is_as_large_as_all_pairs(monkeypatch, kind):
    """Neither what the interface returns, nor what reaches torch's attention."""
    sizes, num_tokens = [], 81 if kind == "vit" else 150
    torch_attention = torch.nn.functional.scaled_dot_product_attention

    def watched_mask(*args, **kwargs):
        mask = sinkhorn_mask(*args, **kwargs)
        sizes.extend(tensor.untyped_storage().nbytes() / tensor.element_size() for tensor in tensors_of(mask))
        return mask

    def watched_attention(query, key, value, attn_mask=None, **kwargs):
        assert query.shape[-2] * key.shape[-2] < num_tokens**2 / 4
        return torch_attention(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sinkhorn", watched_mask)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched_attention)
    mask = None
    if kind != "vit":
        mask = torch.ones(1, num_tokens, dtype=torch.long)
        mask[0, -7:] = 0
    small_window = {"local_attention": 4} if kind == "modernbert" else {}
    model = make(kind, SPARSE, **small_window)
    gradients(model, inputs_of(kind, num_tokens, mask=mask))
    assert sizes and max(sizes) < num_tokens**2


def test_a_mask_for_each_pair_is_refused():
    model, ids = make("llama", SPARSE), inputs_of("llama")["input_ids"]
    with pytest.raises(InterfaceError, match=r"mask \(1, 1, 75, 75\)"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1, 75, 75, dtype=torch.bool).tril())


def test_masks_of_a_model_that_are_not_understood_are_refused():
    config = make("llama", SPARSE).config
    embeds = torch.zeros(1, 75, 16)
    groups = torch.full((1, 75), -1)
    groups[0, 10:20] = 3
    with pytest.raises(InterfaceError, match="none of"):
        create_causal_mask(config, embeds, None, None, block_sequence_ids=groups)
    with pytest.raises(InterfaceError, match="of its own"):
        create_causal_mask(config, embeds, None, None, or_mask_function=lambda b, h, q, kv: q < 7)


# Caches -----------------------------------------------------------------------------------------------------------


def causal_model(settings, attn_implementation="sinkhorn", **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **(TYPES["llama"] | fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval().double()
    model.config.sinkhorn_attention = settings
    return model


@torch.no_grad()
def test_generation_equals_sdpa_where_the_prompt_is_read_whole():
    """The prompt is too long for the library's attention, and short enough that every block is read."""
    settings = {"block_size": 4, "num_sorted_blocks": 14}
    assert Settings(**settings).whole_length == 64
    mask = padding_masks(67)[:2]
    mask[1] = 0
    mask[1, 20:] = 1
    ids = inputs_of("llama", 67, rows=2)["input_ids"]
    written = [
        causal_model(settings, kind).generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        for kind in ("sinkhorn", "sdpa")
    ]
    assert torch.equal(*written)


@torch.no_grad()
def test_a_cache_of_fixed_size_takes_short_prompts_alone():
    model, ids = causal_model(SPARSE), inputs_of("llama")["input_ids"]
    fields = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "cache_implementation": "static"}
    short = ids[:, :16]
    assert torch.equal(model.generate(short, **fields), causal_model(None, "sdpa").generate(short, **fields))
    with pytest.raises(InterfaceError, match="cache of fixed size"):
        model.generate(ids, **fields)


@torch.no_grad()
def test_new_tokens_read_everything_in_the_cache():
    """Keys of the first layer depend on no attention: there, a sparse prompt leaves what a full one leaves."""
    ids = inputs_of("llama")["input_ids"]
    sparse, full = (causal_model(SPARSE, kind, num_hidden_layers=1) for kind in ("sinkhorn", "sdpa"))
    cache = DynamicCache(config=sparse.config)
    prompt = sparse(ids[:, :60], **{CACHE_NAME: cache}).logits
    expected = full(ids).logits
    assert not torch.allclose(prompt, expected[:, :60], atol=1e-3)
    for part in (ids[:, 60:61], ids[:, 61:75]):
        logits = sparse(part, **{CACHE_NAME: cache}).logits
        assert_close(logits, expected[:, cache.get_seq_length() - part.shape[1] : cache.get_seq_length()], 1e-6)


@torch.no_grad()
def test_a_long_continuation_of_a_cache_is_refused():
    model, ids = causal_model(SPARSE), inputs_of("llama")["input_ids"]
    cache = DynamicCache(config=model.config)
    model(ids[:, :40], **{CACHE_NAME: cache})
    with pytest.raises(InterfaceError, match="35 new tokens continue a cache of 40.*convert"):
        model(ids[:, 40:], **{CACHE_NAME: cache})


# Training ---------------------------------------------------------------------------------------------------------


@every_granularity
def test_dropout_is_applied_in_training_alone(granularity):
    settings = SPARSE | {"sort_granularity": granularity}
    model = make("bert", settings, attention_probs_dropout_prob=0.3)
    inputs = inputs_of("bert")
    assert torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    model.train()
    output, grads = gradients(model, inputs)
    assert not torch.equal(output, model(**inputs).last_hidden_state)
    assert all(grad.isfinite().all() for grad in grads.values())


def test_dropped_attention_is_right_in_the_mean():
    """Values of one layer are linear in the weights that are dropped."""
    query, key, value = (torch.randn(1, 2, 40, 4) for _ in range(3))
    config = make("bert", SPARSE).config
    module = SimpleNamespace(config=config, is_causal=False)
    attend = interface_sinkhorn.sinkhorn_attention_forward
    expected = attend(module, query, key, value, None)[0]
    many = torch.stack([attend(module, query, key, value, None, dropout=0.2)[0] for _ in range(200)])
    assert ((many.mean(0) - expected).abs() < 5 * many.std(0) / math.sqrt(200) + 1e-3).all()


def test_activation_checkpointing_changes_no_gradient():
    inputs = inputs_of("llama")
    model = make("llama", SPARSE)
    _, expected = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    model.train()
    _, grads = gradients(model, inputs | {"use_cache": False})
    for name, grad in grads.items():
        assert_close(grad, expected[name], 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_numbers(dtype):
    for kind in ("bert", "llama", "modernbert"):
        mask = padding_masks(75)
        output = make(kind, SPARSE).to(dtype)(**inputs_of(kind, mask=mask)).last_hidden_state
        assert output.dtype == dtype and output[mask.bool()].isfinite().all()


# Settings ---------------------------------------------------------------------------------------------------------


def test_a_model_takes_it_at_any_time(tmp_path):
    inputs = inputs_of("bert")
    model = make("bert", SPARSE)
    expected = model(**inputs).last_hidden_state
    model.set_attn_implementation("sdpa")
    assert not torch.equal(model(**inputs).last_hidden_state, expected)
    model.set_attn_implementation("sinkhorn")
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="sinkhorn")
    assert loaded.config.sinkhorn_attention == SPARSE
    assert torch.equal(loaded(**inputs).last_hidden_state, expected)
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_defaults():
    assert attention_settings(BertConfig()) == Settings(64, 4, 2, 1, 1, "block")
    assert Settings().whole_length == 384
    assert attention_settings(BertConfig(sinkhorn_attention={"block_size": 32})).block_size == 32


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_sort_blocks": 3}, "no field 'num_sort_blocks'. Did you mean 'num_sorted_blocks'"),
        ({"colour": 3}, "no field 'colour'. There are"),
        ({"block_size": "64"}, "`block_size` of .* must be int, got '64'"),
        ({"block_size": True}, "`block_size` of .* must be int"),
        ({"block_size": 0}, "`block_size` must be at least 1"),
        ({"num_sink_blocks": -1}, "`num_sink_blocks` must be from 0"),
        ({"num_global_blocks": -1}, "`num_global_blocks` must be at least 0, got -1"),
        ({"sort_granularity": "word"}, "`sort_granularity` must be one of"),
        ([64], "must be a dict"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    model = make("bert")
    model.config.sinkhorn_attention = settings
    with pytest.raises(InterfaceError, match=message):
        model(**inputs_of("bert"))


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_maps_are_refused(kind):
    with pytest.raises(InterfaceError, match="output_attentions"):
        make(kind, SPARSE)(**inputs_of(kind), output_attentions=True)


def test_cross_attention_is_refused():
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    bart = BartModel(BartConfig(**small, attn_implementation="sinkhorn"))
    with pytest.raises(InterfaceError, match="Cross attention is unsupported, and this `bart` model has it"):
        bart(**inputs_of("bert"))
    decoder = make("bert", SPARSE, is_decoder=True, add_cross_attention=True)
    with pytest.raises(InterfaceError, match="Cross attention"):
        decoder(**inputs_of("bert"), encoder_hidden_states=torch.zeros(1, 75, 16, dtype=torch.double))


def test_attention_of_another_kind_is_refused():
    module = SimpleNamespace(config=BertConfig(), is_causal=False)
    states = torch.zeros(1, 2, 400, 4)
    attend = interface_sinkhorn.sinkhorn_attention_forward
    for argument in ("position_bias", "softcap", "s_aux"):
        with pytest.raises(InterfaceError, match="unsupported"):
            attend(module, states, states, states, None, **{argument: 1.0})
    with pytest.raises(InterfaceError, match="has no `config`"):
        attend(torch.nn.Identity(), states, states, states, None)
    with pytest.raises(InterfaceError, match="cross attention"):
        attend(module, states, states[:, :, :300], states[:, :, :300], None)
    mask = sinkhorn_mask(1, 390, 390, config=BertConfig())
    with pytest.raises(InterfaceError, match="do not fit a mask of 390"):
        attend(module, states, states, states, mask)
    with pytest.raises(InterfaceError, match="do not fit a mask of 390"):  # keys with a prefix
        attend(module, states[:, :, :390], states, states, mask)
    with pytest.raises(InterfaceError, match="cross attention, or a prefix"):
        sinkhorn_mask(1, 390, 200, config=BertConfig(), mask_function=interface_sinkhorn.bidirectional_mask_function)
    t5 = T5EncoderModel(T5Config(d_model=16, d_kv=8, num_heads=2, num_layers=1, d_ff=8, vocab_size=60))
    try:
        t5.set_attn_implementation("sinkhorn")
    except ValueError:
        return
    if t5.config._attn_implementation == "sinkhorn":
        with pytest.raises(InterfaceError):
            t5(**inputs_of("bert"))


def test_our_own_models_are_refused():
    model = SinkhornModel(tiny_config(attn_implementation="sinkhorn"))
    with pytest.raises(InterfaceError, match="of its own"):
        model(input_ids=torch.full((1, 75), 7))


def test_a_decoder_of_an_encoder_type_is_causal():
    """`BertModel` with `is_decoder`, which has a cache like others."""
    inputs = inputs_of("bert")
    outputs = [
        make("bert", SPARSE if kind == "sinkhorn" else None, kind, is_decoder=True)(**inputs).last_hidden_state
        for kind in ("sinkhorn", "sdpa")
    ]
    assert_close(outputs[0][:, :16], outputs[1][:, :16], 1e-9)  # they read all that is before them
    assert isinstance(make("bert"), BertModel)


def test_masks_of_short_inputs_are_those_of_the_library():
    arguments = {"batch_size": 2, "q_length": 20, "kv_length": 20, "attention_mask": padding_masks(20)[:2].bool()}
    assert torch.equal(sinkhorn_mask(**arguments, config=BertConfig()), sdpa_mask(**arguments))


# Graphs ---------------------------------------------------------------------------------------------------------------


class OnlyStates(torch.nn.Module):
    """Without the output class and a cache, which a program that is exported cannot return."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return self.model(input_ids, attention_mask=attention_mask, **positions).last_hidden_state


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama", "qwen3"])
@pytest.mark.parametrize("padded", [False, True])
def test_an_exported_program_gives_the_same_numbers(kind, padded):
    """Nothing can be asked there about the mask of the library: whether it is causal, or has padding."""
    model = make(kind, SPARSE, **({"use_cache": False} if kind in DECODERS else {}))
    inputs = inputs_of(kind, mask=padding_masks(75) if padded else None)
    with torch.no_grad():
        program = torch.export.export(OnlyStates(model), (), inputs, strict=False).module()
        output, expected = program(**inputs), model(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool() if padded else slice(None)
    assert_close(output[real], expected[real], 1e-6)


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_compiled_model_gives_the_same_numbers(kind):
    """In several graphs: the configuration of the attention is made between them."""
    model = make(kind, SPARSE)
    inputs = inputs_of(kind, mask=padding_masks(75))
    with torch.no_grad():
        output = torch.compile(model)(**inputs).last_hidden_state
        expected = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    assert_close(output[real], expected[real], 1e-6)
