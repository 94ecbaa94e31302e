# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Decoding from a cache equals the full forward (invariant 6): any chunking, any padding, whatever happens in between."""

import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, StaticCache

from compatibility_sinkhorn import cache_of
from helpers import assert_close, in_pairs, padding_masks, tiny_config
from modeling_sinkhorn import SinkhornForCausalLM, SinkhornForSequenceClassification, SinkhornModel


CAUSAL_LAYERS = ("sinkhorn_attention", "mixture_attention", "local_attention", "full_attention")


def make(layer_type="sinkhorn_attention", **overrides) -> SinkhornForCausalLM:
    torch.manual_seed(0)
    return SinkhornForCausalLM(tiny_config(layer_type, is_decoder=True, **overrides)).eval()


def make_cache(model, static: bool, length: int = 64):
    return StaticCache(model.config, max_cache_len=length) if static else DynamicCache(config=model.config)


def in_chunks(model, ids, mask, sizes, cache, first=0):
    """Logits of all tokens from the `first`, read in chunks of `sizes` tokens, over and over."""
    logits, start = [], first
    for size in itertools.cycle(sizes):
        if start >= ids.shape[1]:
            return torch.cat(logits, dim=1)
        end = min(start + size, ids.shape[1])
        seen = None if mask is None else mask[:, :end]
        logits.append(model(ids[:, start:end], attention_mask=seen, cache=cache, use_cache=True).logits)
        start = end


# Chunks --------------------------------------------------------------------------------------------------------------


KINDS = [
    {},
    {"sort_assignment": "hard"},
    {"num_local_blocks": 2},
    {"num_local_blocks": 3, "num_sorted_blocks": 2, "sort_assignment": "hard"},
    {"block_size": 1},
    {"block_size": 7, "num_key_value_heads": 1},
    {"sort_net": "linear"},
    {"sort_net": "mlp", "sort_pooling": "sum", "sort_assignment": "hard"},
    {"sinkhorn_iterations": 0},
    {"causal_balancing": "capacity", "sort_pooling": "first"},
    {"causal_balancing": "capacity", "sort_assignment": "hard", "num_local_blocks": 2},
    {"layer_type": "mixture_attention"},
    {"layer_type": "mixture_attention", "sort_assignment": "hard"},
    {"layer_type": "local_attention", "num_local_blocks": 2},
    {"layer_type": "full_attention"},
]


# The other half of the product, a quarter of a minute, is slow.
@pytest.mark.parametrize("overrides, padded, static", in_pairs(KINDS, [False, True], [False, True]), ids=str)
@torch.no_grad()
def test_chunks_equal_the_full_forward(overrides, padded, static):
    model = make(**overrides)
    ids = torch.randint(3, 50, (5, 23))
    mask = padding_masks(23) if padded else None
    real = slice(None) if mask is None else mask.bool()
    expected = model(ids, attention_mask=mask, use_cache=False).logits[real]
    for sizes in ([1], [5, 1, 1, 1], [9, 2]):
        actual = in_chunks(model, ids, mask, sizes, make_cache(model, static))[real]
        assert_close(actual, expected)


@torch.no_grad()
def test_layers_of_several_types_share_a_cache():
    config = tiny_config(is_decoder=True, num_hidden_layers=4)
    config.layer_types = list(CAUSAL_LAYERS)
    for static in (False, True):
        torch.manual_seed(0)
        model = SinkhornForCausalLM(config).eval()
        ids, mask = torch.randint(3, 50, (5, 23)), padding_masks(23)
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        actual = in_chunks(model, ids, mask, [9, 1, 1, 4], make_cache(model, static))
        assert_close(actual[mask.bool()], expected[mask.bool()])


