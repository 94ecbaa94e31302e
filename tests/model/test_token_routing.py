# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Sinks, the scorers "keys" and "index", and routing by token: against the oracle, and as users meet them."""

import copy
import io
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cache import OPERATIONS, NewTensors, follow, in_chunks, make_cache
from test_generation import pairs_with_a_gradient
from test_packing import documents, pack
from test_reference import compare

import routed_attention_sinkhorn
import token_attention_sinkhorn
import token_scores_sinkhorn
from configuration_sinkhorn import SinkhornConfig
from helpers import BLOCK, TOKEN, assert_close, padding_masks, pairwise, tiny_config
from modeling_sinkhorn import SinkhornForCausalLM, SinkhornForSequenceClassification, SinkhornModel


SCORERS = ("bilinear", "keys", "index")
ROUTES = {
    **{f"token-{scorer}": TOKEN | {"sort_net": scorer} for scorer in SCORERS},
    **{f"block-{scorer}": BLOCK | {"sort_net": scorer} for scorer in ("keys", "index")},
    "token-index-merged": TOKEN | {"sort_net": "index", "num_index_heads": 2},
    "block-index-merged": BLOCK | {"sort_net": "index", "num_index_heads": 2},
}
every_route = pytest.mark.parametrize("route", ROUTES)
both_directions = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])


def describe(case: dict) -> str:
    return "-".join(str(value) for value in case.values())


def make(route, model_class=SinkhornModel, implementation="sdpa", layer_type="sinkhorn_attention", **overrides):
    """In float64, so that comparisons are sharp; the noise of training only where it is asked for."""
    torch.manual_seed(0)
    fields = {"gumbel_noise": False, "eos_token_id": None, "bos_token_id": None, **ROUTES.get(route, {}), **overrides}
    return model_class(tiny_config(layer_type, attn_implementation=implementation, **fields)).double().eval()


def dense_like(model):
    """The same weights with full attention in every layer."""
    config = copy.deepcopy(model.config)
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    dense = type(model)(config).double().eval()
    dense.load_state_dict(model.state_dict(), strict=False)
    return dense


def tokens(rows=2, length=19, seed=1):
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def states_and_gradients(model, **inputs):
    """Last hidden states of real tokens, and the gradient of every parameter, of one random direction."""
    states = model(**inputs).last_hidden_state
    mask = inputs.get("attention_mask")
    states = states if mask is None else states[mask.bool()]
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(3)).to(states.dtype)
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad((states * direction).sum(), parameters)
    return states.detach(), dict(zip(names, gradients))


# The oracle ----------------------------------------------------------------------------------------------------------


TINY_HEADS = {"hidden_size": 8, "num_attention_heads": 2, "head_dim": 4}
MASKS = {"whole": None, "left": slice(1, 2), "right": slice(2, 3), "holes": slice(3, 4), "both": slice(4, 5)}


def compare_case(case: dict, route: dict, num_tokens: int = 17):
    """`compare` on a case of `pairwise`, of which `mask`, `positions` and `layer_type` are no fields."""
    case = {"layer_type": "sinkhorn_attention", "mask": "whole", "positions": False, **case}
    layer_type, mask, positions = (case.pop(name) for name in ("layer_type", "mask", "positions"))
    config = tiny_config(layer_type, **TINY_HEADS | route | case)
    positions = torch.arange(num_tokens).unsqueeze(0) * 2 + 5 if positions else None
    mask = None if mask == "whole" else padding_masks(num_tokens)[MASKS[mask]]
    return compare(config, num_tokens, mask, positions)


@pytest.mark.parametrize(
    "case",
    pairwise(
        sort_net=SCORERS,
        is_decoder=(False, True),
        sinkhorn_iterations=(0, 3),
        num_sorted_blocks=(1, 2),
        num_local_blocks=(1, 2),
        num_sink_blocks=(0, 1, 2),
        num_key_value_heads=(1, 2),
        mask=tuple(MASKS),
    ),
    ids=describe,
)
def test_routing_by_token_equals_the_oracle(case):
    compare_case(case, TOKEN, num_tokens=19)


@pytest.mark.parametrize(
    "case",
    pairwise(
        sort_net=SCORERS,
        is_decoder=(False, True),
        positions=(False, True),
        layer_type=("sinkhorn_attention", "mixture_attention"),
        sort_capacity=(1.0, 1.25, 2.0),
        sinkhorn_temperature=(0.2, 1.0),
        attention_bias=(False, True),
        block_size=(2, 4, 6),
        sinkhorn_iterations=(1, 4),
    ),
    ids=describe,
)
def test_routing_by_token_with_every_setting_equals_the_oracle(case):
    compare_case(case, TOKEN, num_tokens=13)


