# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The model as its users meet it: padding, lengths, dtypes, attention maps, compile, export (invariants 4 to 11)."""

import pytest
import torch

import modeling_sinkhorn
from helpers import ALL_LAYERS, SORTING_LAYERS, assert_close, layer_cases, padding_masks, tiny_config
from modeling_sinkhorn import (
    SinkhornForMaskedLM,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
    pool_tokens,
)


def make(model_class=SinkhornModel, layer_type="sinkhorn_attention", implementation="sdpa", **overrides):
    torch.manual_seed(0)
    return model_class(tiny_config(layer_type, attn_implementation=implementation, **overrides)).eval()


def tokens(rows=2, length=13, seed=1):
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


# Padding and lengths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
def test_a_padded_row_equals_the_row_alone(layer_type, assignment, is_decoder):
    model = make(layer_type=layer_type, sort_assignment=assignment, is_decoder=is_decoder)
    ids, mask = tokens(5), padding_masks(13)
    together = model(ids, attention_mask=mask).last_hidden_state
    for row in range(5):
        real = mask[row].bool()
        alone = model(ids[row : row + 1, real]).last_hidden_state[0]
        assert_close(together[row, real], alone)
    disturbed = torch.where(mask.bool(), ids, tokens(5, seed=2))
    assert torch.equal(model(disturbed, attention_mask=mask).last_hidden_state[mask.bool()], together[mask.bool()])


@pytest.mark.parametrize("layer_type", ALL_LAYERS)
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_every_length_from_one_token_on(layer_type, assignment):
    model = make(layer_type=layer_type, sort_assignment=assignment)
    for length in (1, 2, 4, 5, 31, 64, 67):
        assert model(tokens(2, length)).last_hidden_state.shape == (2, length, 16)


def test_a_row_of_padding_alone_is_harmless():
    for layer_type, assignment, is_decoder in layer_cases():
        model = make(layer_type=layer_type, sort_assignment=assignment, is_decoder=is_decoder).train()
        mask = padding_masks(13)[:2].clone()
        mask[1] = 0
        embeds = model.embed_tokens(tokens()).detach().requires_grad_()
        outputs = []
        handle = model.layers[0].self_attn.register_forward_hook(lambda *args, seen=outputs: seen.append(args[2][0]))
        model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state.sum().backward()
        handle.remove()
        assert outputs[0][1].abs().sum() == 0
        assert embeds.grad.isfinite().all()


@torch.no_grad()
def test_frequencies_that_depend_on_the_length_are_one_for_all_of_a_pass():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    for is_decoder in (False, True):
        model = make(max_position_embeddings=16, head_dim=8, rope_parameters=rope, is_decoder=is_decoder)
        dense = make(
            layer_type="full_attention",
            max_position_embeddings=16,
            head_dim=8,
            rope_parameters=rope,
            is_decoder=is_decoder,
        )
        hard = make(
            max_position_embeddings=16,
            head_dim=8,
            rope_parameters=rope,
            is_decoder=is_decoder,
            sort_assignment="hard",
            num_sorted_blocks=8,
        )
        for length in (9, 17, 31, 9):
            ids = tokens(2, length)
            dense.load_state_dict(hard.state_dict(), strict=False)
            assert_close(hard(ids).last_hidden_state, dense(ids).last_hidden_state)
            if is_decoder:
                cached = model(ids, use_cache=True).last_hidden_state
                assert_close(cached, model(ids, use_cache=False).last_hidden_state)


def test_one_block_equals_dense_attention():
    ids = tokens(2, 7)
    for assignment in ("soft", "hard"):
        for layer_type in ("sinkhorn_attention", "sortcut_attention", "local_attention"):
            model = make(layer_type=layer_type, block_size=8, sort_assignment=assignment)
            dense = make(layer_type="full_attention", block_size=8)
            dense.load_state_dict(model.state_dict(), strict=False)
            assert_close(model(ids).last_hidden_state, dense(ids).last_hidden_state)


def test_hard_sorting_with_every_block_chosen_equals_dense_attention():
    ids, mask = tokens(5, 22), padding_masks(22)
    for is_decoder in (False, True):
        model = make(sort_assignment="hard", num_sorted_blocks=6, is_decoder=is_decoder)
        dense = make(layer_type="full_attention", is_decoder=is_decoder)
        dense.load_state_dict(model.state_dict(), strict=False)
        expected = dense(ids, attention_mask=mask).last_hidden_state[mask.bool()]
        assert_close(model(ids, attention_mask=mask).last_hidden_state[mask.bool()], expected)