@torch.no_grad()
def test_positions_that_are_given():
    for overrides in ({}, {"sort_assignment": "hard"}, {"layer_type": "mixture_attention"}):
        model = make(**overrides)
        ids, positions = torch.randint(3, 50, (2, 23)), torch.arange(23).unsqueeze(0) * 2 + 5
        expected = model(ids, position_ids=positions, use_cache=False).logits
        cache = make_cache(model, False)
        cache.activate_past_recording()
        logits = []
        for start, end in [(0, 6), (6, 7), (7, 8), (8, 9), (9, 18)]:
            step = {"position_ids": positions[:, start:end], "cache": cache}
            logits.append(model(ids[:, start:end], **step).logits)
        cache.crop(-8)  # to the middle of a block that opens again
        for start, end in [(10, 11), (11, 12), (12, 13), (13, 23)]:
            step = {"position_ids": positions[:, start:end], "cache": cache}
            actual = model(ids[:, start:end], **step).logits
            assert_close(actual, expected[:, start:end])
        assert_close(torch.cat(logits, 1), expected[:, :18])


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_gradients_flow_through_the_cache(static):
    for overrides in ({}, {"sort_assignment": "hard"}):
        model = make(**overrides)
        embeds = torch.randn(2, 14, 16, requires_grad=True)
        direction = torch.randn(2, 14, 50)
        whole = model(inputs_embeds=embeds, use_cache=False).logits
        expected = torch.autograd.grad((whole * direction).sum(), [embeds, *model.parameters()])
        cache = make_cache(model, static)
        parts = [model(inputs_embeds=part, cache=cache).logits for part in embeds.split([6, 1, 1, 6], dim=1)]
        actual = torch.autograd.grad((torch.cat(parts, 1) * direction).sum(), [embeds, *model.parameters()])
        for gradient, expected_gradient in zip(actual, expected):
            assert_close(gradient, expected_gradient, 1e-4)


def test_modes_may_change_between_prefill_and_steps():
    """Under no circumstances is a tensor changed that a graph, or inference mode, needs as it is."""
    ids = torch.randint(3, 50, (1, 11))
    for overrides in ({}, {"sort_assignment": "hard"}):
        model = make(**overrides)
        expected = model(ids, use_cache=False).logits
        cache = make_cache(model, False)
        with torch.inference_mode():
            model(ids[:, :6], cache=cache)
        with torch.no_grad():
            assert_close(in_chunks(model, ids[:, 6:], None, [1], cache), expected[:, 6:])

        cache = make_cache(model, False)
        loss = model(ids[:, :6], cache=cache).logits.sum()
        with torch.no_grad():
            model(ids[:, 6:7], cache=cache)
        loss.backward()

        model.requires_grad_(False)
        model.model.layers[0].self_attn.q_proj.requires_grad_(True)
        cache = make_cache(model, False)
        in_chunks(model, ids, None, [6, 1, 1, 3], cache).sum().backward()

        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            cache = cache_of(model(ids[:, :6], use_cache=True))
        with torch.no_grad():
            model(ids[:, 6:], cache=cache)
            again = copy.deepcopy(cache)
            assert torch.equal(model(ids, cache=cache).logits, model(ids, cache=again).logits)


@torch.no_grad()
def test_a_classifier_goes_on_from_a_cache():
    ids, mask = torch.randint(3, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    model = SinkhornForSequenceClassification(tiny_config(is_decoder=True)).eval()
    expected = model(ids, attention_mask=mask).logits
    cache = cache_of(model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True))
    assert_close(model(ids[:, 6:], attention_mask=mask, cache=cache).logits, expected)
    model.config.classifier_pooling = "mean"
    cache = cache_of(model(ids[:, :6], use_cache=True))
    with pytest.raises(ValueError, match="`classifier_pooling='mean'` reads all tokens.*'last'"):
        model(ids[:, 6:], cache=cache)


@pytest.mark.slow  # a minute of compilation
@pytest.mark.parametrize("overrides", [{}, {"sort_assignment": "hard"}, {"layer_type": "mixture_attention"}], ids=str)
@torch.no_grad()
def test_steps_on_a_static_cache_are_one_graph(overrides):
    torch.compiler.reset()
    model = make(**overrides)
    ids = torch.randint(3, 50, (2, 23))
    expected = model(ids, use_cache=False).logits
    cache = make_cache(model, True)
    logits = [model(ids[:, :6], cache=cache).logits]
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(model, fullgraph=True, backend=counter)
    logits += [step(ids[:, t : t + 1], cache=cache).logits for t in range(6, 23)]
    assert_close(torch.cat(logits, dim=1), expected)
    assert counter.frame_count == 1


