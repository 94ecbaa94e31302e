# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`SinkhornForCausalLM`: its loss and logits, and everything that `generate()` offers."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

import sort_net_sinkhorn
from balancing_sinkhorn import sinkhorn_balance
from compatibility_sinkhorn import CACHE_NAME, cache_of
from helpers import assert_close, padding_masks, tiny_config
from modeling_sinkhorn import SinkhornForCausalLM, SinkhornForSequenceClassification, SinkhornModel


CAUSAL_LAYERS = ("sinkhorn_attention", "mixture_attention", "local_attention", "full_attention")
MODELS = [
    {},
    {"sort_assignment": "hard", "num_sorted_blocks": 2},
    {"layer_type": "mixture_attention"},
    {"layer_type": "local_attention"},
    {"layer_type": "full_attention"},
    {"block_size": 1, "sort_assignment": "hard"},
]


def make(layer_type="sinkhorn_attention", **overrides) -> SinkhornForCausalLM:
    torch.manual_seed(0)
    settings = {"eos_token_id": None, "bos_token_id": None} | overrides
    return SinkhornForCausalLM(tiny_config(layer_type, is_decoder=True, **settings)).eval()


def prompt(rows=1, length=11, seed=1):
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def without_cache(model, ids, new_tokens):
    """Greedy decoding by the full forward of every prefix."""
    for _ in range(new_tokens):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    return ids


# Head ----------------------------------------------------------------------------------------------------------------


def test_the_loss_is_of_the_next_token():
    model, ids = make(), prompt(2)
    labels = ids.clone()
    labels[0, :3] = -100
    outputs = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close(outputs.loss, expected)
    shifted = torch.cat((labels[:, 1:], torch.full((2, 1), -100)), dim=1)
    assert_close(model(ids, labels=ids, shift_labels=shifted).loss, expected)
    count = (shifted != -100).sum()
    assert_close(model(ids, labels=labels, num_items_in_batch=2 * count).loss, expected / 2)


def test_logits_to_keep():
    model, ids = make(), prompt(2)
    everything = model(ids).logits
    assert_close(model(ids, logits_to_keep=3).logits, everything[:, -3:])
    assert_close(model(ids, logits_to_keep=torch.tensor([0, 7])).logits, everything[:, [0, 7]])


def test_it_is_a_decoder_whatever_the_config_says():
    config = tiny_config()
    model = SinkhornForCausalLM(config)
    assert model.config.is_decoder and not config.is_decoder, "the caller's config is left alone"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(StrictDataclassError, match="'sortcut_attention' in a decoder"):
        SinkhornForCausalLM(tiny_config("sortcut_attention"))


def test_a_decoder_classifies_by_its_last_real_token():
    torch.manual_seed(0)
    model = SinkhornForSequenceClassification(tiny_config(is_decoder=True)).eval()
    ids, mask = prompt(5, 13), padding_masks(13)
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    logits = model(ids, attention_mask=mask).logits
    for row in range(5):
        assert_close(logits[row], model.score(hidden[row][mask[row].bool()][-1]))


# Causality -----------------------------------------------------------------------------------------------------------


def pairs_with_a_gradient(model, num_tokens=19):
    """`(L, L)` bool: whether output t has any gradient from input s."""
    embeds = torch.randn(1, num_tokens, 16, requires_grad=True)
    torch.manual_seed(0)  # of the noise
    output = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    direction = torch.randn(16)
    rows = [torch.autograd.grad(output[0, t] @ direction, embeds, retain_graph=True)[0][0] for t in range(num_tokens)]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("layer_type", CAUSAL_LAYERS)
def test_no_pair_of_positions_leaks(layer_type, assignment, training):
    for overrides in (
        {},
        {"num_local_blocks": 2},
        {"sort_net": "linear", "sort_pooling": "sum"},
        {"block_size": 1},
        {"causal_balancing": "capacity", "sort_pooling": "first"},
    ):
        torch.manual_seed(1)
        config = tiny_config(layer_type, is_decoder=True, sort_assignment=assignment, **overrides)
        seen = pairs_with_a_gradient(SinkhornModel(config).train(training))
        assert not seen.triu(1).any(), "an output depends on a later token"
        assert seen.diagonal().all()


@pytest.mark.parametrize("assignment", ["soft", "hard"])
@torch.no_grad()
def test_later_tokens_leave_no_trace_in_the_numbers(assignment):
    """Not even in their rounding, where two large numbers were added and taken away again."""
    for pooling, balancing in (("mean", "equality"), ("sum", "equality"), ("first", "capacity")):
        settings = {"sort_pooling": pooling, "causal_balancing": balancing}
        model = make(sort_assignment=assignment, **settings, block_size=16, max_position_embeddings=256)
        ids, other = prompt(2, 190), prompt(2, 190, seed=2)
        for position in (1, 20, 64, 150):
            changed = torch.cat((ids[:, :position], other[:, position:]), dim=1)
            logits = [model(x, use_cache=False).logits[:, :position] for x in (ids, changed)]
            assert torch.equal(*logits)