@pytest.mark.parametrize(
    "case",
    pairwise(
        sort_net=("keys", "index"),
        is_decoder=(False, True),
        sinkhorn_iterations=(0, 3),
        causal_balancing=("equality", "capacity"),
        num_sorted_blocks=(1, 2),
        num_local_blocks=(1, 2),
        num_sink_blocks=(0, 1, 2),
        num_key_value_heads=(1, 2),
        layer_type=("sinkhorn_attention", "mixture_attention"),
        mask=tuple(MASKS),
    ),
    ids=describe,
)
def test_shares_of_blocks_equal_the_oracle(case):
    compare_case(case, BLOCK)


@pytest.mark.parametrize(
    "case",
    pairwise(
        sort_granularity=("token", "block"),
        is_decoder=(False, True),
        num_key_value_heads=(1, 2),
        sinkhorn_iterations=(0, 3),
        num_sorted_blocks=(1, 2),
        mask=tuple(MASKS),
    ),
    ids=describe,
)
def test_merged_heads_of_an_index_equal_the_oracle(case):
    heads = {"num_attention_heads": 4, "num_index_heads": case["num_key_value_heads"]}
    compare_case(case, TOKEN | {"sort_net": "index"} | heads)


@torch.no_grad()
def test_merged_heads_begin_as_their_mean():
    """So that of equal query heads they choose as each does by itself."""
    model = make("token-index-merged", is_decoder=True)
    apart = make("token-index", is_decoder=True)
    apart.load_state_dict(model.state_dict(), strict=False)
    for attention in (layer.self_attn for both in (model, apart) for layer in both.layers):
        weight = attention.q_proj.weight.unflatten(0, (2, 2, -1))  # (G, r, D, hidden)
        weight[:, 1] = weight[:, 0]
    expected, actual = (x(tokens(), output_sort_matrices=True).sort_matrices for x in (apart, model))
    for one, other in zip(actual, expected):
        assert_close(one, other, 1e-9)


@pytest.mark.parametrize(
    "case",
    pairwise(
        sort_assignment=("soft", "hard"),
        layer_type=("sinkhorn_attention", "mixture_attention", "local_attention"),
        is_decoder=(False, True),
        num_sink_blocks=(1, 2, 9),
        num_local_blocks=(1, 2),
        sort_net=("bilinear", "linear"),
        mask=tuple(MASKS),
    ),
    ids=describe,
)
def test_sinks_of_blocks_equal_the_oracle(case):
    compare_case(case, {})


@both_directions
@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("sort_net", SCORERS)
def test_texts_of_one_block_or_two_equal_the_oracle(sort_net, num_tokens, is_decoder):
    """Without a candidate there is nothing to choose, and yet every parameter has a gradient, of zeros."""
    for route in (TOKEN, BLOCK):
        case = {"sort_net": sort_net, "is_decoder": is_decoder, "sinkhorn_iterations": 2}
        compare_case(case, route, num_tokens)


@pytest.mark.parametrize("sort_net", ["keys", "index"])
def test_choices_equal_the_oracle_where_nearly_all_attention_is_elsewhere(sort_net):
    """Shares too small for a number of single precision count as equal, and the first block is taken."""
    for route in (TOKEN, BLOCK):
        case = {"sort_net": sort_net, "sinkhorn_iterations": 0, "initializer_range": 3.0, "num_sink_blocks": 1}
        compare_case(case, route)


@both_directions
def test_noise_equals_the_oracle(is_decoder, monkeypatch):
    """The same for every token: in what shape it is drawn is the code's own affair, but for the blocks at the end."""
    by_block = torch.tensor([0.9, -0.4, 2.0, 0.1, -1.0], dtype=torch.double)
    for name, module in list(sys.modules.items()):
        if name.endswith("_sinkhorn") and hasattr(module, "gumbel_noise"):
            monkeypatch.setattr(module, "gumbel_noise", lambda like: by_block.expand_as(like))
    config = tiny_config(**TINY_HEADS | TOKEN, is_decoder=is_decoder, num_key_value_heads=1)
    compare(config, 19, None, None, by_block.expand(2, 1, 19, 5))


# One implementation and another ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    pairwise(
        route=tuple(ROUTES),
        is_decoder=(False, True),
        num_sink_blocks=(0, 1, 2),
        num_sorted_blocks=(1, 3),
        sinkhorn_iterations=(0, 2),
        num_local_blocks=(1, 2),
        length=(45, 130),
        padded=(False, True),
    ),
    ids=describe,
)
def test_sdpa_equals_eager_forward_and_backward(case):
    case = dict(case)
    length, padded = case.pop("length"), case.pop("padded")
    inputs = {"input_ids": tokens(5 if padded else 2, length)}
    if padded:
        inputs["attention_mask"] = padding_masks(length)
    (states, gradients), (expected, expected_gradients) = (
        states_and_gradients(make(**case, block_size=8, implementation=implementation), **inputs)
        for implementation in ("sdpa", "eager")
    )
    assert_close(states, expected, 1e-9)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], 1e-7)