@pytest.mark.slow  # two minutes of compilation
@pytest.mark.parametrize("layer_type", ["sinkhorn_attention", "full_attention"])
def test_generating_padded_rows_from_a_static_cache_is_one_graph(layer_type):
    """Also where shapes may not vary: the mask has the length of the cache, as the library's masks have."""
    model = make(layer_type)
    ids, mask = torch.randint(3, 50, (2, 13)), padding_masks(13)[:2]
    options = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), expected)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model._valid_auto_compile_criteria = lambda *args, **kwargs: True  # otherwise on accelerators alone
    config = CompileConfig(backend=backend, fullgraph=True, dynamic=False, mode=None)
    compiled = model.generate(ids, cache_implementation="static", compile_config=config, **options)
    assert torch.equal(compiled, expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("layer_type", CAUSAL_LAYERS)
@torch.no_grad()
def test_a_mask_may_have_the_length_of_a_static_cache(layer_type):
    model = make(layer_type)
    ids, mask = torch.randint(3, 50, (5, 23)), padding_masks(23)
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    longer = torch.nn.functional.pad(mask, (0, 9), value=1)  # what stands past the tokens says nothing
    cache, logits = make_cache(model, True, length=32), []
    for start, end in ((0, 9), (9, 10), (10, 11), (11, 23)):
        logits.append(model(ids[:, start:end], attention_mask=longer, cache=cache).logits)
    assert_close(torch.cat(logits, dim=1)[mask.bool()], expected[mask.bool()])
    with pytest.raises(ValueError, match="`attention_mask` has shape"):
        model(ids[:, :1], attention_mask=longer[:, :31], cache=cache)


@pytest.mark.parametrize("layer_type", CAUSAL_LAYERS)
@torch.no_grad()
def test_keys_and_values_show_the_tokens_that_are_there(layer_type):
    model = make(layer_type)
    ids, cache = torch.randint(3, 50, (2, 23)), make_cache(model, False)
    for layer in cache.layers:
        assert layer.keys is None and layer.values is None
    for start, end in ((0, 6), (6, 7), (7, 23)):
        model(ids[:, start:end], cache=cache)
        for layer in cache.layers:
            assert layer.keys.shape == layer.values.shape == (2, 2, end, 4)
            assert layer.keys.abs().sum(-1).min() > 0 and layer.values.abs().sum(-1).min() > 0
    cache.crop(-2)
    assert cache.layers[0].keys.shape[2] == 21
    static = make_cache(model, True, length=30)
    model(ids, cache=static)
    assert static.layers[0].keys.shape == (2, 2, 30, 4)  # as the library's static layers
    if layer_type != "full_attention":
        mask = torch.ones_like(ids)
        mask[:, :5] = 0
        padded = make_cache(model, False)
        model(ids, attention_mask=mask, cache=padded)
        assert padded.layers[0].values.shape[2] == 18  # of the longest row; padding is not stored
        with pytest.raises(AttributeError, match="cannot be set"):
            padded.layers[0].keys = torch.zeros(1)


# Random schedules ----------------------------------------------------------------------------------------------------


OPERATIONS = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 11)),
    st.tuples(st.just("step"), st.integers(1, 5)),
    st.tuples(st.just("crop"), st.integers(0, 13)),
    st.tuples(st.just("reorder"), st.integers(0, 5)),
    st.tuples(st.just("repeat"), st.just(2)),
    st.tuples(st.just("select"), st.integers(0, 3)),
)


SCHEDULES = given(
    operations=st.lists(OPERATIONS, min_size=2, max_size=9),
    padding=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    layer_type=st.sampled_from(CAUSAL_LAYERS),
    assignment=st.sampled_from(["soft", "hard"]),
    block_size=st.sampled_from([1, 3, 4]),
    num_local_blocks=st.sampled_from([1, 2]),
    static=st.booleans(),
    seed=st.integers(0, 999),
)
SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@SCHEDULES
@settings(SETTINGS, max_examples=60)
def test_any_schedule_equals_the_full_forward(**schedule):
    check_schedule(**schedule)