# Gradients and noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
@pytest.mark.parametrize("sort_net", ["linear", "mlp", "bilinear"])
def test_every_parameter_gets_a_gradient(layer_type, assignment, is_decoder, sort_net):
    model = make(layer_type=layer_type, sort_assignment=assignment, is_decoder=is_decoder, sort_net=sort_net).train()
    for length in (3, 13):  # one block: a gradient of 0, but a gradient, as DDP needs it
        model.zero_grad()
        model(tokens(2, length)).last_hidden_state.pow(2).sum().backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not missing
    silent = [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() == 0]
    assert not silent


def test_evaluation_is_deterministic_and_follows_the_order_of_the_batch():
    model = make()
    ids = tokens(4)
    once, again = model(ids).last_hidden_state, model(ids).last_hidden_state
    assert torch.equal(once, again)
    assert_close(model(ids.flip(0)).last_hidden_state.flip(0), once, 1e-6)


def test_training_noise_comes_from_torchs_generator_alone():
    model = make().train()
    ids = tokens()
    torch.manual_seed(5)
    first = model(ids).last_hidden_state
    second = model(ids).last_hidden_state
    torch.manual_seed(5)
    assert torch.equal(model(ids).last_hidden_state, first)
    assert not torch.equal(first, second)
    quiet = make(gumbel_noise=False).train()
    assert torch.equal(quiet(ids).last_hidden_state, quiet(ids).last_hidden_state)


def test_activation_checkpointing_gives_the_same_gradients_noise_included():
    gradients = []
    for checkpointing in (False, True):
        model = make(hidden_dropout=0.1, attention_dropout=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(7)
        model(tokens()).last_hidden_state.pow(2).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        assert_close(checkpointed, plain, 1e-6)


# Implementations, maps and dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
def test_eager_equals_sdpa_and_maps_reproduce_the_output(layer_type, assignment, is_decoder, monkeypatch):
    settings = {"layer_type": layer_type, "sort_assignment": assignment, "is_decoder": is_decoder}
    ids, mask = tokens(5), padding_masks(13)
    eager, sdpa = make(implementation="eager", **settings), make(implementation="sdpa", **settings)
    outputs = eager(ids, attention_mask=mask, output_attentions=True, output_sort_matrices=True)
    assert_close(sdpa(ids, attention_mask=mask).last_hidden_state, outputs.last_hidden_state)

    assert len(outputs.attentions) == 2
    assert outputs.attentions[0].shape == (5, 4, 13, 13)
    for attention_map in outputs.attentions:
        assert_close(attention_map.sum(-1), mask[:, None].expand(-1, 4, -1).float())
        assert attention_map.masked_select(mask[:, None, None] == 0).abs().sum() == 0
    sorting = layer_type in SORTING_LAYERS
    assert len(outputs.sort_matrices) == (2 if sorting else 0)
    if sorting:
        assert outputs.sort_matrices[0].shape == (5, 2, 4, 4)

    attention = eager.layers[0].self_attn
    normed = eager.layers[0].input_layernorm(eager.embed_tokens(ids))
    values = attention.v_proj(normed).unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, dim=1)
    rebuilt = attention.o_proj((outputs.attentions[0] @ values).transpose(1, 2).flatten(2))
    rebuilt = rebuilt * (2 if layer_type == "mixture_attention" else 1)
    seen = []
    attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    eager(ids, attention_mask=mask)
    assert_close(seen[0], rebuilt)


@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
def test_maps_are_part_of_the_graph_and_change_no_gradient(layer_type, assignment, is_decoder):
    """Attribution by gradients of maps, padded and not; a decoder with the cache that it makes, and without."""
    settings = {"sort_assignment": assignment, "is_decoder": is_decoder, "attention_bias": True}
    settings["num_sorted_blocks"] = 2 if assignment == "hard" else 1
    model = make(layer_type=layer_type, implementation="eager", **settings)
    for mask, use_cache in ((None, False), (padding_masks(13), False), (padding_masks(13), is_decoder)):
        results = []
        for maps in (False, True):
            model.zero_grad()
            outputs = model(tokens(5), attention_mask=mask, output_attentions=maps, use_cache=use_cache)
            states = outputs.last_hidden_state if mask is None else outputs.last_hidden_state[mask.bool()]
            for attention_map in outputs.attentions or ():
                attention_map.retain_grad()
            states.pow(2).mean().backward()
            results.append((states, [parameter.grad for parameter in model.parameters()]))
        assert all(attention_map.grad.abs().max() > 0 for attention_map in outputs.attentions)
        (states, gradients), (of_maps, gradients_of_maps) = results
        assert_close(of_maps, states)
        for actual, expected in zip(gradients_of_maps, gradients):
            if expected is not None:
                assert_close(actual, expected, 1e-4)