@both_directions
@pytest.mark.parametrize("sort_net", SCORERS)
@pytest.mark.parametrize("fewest", [1, 64])  # queries at a time of all rows, or of each row
def test_parts_equal_the_whole(sort_net, is_decoder, fewest, monkeypatch):
    """Texts are so long nowhere else in the tests that scores and pairs are made in several parts."""
    for iterations, implementation in ((2, "sdpa"), (0, "eager")):
        fields = {"implementation": implementation, "sinkhorn_iterations": iterations, "is_decoder": is_decoder}
        model = make(f"token-{sort_net}", num_sorted_blocks=2, num_sink_blocks=1, **fields)
        inputs = {"input_ids": tokens(2, 45), "attention_mask": padding_masks(45)[2:4], "use_cache": False}
        expected, expected_gradients = states_and_gradients(model, **inputs)
        with monkeypatch.context() as patch:
            patch.setitem(token_scores_sinkhorn.MAX_SCORES, "cpu", 1000)
            patch.setattr(token_scores_sinkhorn, "FEWEST_QUERIES", fewest)
            patch.setitem(token_scores_sinkhorn.MAX_OF_PLAN, "cpu", 1000)
            patch.setitem(routed_attention_sinkhorn.MAX_PARTIAL_OUTPUTS, "cpu", 1000)
            patch.setitem(routed_attention_sinkhorn.MAX_GATHERED, "cpu", 4000)
            patch.setitem(routed_attention_sinkhorn.TILES_AT_ONCE, "cpu", 3)
            states, gradients = states_and_gradients(model, **inputs)
        assert_close(states, expected, 1e-9)
        for name, gradient in gradients.items():
            assert_close(gradient, expected_gradients[name], 1e-7)


@pytest.mark.parametrize("layer_type, assignment", [
    ("sinkhorn_attention", "soft"),
    ("sinkhorn_attention", "hard"),
    ("local_attention", "soft"),
])  # fmt: skip
@both_directions
def test_sdpa_equals_eager_with_sinks(is_decoder, layer_type, assignment):
    fields = {"is_decoder": is_decoder, "sort_assignment": assignment, "num_sink_blocks": 2, "layer_type": layer_type}
    inputs = {"input_ids": tokens(5, 45), "attention_mask": padding_masks(45)}
    (states, gradients), (expected, expected_gradients) = (
        states_and_gradients(make(None, implementation=implementation, **fields), **inputs)
        for implementation in ("sdpa", "eager")
    )
    assert_close(states, expected, 1e-9)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name], 1e-7)