def test_a_planted_leak_is_found(monkeypatch):
    """Negative control: column sums over all rows of the matrix, as public code has them."""

    def leaky(logits, allowed, iterations, *rest):
        return sinkhorn_balance(logits, allowed, iterations), None

    monkeypatch.setattr(sort_net_sinkhorn, "causal_sinkhorn_balance", leaky)
    for assignment in ("soft", "hard"):
        torch.manual_seed(1)
        model = SinkhornModel(tiny_config(is_decoder=True, sort_assignment=assignment))
        seen = pairs_with_a_gradient(model.train())
        # A hard choice carries the leak by the gradient of its straight-through weights.
        assert seen.triu(1).any()


# generate() ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", MODELS, ids=str)
def test_greedy_equals_the_full_forward_step_by_step(overrides):
    model = make(**overrides)
    for length in (1, 4, 11):
        ids = prompt(3, length)
        generated = model.generate(ids, max_new_tokens=14, do_sample=False)
        assert torch.equal(generated, without_cache(model, ids, 14))
        assert torch.equal(model.generate(ids, max_new_tokens=14, do_sample=False, use_cache=False), generated)


@pytest.mark.parametrize("overrides", MODELS, ids=str)
def test_rows_of_a_left_padded_batch_generate_what_they_do_alone(overrides):
    model = make(**overrides)
    lengths = (13, 5, 8, 1)
    prompts = [prompt(1, length, seed=length) for length in lengths]
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        ids[row, -tokens.shape[1] :], mask[row, -tokens.shape[1] :] = tokens[0], 1
    together = model.generate(ids, attention_mask=mask, max_new_tokens=15, do_sample=False)
    for row, tokens in enumerate(prompts):
        alone = model.generate(tokens, max_new_tokens=15, do_sample=False)
        assert torch.equal(together[row, -15:], alone[0, -15:])


@pytest.mark.parametrize("overrides", MODELS[:3], ids=str)
def test_beams_follow_their_parents(overrides):
    model, ids = make(**overrides), prompt(2)
    for options in ({"num_return_sequences": 2}, {"length_penalty": 0.5, "early_stopping": True}):
        options |= {"num_beams": 3, "max_new_tokens": 12, "do_sample": False}
        assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_sampling_draws_the_same_with_and_without_a_cache():
    model, ids = make(), prompt(2)
    options = {"do_sample": True, "top_k": 10, "top_p": 0.9, "temperature": 1.3, "max_new_tokens": 12}
    options |= {"num_return_sequences": 3}
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(4)
        drawn.append(model.generate(ids, use_cache=use_cache, **options))
    assert torch.equal(*drawn)
    assert len(torch.unique(drawn[0], dim=0)) > 2


@pytest.mark.parametrize("overrides", MODELS[:3], ids=str)
def test_assisted_and_prompt_lookup_decoding_equal_greedy(overrides):
    model, ids = make(**overrides), prompt(1, 17)
    expected = model.generate(ids, max_new_tokens=24, do_sample=False)
    # The same model is always right; another one is mostly wrong, so that the cache is cropped in every round.
    torch.manual_seed(9)
    other = SinkhornForCausalLM(model.config).eval()
    for assistant in (model, other):
        assisted = model.generate(ids, max_new_tokens=24, do_sample=False, assistant_model=assistant)
        assert torch.equal(assisted, expected)
    repeating = torch.cat((ids, ids[:, :9]), dim=1)
    expected = model.generate(repeating, max_new_tokens=24, do_sample=False)
    looked_up = model.generate(repeating, max_new_tokens=24, do_sample=False, prompt_lookup_num_tokens=6)
    assert torch.equal(looked_up, expected)


def test_a_prompt_in_chunks():
    model, ids = make(), prompt(2, 23)
    expected = model.generate(ids, max_new_tokens=9, do_sample=False)
    for size in (1, 5, 8, 23):
        actual = model.generate(ids, max_new_tokens=9, do_sample=False, prefill_chunk_size=size)
        assert torch.equal(actual, expected)


def test_going_on_from_a_cache():
    model, ids = make(), prompt(2, 9)
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)
    first = model.generate(ids, max_new_tokens=7, do_sample=False, return_dict_in_generate=True)
    settings = {CACHE_NAME: cache_of(first), "max_new_tokens": 13, "do_sample": False}
    second = model.generate(first.sequences, **settings)
    assert torch.equal(second, expected)


def test_going_on_from_embeddings():
    model, ids = make(), prompt(2, 9)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[:, 9:]
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=12, do_sample=False), expected)
    first = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat((embeds, model.get_input_embeddings()(first.sequences)), dim=1)
    options = {CACHE_NAME: cache_of(first), "max_new_tokens": 7, "do_sample": False}
    assert torch.equal(model.generate(inputs_embeds=longer, **options), expected[:, 5:])