def test_maps_need_the_eager_implementation_and_say_so(monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_sinkhorn.logger, "warning_once", warnings.append)
    outputs = make()(tokens(), output_attentions=True)
    assert outputs.attentions == ()
    assert 'set_attn_implementation("eager")' in warnings[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_half_precision_loses_at_most_twice_what_plain_attention_loses(dtype, assignment):
    ids, mask = tokens(5, 61), padding_masks(61)
    errors = {}
    for layer_type in ("full_attention", "sinkhorn_attention"):
        model = make(layer_type=layer_type, sort_assignment=assignment, block_size=8, initializer_range=0.1)
        exact = model(ids, attention_mask=mask).last_hidden_state
        rough = model.to(dtype)(ids, attention_mask=mask).last_hidden_state
        assert rough.dtype == dtype and rough.isfinite().all()
        errors[layer_type] = (rough.float() - exact)[mask.bool()].pow(2).mean().sqrt().item()
    assert errors["sinkhorn_attention"] <= 2 * errors["full_attention"]


@pytest.mark.parametrize("is_decoder", [False, True])
def test_balancing_stays_in_float32_under_autocast(is_decoder):
    model = make(is_decoder=is_decoder).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(tokens(), output_sort_matrices=True)
    assert all(matrix.dtype == torch.float32 for matrix in outputs.sort_matrices)
    outputs.last_hidden_state.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Compile and export --------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a minute of compilation
@pytest.mark.parametrize(
    "layer_type, assignment, is_decoder",
    [case for case in layer_cases() if case[0] in SORTING_LAYERS or case[1] == "soft"],  # others have no assignment
)
def test_compiles_whole_for_every_length(layer_type, assignment, is_decoder):
    torch.compiler.reset()
    settings = {
        "num_hidden_layers": 1,
        "sinkhorn_iterations": 2,
    }  # what a graph has twice, it has to be made twice for
    model = make(layer_type=layer_type, sort_assignment=assignment, is_decoder=is_decoder, **settings).double().train()
    model.config.gumbel_noise = False
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (13, 22, 40):
        ids = tokens(3, length)
        for mask in (None, padding_masks(length)[:3]):
            expected = model(ids, attention_mask=mask).last_hidden_state
            actual = compiled(ids, attention_mask=mask).last_hidden_state
            assert_close(actual, expected, 1e-9)
            model.zero_grad()
            expected.pow(2).sum().backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
            model.zero_grad()
            actual.pow(2).sum().backward()
            for parameter, gradient in zip(model.parameters(), gradients):
                assert_close(parameter.grad, gradient, 1e-7)


# Heads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_pooling_respects_the_mask(pooling):
    model = make(SinkhornForSequenceClassification, classifier_pooling=pooling)
    ids, mask = tokens(5), padding_masks(13)
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    logits = model(ids, attention_mask=mask).logits
    for row in range(5):
        real = hidden[row][mask[row].bool()]
        pooled = {"mean": real.mean(0), "last": real[-1], "cls": real[0]}[pooling]
        assert_close(logits[row], model.score(pooled))


@torch.no_grad()
def test_the_mean_of_many_tokens_fits_half_precision():
    hidden = torch.full((1, 9000, 2), 10.0, dtype=torch.float16)
    assert torch.equal(pool_tokens(hidden, torch.ones(1, 9000), "mean"), pool_tokens(hidden, None, "mean"))


@pytest.mark.parametrize(
    "problem_type, labels",
    [
        ("single_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 1, 0]])),
        ("regression", torch.tensor([[0.1, 2, -1], [0, 1, 3]])),
    ],
)
def test_sequence_classification_problems(problem_type, labels):
    model = make(SinkhornForSequenceClassification, problem_type=problem_type)
    outputs = model(tokens(), labels=labels)
    expected = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": torch.nn.functional.mse_loss,
    }[problem_type](outputs.logits, labels)
    assert_close(outputs.loss, expected)
    # Two batches of a row each, of a step of two rows, as the Trainer counts what is in them.
    both = [
        model(tokens()[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=torch.tensor(labels.numel()))
        for row in range(2)
    ]
    assert_close(sum(part.loss for part in both), expected)


def test_other_heads_have_their_shapes_and_losses():
    ids = tokens()
    masked = make(SinkhornForMaskedLM)
    outputs = masked(ids, labels=ids)
    assert outputs.logits.shape == (2, 13, 50) and outputs.loss > 0
    assert masked.lm_head.weight.data_ptr() == masked.model.embed_tokens.weight.data_ptr()
    outputs = make(SinkhornForTokenClassification)(ids, labels=ids % 3)
    assert outputs.logits.shape == (2, 13, 3) and outputs.loss > 0
    ends = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    outputs = make(SinkhornForQuestionAnswering)(ids, **ends, output_sort_matrices=True)
    assert outputs.start_logits.shape == (2, 13) and outputs.loss > 0
    assert outputs.sort_matrices[1].shape == (2, 2, 4, 4)


def test_repeated_blocks_do_not_depend_on_padding():
    """Blocks of the same text have equal weights, but for rounding, in the first layer: the first of them is taken."""
    ids = torch.randint(3, 50, (8, 28), generator=torch.Generator().manual_seed(0))
    ids[:, 12:16] = ids[:, 24:] = ids[:, 4:8]
    mask = torch.ones(8, 33, dtype=torch.long)
    mask[:, :5] = 0
    for sorted_blocks in (1, 2):
        model = make(SinkhornModel, sort_assignment="hard", num_sorted_blocks=sorted_blocks)
        alone = model(ids).last_hidden_state
        padded = model(torch.nn.functional.pad(ids, (5, 0)), attention_mask=mask).last_hidden_state[:, 5:]
        assert_close(padded, alone)


def test_frequencies_stay_precise_in_half_precision(tmp_path):
    """As by `from_pretrained(dtype=...)`."""
    model = make(SinkhornModel)
    model.save_pretrained(tmp_path)
    far = {"position_ids": torch.arange(30_000, 30_013)[None]}
    loaded = SinkhornModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_close(
        model.to(torch.bfloat16)(tokens(), **far).last_hidden_state, loaded(tokens(), **far).last_hidden_state, 0
    )
    assert model.rotary_emb.inv_freq.dtype == torch.float32


def test_is_causal_is_the_configurations():
    for is_decoder in (False, True):
        for implementation in ("eager", "sdpa"):
            model = make(SinkhornModel, is_decoder=is_decoder)
            model.set_attn_implementation(implementation)
            same = model(tokens(), is_causal=is_decoder).last_hidden_state
            assert_close(same, model(tokens()).last_hidden_state, 0)
            with pytest.raises(ValueError, match="`is_causal` differs from `config.is_decoder"):
                model(tokens(), is_causal=not is_decoder)


def test_a_decoder_made_an_encoder_is_one():
    decoder = make(SinkhornModel, is_decoder=True)
    encoder = make(SinkhornModel)
    encoder.load_state_dict(decoder.state_dict())
    decoder.config.is_decoder = False
    assert_close(decoder(tokens()).last_hidden_state, encoder(tokens()).last_hidden_state)


# Errors --------------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_words():
    model = make()
    with pytest.raises(ValueError, match=r"`attention_mask` has shape \(2, 12\).*\(2, 13\)"):
        model(tokens(), attention_mask=torch.ones(2, 12))
    with pytest.raises(ValueError, match="`attention_mask` holds numbers other than 0"):
        model(tokens(), attention_mask=torch.zeros(2, 13).masked_fill(torch.arange(13) > 9, -1e9))
    with pytest.raises(ValueError, match=r"`input_ids` has shape \(13,\)"):
        model(tokens()[0])
    with pytest.raises(ValueError, match="`attention_mask` has shape"):
        model(tokens(), attention_mask=torch.ones(2, 1, 13, 13))
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model()
    for shape in ((0, 5), (2, 0)):
        with pytest.raises(ValueError, match="at least one row and token"):
            model(torch.zeros(shape, dtype=torch.long))
    for sort_net in ("linear", "mlp"):
        limited = make(sort_net=sort_net)
        limited(tokens(1, 64))
        with pytest.raises(ValueError, match="17 blocks of 4 tokens.*outputs for 16.*bilinear"):
            limited(tokens(1, 65))
    with pytest.raises(ValueError, match="is_decoder=False"):
        make(SinkhornForMaskedLM, is_decoder=True)