@both_directions
@every_route
@pytest.mark.parametrize("num_sinks", [0, 2])
def test_maps_and_sort_matrices_of_a_model(route, is_decoder, num_sinks):
    model = make(route, implementation="eager", is_decoder=is_decoder, num_sink_blocks=num_sinks)
    ids, mask = tokens(5), padding_masks(19)
    outputs = model(ids, attention_mask=mask, output_attentions=True, output_sort_matrices=True, use_cache=False)
    for attention_map in outputs.attentions:
        assert_close(attention_map.sum(-1), mask[:, None].expand(-1, 4, -1).double(), 1e-9)
        assert attention_map.masked_select(mask[:, None, None] == 0).abs().sum() == 0
    assert len(outputs.sort_matrices) == 2
    for matrix in outputs.sort_matrices:
        if route.startswith("block"):
            assert matrix.shape == (5, 2, 5, 5)
            continue
        assert matrix.shape == (5, 2, 19, 5)
        rank = mask.cumsum(-1) - 1
        blocks = -(-mask.sum(-1, keepdim=True) // 4)
        reach = rank // 4 if is_decoder else blocks.expand_as(rank)
        own = (rank // 4 >= num_sinks) & (not is_decoder)  # an encoder's own block is one that it may not choose
        has_candidates = (mask > 0) & (reach - own.long() > num_sinks)
        assert_close(matrix.sum(-1), has_candidates[:, None].expand(-1, 2, -1).double(), 1e-9)
        assert matrix[..., :num_sinks].abs().sum() == 0


def test_maps_are_part_of_the_graph_and_change_no_gradient():
    for is_decoder in (False, True):
        for sort_net in SCORERS:
            model = make(f"token-{sort_net}", implementation="eager", is_decoder=is_decoder, num_sink_blocks=1)
            gradients = []
            for maps in (False, True):
                states = model(tokens(), output_attentions=maps, use_cache=False).last_hidden_state
                gradients.append(torch.autograd.grad(states.pow(2).mean(), list(model.parameters())))
            for plain, of_maps in zip(*gradients):
                assert_close(of_maps, plain, 1e-9)


# Full coverage -------------------------------------------------------------------------------------------------------


@both_directions
@every_route
def test_every_block_chosen_is_full_attention(route, is_decoder):
    for num_sinks, num_local in ((0, 1), (1, 2)):
        model = make(
            route, is_decoder=is_decoder, num_sorted_blocks=9, num_sink_blocks=num_sinks, num_local_blocks=num_local
        )
        dense = dense_like(model)
        for inputs in ({"input_ids": tokens(2, 30)}, {"input_ids": tokens(5), "attention_mask": padding_masks(19)}):
            states, gradients = states_and_gradients(model, **inputs)
            expected, expected_gradients = states_and_gradients(dense, **inputs)
            assert_close(states, expected, 1e-9)
            if route.endswith("keys"):
                assert gradients.keys() == expected_gradients.keys(), "keys need no parameters"
                for name, gradient in gradients.items():
                    assert_close(gradient, expected_gradients[name], 1e-7)


@every_route
@torch.no_grad()
def test_every_block_chosen_decodes_as_full_attention(route):
    model = make(route, SinkhornForCausalLM, is_decoder=True, num_sorted_blocks=9, sinkhorn_iterations=2)
    dense = dense_like(model)
    ids, mask = tokens(2, 25), torch.ones(2, 25, dtype=torch.long)
    mask[1, :6] = 0
    expected = dense(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    for static in (False, True):
        actual = in_chunks(model, ids, mask, [7, 1, 1, 1], make_cache(model, static))[mask.bool()]
        assert_close(actual, expected, 1e-9)
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), dense.generate(ids, **options))


# Causality -----------------------------------------------------------------------------------------------------------


@every_route
@torch.no_grad()
def test_a_later_token_changes_nothing(route):
    for overrides in (
        {"sinkhorn_iterations": 0},
        {"sinkhorn_iterations": 3, "num_sink_blocks": 1, "sort_capacity": 1.0},
    ):
        for implementation in ("sdpa", "eager"):
            model = make(route, is_decoder=True, num_sorted_blocks=2, implementation=implementation, **overrides)
            ids, other = tokens(2, 39), tokens(2, 39, seed=2)
            expected = model(ids, use_cache=False).last_hidden_state
            for place in (1, 4, 22, 38):
                for end in {place + 1, 39}:  # this token, and all from it on
                    changed = torch.cat((ids[:, :place], other[:, place:end], ids[:, end:]), dim=1)
                    actual = model(changed, use_cache=False).last_hidden_state
                    assert_close(actual[:, :place], expected[:, :place], 1e-12)


@every_route
def test_no_pair_of_positions_leaks(route):
    """Nor by a gradient; with the noise of training."""
    for training, overrides in (
        (False, {}),
        (True, {"num_local_blocks": 2, "num_sink_blocks": 1, "layer_type": "mixture_attention"}),
    ):
        model = make(route, is_decoder=True, gumbel_noise=True, **overrides).float().train(training)
        seen = pairs_with_a_gradient(model, 15)
        assert not seen.triu(1).any(), "an output depends on a later token"
        assert seen.diagonal().all()


# Padding and packing -------------------------------------------------------------------------------------------------


@both_directions
@every_route
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(route, is_decoder):
    for overrides in ({"sinkhorn_iterations": 0}, {"sinkhorn_iterations": 2, "num_sink_blocks": 1}):
        model = make(route, is_decoder=is_decoder, num_sorted_blocks=2, **overrides)
        ids, mask = tokens(5, 29), padding_masks(29)
        together = model(ids, attention_mask=mask).last_hidden_state
        for row in range(5):
            real = mask[row].bool()
            alone = model(ids[row : row + 1, real]).last_hidden_state[0]
            assert_close(together[row, real], alone, 1e-9)
        disturbed = torch.where(mask.bool(), ids, tokens(5, 29, seed=2))
        again = model(disturbed, attention_mask=mask).last_hidden_state
        assert torch.equal(again[mask.bool()], together[mask.bool()])


@both_directions
@every_route
def test_a_row_of_padding_alone_is_harmless(route, is_decoder):
    model = make(route, is_decoder=is_decoder, num_sink_blocks=1, gumbel_noise=True).train()
    mask = padding_masks(19)[:2].clone()
    mask[1] = 0
    embeds = model.embed_tokens(tokens()).detach().requires_grad_()
    outputs = []
    model.layers[0].self_attn.register_forward_hook(lambda *args: outputs.append(args[2][0]))
    model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state.sum().backward()
    assert outputs[0][1].abs().sum() == 0
    assert embeds.grad.isfinite().all()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if name != "embed_tokens.weight"]
    assert all(gradient.isfinite().all() for gradient in gradients)


@both_directions
@every_route
def test_each_document_of_a_packed_row_equals_the_document_alone(route, is_decoder):
    for overrides in (
        {"sinkhorn_iterations": 0, "implementation": "eager"},
        {"num_sink_blocks": 1, "num_sorted_blocks": 2},
    ):
        model = make(route, is_decoder=is_decoder, **overrides).train()
        texts = documents((1, 13, 4, 9))
        ids, positions = pack(texts)
        weight = torch.randn(ids.shape[1], 16, generator=torch.Generator().manual_seed(2), dtype=torch.double)
        packed = model(ids, position_ids=positions).last_hidden_state[0]
        alone = torch.cat([model(text.unsqueeze(0)).last_hidden_state[0] for text in texts])
        assert_close(packed, alone, 1e-9)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad((packed * weight).sum(), parameters)
        for actual, expected in zip(gradients, torch.autograd.grad((alone * weight).sum(), parameters)):
            assert_close(actual, expected, 1e-7)