@pytest.mark.slow  # half a minute
@SCHEDULES
@settings(SETTINGS, max_examples=500)
def test_any_of_many_schedules_equals_the_full_forward(**schedule):
    check_schedule(**schedule)


@torch.no_grad()
def check_schedule(operations, padding, layer_type, assignment, block_size, num_local_blocks, static, seed) -> None:
    if layer_type == "full_attention":  # then the cache is the library's, and its static one does not crop
        static = False
    settings_ = {"block_size": block_size, "num_local_blocks": num_local_blocks, "sort_assignment": assignment}
    follow(make(layer_type, **settings_), operations, padding, static, seed)


def follow(model, operations, padding, static, seed):
    """Reads random tokens and does what `operations` say, and compares every step with the full forward."""
    generator = torch.Generator().manual_seed(seed)
    cache = make_cache(model, static, length=130)
    cache.activate_past_recording()
    batch = len(padding)
    ids = torch.zeros(batch, 0, dtype=torch.long)
    first_real = torch.tensor(padding)

    def mask():
        return (torch.arange(ids.shape[1]) >= first_real.unsqueeze(-1)).long()

    for name, number in [*operations, ("read", 3)]:
        if name in ("read", "step"):
            actual = []
            for size in [number] if name == "read" else [1] * number:
                new = torch.randint(3, 50, (len(ids), size), generator=generator)
                ids = torch.cat((ids, new), dim=1)
                actual.append(model(new, attention_mask=mask(), cache=cache).logits)
            expected = model(ids, attention_mask=mask(), use_cache=False).logits[:, -number:]
            real = mask()[:, -number:].bool()
            if real.any():
                assert_close(torch.cat(actual, dim=1)[real], expected[real])
        elif name == "crop":
            number = min(number, ids.shape[1])
            cache.crop(-number)
            cache.activate_past_recording()
            ids = ids[:, : ids.shape[1] - number]
        elif ids.shape[1] > 0:
            if name == "repeat":
                if len(ids) > 3:
                    continue
                order = torch.arange(len(ids)).repeat_interleave(number)
                cache.batch_repeat_interleave(number)
            else:
                keep = len(ids) if name == "reorder" else max(1, len(ids) - number)
                order = torch.randint(0, len(ids), (keep,), generator=generator)
                cache.reorder_cache(order) if name == "reorder" else cache.batch_select_indices(order)
            ids, first_real = ids[order], first_real[order]
        assert int(cache.get_seq_length()) == ids.shape[1]


# Going back ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_crop_reaches_as_far_as_inputs_are_kept():
    model = make()
    ids = torch.randint(3, 50, (1, 30))
    expected = model(ids, use_cache=False).logits

    def cropped_to(length, recording=False):
        cache = make_cache(model, False)
        if recording:
            cache.activate_past_recording()
        model(ids[:, :22], cache=cache)
        cache.crop(length - 22)
        return cache

    for length in (21, 20, 17, 16, 12, 4, 0):  # the last two blocks of 4, and multiples of 4
        actual = in_chunks(model, ids[:, length:], None, [1, 1, 1, 7], cropped_to(length))
        assert_close(actual, expected[:, length:])
    for length in (15, 3):
        with pytest.raises(
            RuntimeError, match=r"activate_past_recording\(\).*multiple of the block size \(4 tokens\)"
        ):
            cropped_to(length)
        actual = in_chunks(model, ids[:, length:], None, [1, 1, 1, 7], cropped_to(length, recording=True))
        assert_close(actual, expected[:, length:])
    # A refused crop leaves the cache as it was.
    cache = make_cache(model, False)
    model(ids[:, :22], cache=cache)
    with pytest.raises(RuntimeError):
        cache.crop(-9)
    assert cache.get_seq_length() == 22
    assert_close(model(ids[:, 22:], cache=cache).logits, expected[:, 22:])
    with pytest.raises(ValueError, match="`crop` takes 0 or a negative number, got 3"):
        cache.crop(3)