@pytest.mark.parametrize("overrides", MODELS, ids=str)
def test_static_cache(overrides):
    model = make(**overrides)
    ids, mask = prompt(2), torch.ones(2, 11, dtype=torch.long)
    mask[1, :6] = 0
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False)
    options = {"attention_mask": mask, "max_new_tokens": 14, "do_sample": False}
    outputs = model.generate(ids, cache_implementation="static", return_dict_in_generate=True, **options)
    assert isinstance(cache_of(outputs), StaticCache)
    assert torch.equal(outputs.sequences, expected)
    for layer in cache_of(outputs).layers:
        assert getattr(layer, "stored_keys", layer.keys).shape[2] <= 11 + 14 + 2 * model.config.block_size


def test_the_cache_is_ours_and_made_by_the_library():
    config = tiny_config(is_decoder=True, num_hidden_layers=4)
    config.layer_types = list(CAUSAL_LAYERS)
    names = [type(layer).__name__ for layer in DynamicCache(config=config).layers]
    assert names == ["SinkhornDynamicLayer", "MixtureDynamicLayer", "LocalDynamicLayer", "DynamicLayer"]
    names = [type(layer).__name__ for layer in StaticCache(config=config, max_cache_len=8).layers]
    assert names == ["SinkhornStaticLayer", "MixtureStaticLayer", "LocalStaticLayer", "StaticLayer"]


@pytest.mark.parametrize("overrides", MODELS[:4], ids=str)
def test_maps_and_matrices_while_generating(overrides):
    model = make(attn_implementation="eager", **overrides)
    ids, mask = prompt(2), torch.ones(2, 11, dtype=torch.long)
    mask[1, :6] = 0
    outputs = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=9,
        do_sample=False,
        output_attentions=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    whole_mask = torch.cat((mask, torch.ones(2, 9, dtype=torch.long)), dim=1)
    whole = model(
        outputs.sequences[:, :-1], attention_mask=whole_mask[:, :-1], output_attentions=True, use_cache=False
    )
    for step, maps in enumerate(outputs.attentions):
        start, end = (0, 11) if step == 0 else (10 + step, 11 + step)
        for actual, expected in zip(maps, whole.attentions):
            assert actual.shape == (2, 4, end - start, end)
            assert_close(actual, expected[:, :, start:end, :end])


@torch.no_grad()
def test_rows_of_the_sort_matrix_while_decoding():
    model, ids = make(), prompt(2, 19)
    whole = model(ids, output_sort_matrices=True, use_cache=False).sort_matrices
    cache = DynamicCache(config=model.config)
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9), (9, 19)):
        rows = model(ids[:, start:end], cache=cache, output_sort_matrices=True).sort_matrices
        first, last = start // 4, (end - 1) // 4
        for actual, expected in zip(rows, whole):
            assert_close(actual[:, :, : last - first + 1], expected[:, :, first : last + 1, : last + 1])


# Text ----------------------------------------------------------------------------------------------------------------


def text_model(tokenizer) -> SinkhornForCausalLM:
    return make(vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=512)


def test_streamers_get_every_token(tiny_tokenizer, capsys):
    model = text_model(tiny_tokenizer)
    batch = tiny_tokenizer("the state of the union", return_tensors="pt", return_token_type_ids=False)
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = tiny_tokenizer.decode(model.generate(**batch, **options)[0, batch["input_ids"].shape[1] :])
    streamer = TextIteratorStreamer(tiny_tokenizer, skip_prompt=True)
    model.generate(**batch, streamer=streamer, **options)
    assert "".join(streamer) == expected
    capsys.readouterr()
    model.generate(**batch, streamer=TextStreamer(tiny_tokenizer, skip_prompt=True), **options)
    assert capsys.readouterr().out.strip() == expected.strip()


def test_pipeline_text_generation(tiny_tokenizer, tmp_path):
    text_model(tiny_tokenizer).save_pretrained(tmp_path)
    tiny_tokenizer = copy.deepcopy(tiny_tokenizer)  # other tests use it too
    tiny_tokenizer.padding_side = "left"
    tiny_tokenizer.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is SinkhornForCausalLM
    pipe = pipeline("text-generation", model=str(tmp_path))
    prompts = ["the state of the union is strong", "peace"]
    options = {"max_new_tokens": 10, "do_sample": False, "return_full_text": False}
    alone = [pipe(text, **options)[0]["generated_text"] for text in prompts]
    together = [answer[0]["generated_text"] for answer in pipe(prompts, batch_size=2, **options)]
    assert alone == together and all(alone)


def test_the_generation_config_is_saved(tmp_path):
    model = make()
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generate(prompt()).shape == (1, 18)