@torch.no_grad()
def test_sort_matrices_of_a_packed_row_stay_within_documents():
    for is_decoder in (False, True):
        model = make("token-bilinear", is_decoder=is_decoder)
        texts = documents()
        ids, positions = pack(texts)
        number = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(text) for text in texts]))
        block = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([-(-len(text) // 4) for text in texts]))
        for matrix in model(ids, position_ids=positions, output_sort_matrices=True, use_cache=False).sort_matrices:
            assert matrix.shape == (1, 2, ids.shape[1], len(block))
            assert matrix[..., number[:, None] != block].abs().max() == 0
        one = model(texts[4].unsqueeze(0), output_sort_matrices=True, use_cache=False).sort_matrices
        assert_close(matrix[:, :, number == 4][..., block == 4], one[-1], 1e-9)


# Decoding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    pairwise(
        route=tuple(ROUTES),
        sinkhorn_iterations=(0, 2),
        num_sink_blocks=(0, 1),
        num_sorted_blocks=(1, 2),
        num_local_blocks=(1, 2),
        layer_type=("sinkhorn_attention", "mixture_attention"),
        static=(False, True),
        padded=(False, True),
        implementation=("sdpa", "eager"),
    ),
    ids=describe,
)
@torch.no_grad()
def test_chunks_equal_the_full_forward(case):
    case = dict(case)
    static, padded = case.pop("static"), case.pop("padded")
    model = make(**case, model_class=SinkhornForCausalLM, is_decoder=True)
    ids = tokens(5, 27)
    mask = padding_masks(27) if padded else None
    real = slice(None) if mask is None else mask.bool()
    expected = model(ids, attention_mask=mask, use_cache=False).logits[real]
    for sizes in ([1], [5, 1, 9, 2]):
        actual = in_chunks(model, ids, mask, sizes, make_cache(model, static))[real]
        assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("name", ["attend_one_token_of_equal_rows", "attend_one_token"])
@pytest.mark.parametrize("sort_net", ["keys", "index"])
def test_steps_of_one_token_take_the_short_way_where_they_may(sort_net, name, monkeypatch):
    """Not where a cache holds tensors of inference mode, or a graph needs them as they are."""
    taken = []
    short_way = getattr(token_attention_sinkhorn, name)
    monkeypatch.setattr(token_attention_sinkhorn, name, lambda *args: taken.append(1) or short_way(*args))
    model = make(f"token-{sort_net}", SinkhornForCausalLM, is_decoder=True, num_sink_blocks=1, sinkhorn_iterations=0)
    ids, mask = tokens(2, 29), None
    if name == "attend_one_token":  # rows of different lengths
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
    real = slice(None) if mask is None else mask[:, 23:].bool()
    expected = model(ids, attention_mask=mask, use_cache=False).logits[:, 23:][real]
    for mode, steps in ((torch.no_grad, 6), (torch.inference_mode, 5)):  # the first step replaces the states
        cache = make_cache(model, False)
        taken.clear()
        with mode():
            model(ids[:, :23], attention_mask=None if mask is None else mask[:, :23], cache=cache)
        with torch.no_grad():
            assert_close(in_chunks(model, ids, mask, [1], cache, first=23)[real], expected, 1e-9)
        assert len(taken) == steps * len(model.model.layers)
    cache = make_cache(model, False)
    model(ids[:, :23], cache=cache).logits.sum().backward()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("overrides", [
    {"sort_assignment": "soft"},
    {"sort_assignment": "hard", "num_sorted_blocks": 2},
    {"layer_type": "local_attention"},
], ids=str)  # fmt: skip
@torch.no_grad()
def test_chunks_with_sinks_equal_the_full_forward(overrides, static):
    model = make(None, SinkhornForCausalLM, is_decoder=True, num_sink_blocks=2, **overrides)
    ids, mask = tokens(5, 23), padding_masks(23)
    expected = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    for sizes in ([1], [6, 2, 4]):
        actual = in_chunks(model, ids, mask, sizes, make_cache(model, static))[mask.bool()]
        assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("iterations", [0, 2])
@every_route
@torch.no_grad()
def test_cropped_caches_go_on_as_if_nothing_had_been(route, iterations):
    """By a few tokens, over a block boundary, to one, and far back, where a recording may be asked for."""
    model = make(route, SinkhornForCausalLM, is_decoder=True, num_sink_blocks=1, sinkhorn_iterations=iterations)
    ids = tokens(2, 29)
    expected = model(ids, use_cache=False).logits
    for recording, lengths in ((False, (24, 21, 20, 11)), (True, (22, 16, 3, 0))):
        filled = make_cache(model, False)
        if recording:
            filled.activate_past_recording()
        in_chunks(model, ids[:, :26], None, [19, 2, 1], filled)
        for length in lengths:
            cache = copy.deepcopy(filled)
            try:
                cache.crop(length - 26)
            except RuntimeError as error:
                assert not recording and length < 20, f"{length} tokens reach into the last two blocks"
                assert "activate_past_recording" in str(error)
            else:
                actual = in_chunks(model, ids[:, length:], None, [1, 9], cache)
                assert_close(actual, expected[:, length:], 1e-9)


@pytest.mark.parametrize("route, static", [(route, number % 2 == 1) for number, route in enumerate(ROUTES)])
@torch.no_grad()
def test_rows_are_reordered_and_repeated(route, static):
    """Of a batch with left padding, in the middle of a block."""
    model = make(route, SinkhornForCausalLM, is_decoder=True, num_sink_blocks=1, sinkhorn_iterations=2)
    ids, mask = tokens(3, 29), torch.ones(3, 29, dtype=torch.long)
    mask[1, :5], mask[2, :11] = 0, 0
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    order, cache = [2, 1, 1], make_cache(model, static)
    in_chunks(model, ids[:, :15], mask, [13, 1], cache)
    cache.reorder_cache(torch.tensor(order))
    actual = [
        model(ids[order, t : t + 1], attention_mask=mask[order, : t + 1], cache=cache).logits for t in range(15, 24)
    ]
    assert_close(torch.cat(actual, dim=1), expected[order, 15:24], 1e-9)
    cache = make_cache(model, static)
    model(ids[:, :15], attention_mask=mask[:, :15], cache=cache)
    cache.batch_repeat_interleave(2)
    order = [0, 0, 1, 1, 2, 2]
    actual = [
        model(ids[order, t : t + 2], attention_mask=mask[order, : t + 2], cache=cache).logits for t in range(15, 29, 2)
    ]
    assert_close(torch.cat(actual, dim=1), expected[order, 15:], 1e-9)


@given(
    operations=st.lists(OPERATIONS, min_size=2, max_size=7),
    padding=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    route=st.sampled_from(sorted(ROUTES)),
    iterations=st.sampled_from([0, 2]),
    num_sinks=st.sampled_from([0, 1]),
    num_local=st.sampled_from([1, 2]),
    static=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@torch.no_grad()
def test_any_schedule_equals_the_full_forward(
    operations, padding, route, iterations, num_sinks, num_local, static, seed
):
    fields = {"sinkhorn_iterations": iterations, "num_sink_blocks": num_sinks, "num_local_blocks": num_local}
    model = make(route, SinkhornForCausalLM, is_decoder=True, **fields)
    follow(model, operations, padding, static, seed)


@every_route
@torch.no_grad()
def test_generation_of_padded_rows_equals_each_row_alone(route):
    model = make(route, SinkhornForCausalLM, is_decoder=True, num_sink_blocks=1, sinkhorn_iterations=2)
    ids, mask = tokens(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[1, :5] = 0
    options = {"max_new_tokens": 7, "do_sample": False}
    together = model.generate(ids, attention_mask=mask, **options)
    alone = model.generate(ids[1:, 5:], **options)
    assert torch.equal(together[1, 14:], alone[0, -7:])
    static = model.generate(ids, attention_mask=mask, cache_implementation="static", **options)
    assert torch.equal(static, together)


# Training, dtypes, files ---------------------------------------------------------------------------------------------


@both_directions
@every_route
def test_every_parameter_gets_a_gradient(route, is_decoder):
    model = make(route, is_decoder=is_decoder, num_sink_blocks=1).train()
    for length in (3, 19):  # one block: a gradient of 0, but a gradient, as DDP needs it
        model.zero_grad()
        model(tokens(2, length)).last_hidden_state.pow(2).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    silent = [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() == 0]
    assert not silent
    names = {name.partition("sort_net.")[2] for name in model.state_dict() if "sort_net" in name}
    own = {"bilinear": {"row_proj.weight", "column_proj.weight"}, "index": {"index_proj"}, "keys": set()}
    own["index-merged"] = {"index_proj", "index_query_proj"}
    assert names == own[route.partition("-")[2]]


@both_directions
@pytest.mark.parametrize("sort_net", ["bilinear", "index"])
def test_gradients_are_finite_in_single_precision(sort_net, is_decoder):
    """Also where some rows of the plan, as of padding, choose nothing, and many iterations follow each other."""
    for seed in range(3):
        model = make(f"token-{sort_net}", is_decoder=is_decoder, sort_capacity=1.0, sinkhorn_iterations=8)
        exact = states_and_gradients(model, input_ids=tokens(2, 19, seed), use_cache=False)[1]
        rough = states_and_gradients(model.float(), input_ids=tokens(2, 19, seed), use_cache=False)[1]
        for name, gradient in rough.items():
            assert gradient.isfinite().all(), name
            assert_close(gradient, exact[name], 1e-4)


@both_directions
@every_route
def test_activation_checkpointing_gives_the_same_gradients_noise_included(route, is_decoder):
    gradients = []
    for checkpointing in (False, True):
        fields = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "gumbel_noise": True, "num_sink_blocks": 1}
        model = make(route, is_decoder=is_decoder, **fields).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(7)
        model(tokens()).last_hidden_state.pow(2).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        assert_close(checkpointed, plain, 1e-9)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@every_route
def test_a_step_of_training_follows_the_seed(route, implementation):
    ids = tokens()
    losses = []
    for seed in (5, 5, 6):
        fields = {
            "attention_dropout": 0.2,
            "gumbel_noise": True,
            "num_sink_blocks": 1,
            "implementation": implementation,
        }
        model = make(route, SinkhornForCausalLM, is_decoder=True, **fields).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(seed)
        for _ in range(2):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_noise_changes_choices_in_training_alone():
    for route in ROUTES:
        model = make(route, gumbel_noise=True)
        ids = tokens()
        assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
        model.train()
        assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


@both_directions
@every_route
@torch.no_grad()
def test_bfloat16_is_close_to_float32(route, is_decoder):
    """As close as full attention where everything is chosen; otherwise most tokens: single choices may tip."""
    ids, mask = tokens(5, 61), padding_masks(61)
    for num_sorted in (9, 2):
        fields = {"initializer_range": 0.1, "block_size": 8, "num_sorted_blocks": num_sorted, "num_sink_blocks": 1}
        model = make(route, is_decoder=is_decoder, **fields).float()
        errors = []
        for network in (dense_like(model).float(), model):
            exact = network(ids, attention_mask=mask).last_hidden_state
            rough = network.to(torch.bfloat16)(ids, attention_mask=mask).last_hidden_state
            assert rough.dtype == torch.bfloat16 and rough.isfinite().all()
            of_tokens = (rough.float() - exact)[mask.bool()].pow(2).mean(-1).sqrt()
            errors.append(of_tokens.max() if num_sorted == 9 else of_tokens.median())
        assert errors[1] <= 2 * errors[0]


@every_route
@both_directions
@pytest.mark.parametrize("length", [4, 9, 19])
def test_half_precision_by_autocast_at_any_length(route, is_decoder, length):
    """Under it products are of another type than what they are multiplied with."""
    model = make(route, is_decoder=is_decoder).float()
    ids = tokens(length=length)
    expected = model(ids).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model(ids).last_hidden_state
    errors = (actual - expected).abs().mean(-1)  # of tokens: rounding decides between blocks that are equally good
    assert actual.isfinite().all() and errors.median() < 0.1 * expected.abs().mean()


@every_route
def test_sort_matrices_stay_in_float32_under_autocast(route):
    model = make(route, gumbel_noise=True, num_sink_blocks=1).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(tokens(), output_sort_matrices=True)
    assert all(matrix.dtype == torch.float32 for matrix in outputs.sort_matrices)
    outputs.last_hidden_state.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@every_route
@torch.no_grad()
def test_a_saved_model_is_the_same_when_it_is_loaded(route, tmp_path):
    model = make(route, num_sink_blocks=2, sort_capacity=1.5).float()
    model.save_pretrained(tmp_path)
    loaded = SinkhornModel.from_pretrained(tmp_path).eval()
    for name in (
        "sort_granularity",
        "num_sink_blocks",
        "sort_net",
        "key_piece_size",
        "index_head_dim",
        "num_index_heads",
        "sort_capacity",
    ):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert torch.equal(loaded(tokens()).last_hidden_state, model(tokens()).last_hidden_state)


@torch.no_grad()
def test_heads_over_it_run():
    for route in ROUTES:
        model = make(route, SinkhornForSequenceClassification, num_sink_blocks=1)
        ids, mask = tokens(5), padding_masks(19)
        together = model(ids, attention_mask=mask).logits
        assert together.shape == (5, 3)
        assert_close(together[1:2], model(ids[1:2, mask[1].bool()]).logits, 1e-9)


@pytest.mark.slow  # a minute of compilation
@both_directions
@every_route
def test_compiles_whole_for_every_length(route, is_decoder):
    torch.compiler.reset()
    settings = {"num_hidden_layers": 1, "num_sink_blocks": 1, "sinkhorn_iterations": 1}
    model = make(route, is_decoder=is_decoder, **settings).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (13, 22):
        for mask in (None, padding_masks(length)):
            inputs = {"input_ids": tokens(5, length), "attention_mask": mask, "use_cache": False}
            inputs = {name: value for name, value in inputs.items() if value is not None}
            expected, expected_gradients = states_and_gradients(model, **inputs)
            actual, gradients = states_and_gradients(compiled, **inputs)
            assert_close(actual, expected, 1e-9)
            for name, gradient in gradients.items():
                assert_close(gradient, expected_gradients[name.removeprefix("_orig_mod.")], 1e-7)


@pytest.mark.filterwarnings("ignore")  # tracing warns of each size that it makes a constant
@both_directions
@pytest.mark.parametrize("route", ["token-index", "token-index-merged"])
def test_a_model_that_learns_its_choice_can_be_traced_and_saved(route, is_decoder):
    """With gradients enabled, as they are where nobody says otherwise: a graph has no backward pass of ours."""
    model = make(route, is_decoder=is_decoder, sinkhorn_iterations=0)
    model.config.return_dict = False
    model.config.use_cache = False
    traced = torch.jit.trace(model, (tokens(2, 45),), check_trace=False)
    torch.jit.save(traced, io.BytesIO())
    others = tokens(2, 45, seed=7)
    assert_close(traced(others)[0], model(others)[0], 1e-12)


# Cost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations, is_decoder", [(0, True), (2, False), (2, True)])
@pytest.mark.parametrize("sort_net", SCORERS)
def test_no_tensor_is_as_large_as_all_pairs_of_tokens(sort_net, iterations, is_decoder):
    """Nor as the pairs of tokens and of what they read."""
    length, heads, chosen = 2048, 4, 4
    fields = {"block_size": 16, "num_key_value_heads": 1, "sinkhorn_iterations": iterations, "key_piece_size": 16}
    fields["num_hidden_layers"] = 1
    model = make(f"token-{sort_net}", num_sorted_blocks=chosen, is_decoder=is_decoder, **fields).float().train()
    with NewTensors() as new:
        model(tokens(1, length)).last_hidden_state.sum().backward()
    # Scores are made of a few tokens at a time: as many as this, whatever the length.
    assert max(new.sizes) <= max(heads * length * chosen * 16 // 2, token_scores_sinkhorn.MAX_SCORES["cpu"])


# Configuration -------------------------------------------------------------------------------------------------------


def test_defaults():
    config = SinkhornConfig()
    assert (config.sort_granularity, config.num_sink_blocks, config.sort_net) == ("block", 0, "bilinear")
    assert (config.key_piece_size, config.index_head_dim, config.sort_capacity) == (16, 16, 2.0)
    assert config.num_index_heads is None and not config.merges_index_heads


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"sort_granularity": "token"}, ("`sort_granularity", "token", "`sort_assignment", "hard")),
        ({"sort_granularity": "token", "sort_assignment": "soft"}, ("`sort_granularity", "`sort_assignment", "hard")),
        ({**TOKEN, "sort_net": "linear"}, ("`sort_granularity", "`sort_net", "linear", "bilinear")),
        ({**TOKEN, "sort_net": "mlp"}, ("`sort_granularity", "`sort_net", "mlp", "bilinear")),
        (
            {**TOKEN, "layer_types": ["sinkhorn_attention"] * 11 + ["sortcut_attention"]},
            ("`sort_granularity", "sortcut_attention", "sinkhorn_attention"),
        ),
        ({"sort_net": "keys"}, ("`sort_net", "keys", "`sort_assignment", "hard")),
        ({"sort_net": "index"}, ("`sort_net", "index", "`sort_assignment", "hard")),
        (
            {"sort_net": "keys", "sort_assignment": "hard", "block_size": 24},
            ("`block_size", "24", "multiple", "`key_piece_size", "16"),
        ),
        ({**TOKEN, "sort_net": "keys", "block_size": 4, "key_piece_size": 8}, ("`block_size", "`key_piece_size", "8")),
        (
            {**BLOCK, "sort_net": "keys", "layer_types": ["sortcut_attention"] * 12},
            ("`sort_net", "keys", "sortcut_attention", "bilinear|sinkhorn_attention"),
        ),
        (
            {**BLOCK, "sort_net": "index", "layer_types": ["sortcut_attention"] * 12},
            ("`sort_net", "index", "sortcut_attention", "bilinear|sinkhorn_attention"),
        ),
        ({"sort_granularity": "word"}, ("`sort_granularity` must be one of", "block", "token")),
        ({"num_sink_blocks": -1}, ("`num_sink_blocks` must be", "0", "-1")),
        ({"key_piece_size": 0}, ("`key_piece_size` must be at least 1",)),
        ({"index_head_dim": 0}, ("`index_head_dim` must be at least 1",)),
        ({"num_index_heads": 0}, ("`num_index_heads` must be at least 1",)),
        (
            {"num_index_heads": 3, "num_key_value_heads": 4},
            ("`num_index_heads", "3", "`num_attention_heads", "12", "`num_key_value_heads", "4"),
        ),
        ({"sort_capacity": 0.0}, ("`sort_capacity` must be",)),
        ({"sort_capacity": float("nan")}, ("`sort_capacity` must be",)),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_words(fields, words):
    with pytest.raises(StrictDataclassError) as error:
        SinkhornConfig(**fields)
    for word in words:
        assert any(option in str(error.value) for option in word.split("|")), f"{word} is not in: {error.value}"


def test_what_the_scorer_does_not_read_may_be_anything():
    """A piece size that is no divisor of the block matters to "keys" alone."""
    SinkhornConfig(block_size=24, key_piece_size=16)
    SinkhornConfig(block_size=24, sort_net="index", sort_assignment="hard", sort_granularity="token")
    SinkhornConfig(num_sink_blocks=3, layer_types=["local_attention"] * 12)