@torch.no_grad()
def test_a_crop_that_is_refused_on_the_way_is_noticed():
    config = tiny_config(is_decoder=True)
    ids = torch.randint(3, 50, (1, 30))
    for first, refused in (("local_attention", False), ("full_attention", True)):
        config.layer_types = [first, "sinkhorn_attention"]
        torch.manual_seed(0)
        model = SinkhornForCausalLM(config).eval()
        cache = make_cache(model, False)
        model(ids[:, :22], cache=cache)
        with pytest.raises(RuntimeError, match="activate_past_recording"):
            cache.crop(-9)
        if refused:  # the library's layer had gone back already
            with pytest.raises(ValueError, match=r"hold \[13, 22\] tokens.*`reset\(\)`"):
                model(ids[:, 22:], cache=cache)
        else:
            expected = model(ids, use_cache=False).logits[:, 22:]
            assert_close(model(ids[:, 22:], cache=cache).logits, expected)


@torch.no_grad()
def test_padding_among_what_is_cropped():
    model = make()
    ids, mask = torch.randint(3, 50, (1, 26)), torch.ones(1, 26, dtype=torch.long)
    mask[0, 14:21] = 0
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    cache = make_cache(model, False)
    model(ids[:, :22], attention_mask=mask[:, :22], cache=cache)
    cache.crop(-8)  # one token and seven of padding: 14 are left, in the last block but one
    actual = model(ids[:, 14:], attention_mask=mask, cache=cache).logits
    assert_close(actual[:, 7:], expected[:, 21:])


@torch.no_grad()
def test_several_crops_add_up():
    model = make(sort_assignment="hard")
    ids = torch.randint(3, 50, (2, 30))
    cache = make_cache(model, False)
    cache.activate_past_recording()
    model(ids[:, :25], cache=cache)
    cache.crop(-2)
    cache.crop(-5)
    cache.crop(0)
    assert cache.get_seq_length() == 18
    expected = model(ids, use_cache=False).logits
    assert_close(in_chunks(model, ids[:, 18:], None, [1], cache), expected[:, 18:])


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_reset_forgets_everything(static):
    model = make()
    ids = torch.randint(3, 50, (2, 20))
    cache = make_cache(model, static)
    model(torch.randint(3, 50, (2, 11)), cache=cache)
    cache.reset()
    assert int(cache.get_seq_length()) == 0
    expected = model(ids, use_cache=False).logits
    assert_close(in_chunks(model, ids, None, [7, 1], cache), expected)


# Cost and errors -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_step_that_opens_no_block_does_not_read_the_past():
    """The keys of past blocks may turn to NaN: only the open block, and what is sorted beside it, are looked at."""
    for assignment in ("soft", "hard"):
        model = make(sort_assignment=assignment)
        ids = torch.randint(3, 50, (1, 24))
        expected = model(ids, use_cache=False).logits
        cache = make_cache(model, False)
        model(ids[:, :21], cache=cache)
        for layer in cache.layers:
            layer.stored_keys[:, :, :20], layer.stored_values[:, :, :20] = float("nan"), float("nan")
        assert_close(in_chunks(model, ids[:, 21:], None, [1], cache), expected[:, 21:])


class NewTensors(TorchDispatchMode):
    """Collects the sizes of what operations allocate, without what they change in place or view."""

    def __init__(self):
        super().__init__()
        self.sizes = [0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        known = {
            x.untyped_storage().data_ptr() for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.sizes.append(tensor.numel())
        return output


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_a_step_makes_no_tensor_as_long_as_the_past(static):
    for overrides in ({}, {"sort_assignment": "hard"}, {"layer_type": "local_attention"}):
        model = make(num_local_blocks=2, **overrides)
        largest = []
        for length in (200, 800):
            cache = make_cache(model, static, length=900)
            model(torch.randint(3, 50, (1, length)), cache=cache)
            token = torch.randint(3, 50, (1, 1))
            model(token, cache=cache)  # opens a block
            with NewTensors() as new:
                model(token, cache=cache)
            largest.append(max(new.sizes))
        assert max(largest) < 800


@torch.no_grad()
def test_room_grows_by_shares_and_holds_what_the_library_expects():
    model = make()
    cache = make_cache(model, False)
    model(torch.randint(3, 50, (2, 41)), cache=cache)
    keys, grown = cache.layers[0].stored_keys, 0
    assert keys.shape[:2] == (2, 2) and keys.shape[2] % 4 == 0 and keys.shape[3] == 4
    for _ in range(120):
        model(torch.randint(3, 50, (2, 1)), cache=cache)
        grown += cache.layers[0].stored_keys is not keys
        keys = cache.layers[0].stored_keys
    assert grown == 4  # from 16 blocks to 23, 31, 40 and 50
    assert cache.get_seq_length() == 161 and cache.get_max_length() == -1
    assert cache.get_mask_sizes(1, 0) == (162, 0)
    assert cache.is_croppable and not cache.is_compileable


def test_bad_caches_are_refused_in_words():
    model = make()
    ids = torch.randint(3, 50, (1, 9))
    cache = cache_of(model(ids, use_cache=True))
    with pytest.raises(
        ValueError, match=r"`attention_mask` has shape \(1, 1\).*\(1, 10\).*the 9 in the cache included"
    ):
        model(ids[:, :1], attention_mask=torch.ones(1, 1), cache=cache)
    with pytest.raises(ValueError, match="room for 8 tokens, and 0 \\+ 9 are given.*`max_cache_len`"):
        model(ids, cache=make_cache(model, True, length=8))
    with pytest.raises(ValueError, match="7 tokens.*SortNet|17 blocks of 4 tokens.*outputs for 16"):
        limited = make(sort_net="linear")
        in_chunks(limited, torch.randint(3, 50, (1, 65)), None, [60, 1], make_cache(limited, False))
    with pytest.raises(ValueError, match="`cache` needs a decoder"):
        SinkhornModel(tiny_config())(ids, cache=cache)
    for other in (DynamicCache(), DynamicCache(config=make("full_attention").config)):
        with pytest.raises(ValueError, match=r"make it with `DynamicCache\(config=model.config\)`"):
            model(ids, cache=other)
    with pytest.raises(ValueError, match=r"holds 1 rows, but 2 are given.*`batch_repeat_interleave`"):
        model(ids.repeat(2, 1), cache=cache)
    for positions in (torch.arange(10)[None], torch.arange(1), torch.arange(2)[:, None]):
        with pytest.raises(ValueError, match=r"`position_ids` has shape .*\(1, 1\).*none for those in a cache"):
            model(ids[:, :1], position_ids=positions, cache=cache)
    checkpointed = make().train()
    checkpointed.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="under activation checkpointing.*activation_checkpointing_disable"):
        checkpointed(ids[:, :1], cache=cache)
    with pytest.raises(TypeError, match="filled by the model's attention"):
        cache.layers[0].update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@torch.no_grad()
def test_past_tokens_keep_their_mask(static):
    model = make()
    ids = torch.randint(3, 50, (1, 10))
    padded = torch.ones(1, 10, dtype=torch.long)
    padded[0, :3] = 0
    for first, then in ((None, padded), (padded, None), (padded, torch.ones_like(padded))):
        cache = make_cache(model, static)
        model(ids[:, :9], attention_mask=None if first is None else first[:, :9], cache=cache)
        read, given = (9 if mask is None or mask.all() else 6 for mask in (first, then))
        with pytest.raises(ValueError, match=rf"\[{given}\] real tokens in the rows .* filled with \[{read}\]"):
            model(ids[:, 9:], attention_mask=then, cache=cache)


@torch.no_grad()
def test_rows_of_a_static_cache_are_counted():
    model = make()
    ids, cache = torch.randint(3, 50, (2, 9)), make_cache(model, True)
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="holds 2 rows, but 3 are given"):
        model(ids[:1].repeat(3, 1), cache=cache)


@torch.no_grad()
def test_full_attention_alone_takes_the_librarys_cache():
    model = make("full_attention")
    ids, cache = torch.randint(3, 50, (2, 9)), DynamicCache()
    model(ids[:, :5], cache=cache)
    expected = model(ids, use_cache=False).logits[:, 5:]
    assert_close(model(ids[:, 5:], cache=cache).logits, expected)


def test_training_and_encoders_make_no_cache():
    model = make()
    ids = torch.randint(3, 50, (1, 9))
    assert cache_of(model.train()(ids)) is None
    model.eval()
    assert cache_of(model(ids)).get_seq_length() == 9
    assert cache_of(model(ids, use_cache=False)) is None
