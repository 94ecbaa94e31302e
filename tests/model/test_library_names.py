# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What the library and its users pass by name: a cache by the names of both versions, arguments that no one knows, and
classes whose names the library cannot read.
"""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from compatibility_sinkhorn import CACHE_NAME, cache_of
from helpers import assert_close, tiny_config
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
)


CLASSES = [
    SinkhornModel,
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
]
IDS = torch.randint(3, 50, (2, 13), generator=torch.Generator().manual_seed(0))


def make(model_class=SinkhornForCausalLM, **overrides):
    torch.manual_seed(0)
    return model_class(tiny_config(**overrides)).eval()


# Names of the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [SinkhornModel, SinkhornForCausalLM, SinkhornForSequenceClassification])
@torch.no_grad()
def test_a_cache_has_the_name_of_the_library_and_is_taken_by_both(model_class):
    model = make(model_class, is_decoder=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started = model(IDS[:, :7], use_cache=True)
        assert CACHE_NAME in started and started[CACHE_NAME].get_seq_length() == 7
        expected = model(IDS, use_cache=False)[0][:, -1]
        assert_close(model(IDS[:, 7:], cache=cache_of(started))[0][:, -1], expected)
    again = DynamicCache(config=model.config)
    model(IDS[:, :7], cache=again)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_close(model(IDS[:, 7:], past_key_values=again)[0][:, -1], expected)
    # As the library: the old name is on its way out from 5.24 on, and the only one before.
    told = [warning for warning in told if issubclass(warning.category, FutureWarning)]
    assert [warning.filename for warning in told] == ([__file__] if CACHE_NAME == "cache" else [])
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are two names of one argument"):
        model(IDS, cache=again, past_key_values=again)


@torch.no_grad()
def test_generating_says_nothing_of_names(caplog):
    model = make()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        first = model.generate(IDS, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        options = {CACHE_NAME: cache_of(first), "max_new_tokens": 3, "do_sample": False}
        second = model.generate(first.sequences, **options)
    assert torch.equal(second, model.generate(IDS, max_new_tokens=6, do_sample=False))
    assert not [record for record in caplog.records if "deprecated" in record.getMessage()]


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda model_class: model_class.__name__)
def test_an_unknown_argument_is_an_error(model_class):
    model = make(model_class)
    with pytest.raises(TypeError, match="unexpected keyword argument 'atention_mask'.*`attention_mask`"):
        model(IDS, atention_mask=torch.ones_like(IDS))
    with pytest.raises(TypeError, match=f"{model_class.__name__}.*'head_mask'"):
        model(IDS, head_mask=None)
    with pytest.raises(TypeError, match="'past_key_value'.*`past_key_values`"):
        model(IDS, past_key_value=None)
    model(
        IDS,
        attention_mask=torch.ones_like(IDS),
        token_type_ids=torch.zeros_like(IDS),
        output_hidden_states=True,
        output_attentions=False,
        output_sort_matrices=True,
        return_dict=False,
        use_cache=False,
        num_items_in_batch=torch.tensor(2),
        cu_seq_lens_q=None,
        max_length_k=None,
        is_causal=None,
    )


def test_labels_are_for_heads():
    with pytest.raises(TypeError, match="SinkhornModel.*'labels'"):
        make(SinkhornModel)(IDS, labels=IDS)


def test_shifted_labels_reach_the_loss():
    model = make()
    shifted = torch.nn.functional.pad(IDS[:, 1:], (0, 1), value=-100)
    assert_close(model(IDS, labels=IDS, shift_labels=shifted).loss, model(IDS, labels=IDS).loss)


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda model_class: model_class.__name__)
def test_token_types_other_than_0_are_refused(model_class):
    model = make(model_class)
    expected = model(IDS)[0]
    assert torch.equal(model(IDS, token_type_ids=torch.zeros_like(IDS))[0], expected)
    assert torch.equal(model(IDS, token_type_ids=None)[0], expected)
    with pytest.raises(ValueError, match="this model has no token types: leave it out"):
        model(IDS, token_type_ids=torch.ones_like(IDS))


# Names of classes ----------------------------------------------------------------------------------------------------


class LegalDocs(SinkhornForMaskedLM):
    pass


class Ledger(SinkhornForCausalLM):
    pass


class ForQuestionAnsweringInReverse(SinkhornForSequenceClassification):
    pass


class Tagger(SinkhornForTokenClassification):
    pass


class MaskedLMReader(SinkhornForQuestionAnswering):
    pass


SPANS = {"start_positions": torch.tensor([1, 4]), "end_positions": torch.tensor([3, 5])}


@pytest.mark.parametrize(
    "model_class, labels",
    [
        (LegalDocs, {"labels": IDS}),
        (Ledger, {"labels": IDS}),
        (ForQuestionAnsweringInReverse, {"labels": torch.tensor([0, 2])}),
        (Tagger, {"labels": IDS % 3}),
        (MaskedLMReader, SPANS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_subclass_has_the_loss_of_its_head(model_class, labels):
    model = make(model_class)
    outputs, parent = model(IDS, **labels), make(model_class.__bases__[0])
    assert torch.equal(outputs.loss, parent(IDS, **labels).loss)
    if model_class is LegalDocs:
        assert_close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), IDS.flatten()))
    if model_class is Ledger:
        assert_close(outputs.loss, cross_entropy(outputs.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))
    if model_class is ForQuestionAnsweringInReverse:
        assert_close(outputs.loss, cross_entropy(outputs.logits, labels["labels"]))


@pytest.mark.parametrize("model_class", [SinkhornForCausalLM, Ledger], ids=lambda model_class: model_class.__name__)
def test_label_smoothing_of_a_plain_trainer_is_shifted(model_class, tmp_path: Path):
    assert model_class.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    model, smoothing = make(model_class), 0.1
    arguments = TrainingArguments(tmp_path, label_smoothing_factor=smoothing, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments)
    labels = IDS.clone()
    labels[1, 9:] = -100
    loss = trainer.compute_loss(model, {"input_ids": IDS, "labels": labels})
    logits = model(IDS).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=smoothing)
    assert_close(loss, expected)


# What is not supported -----------------------------------------------------------------------------------------------


def test_prefix_tuning_is_refused():
    peft = pytest.importorskip("peft")
    sizes = {"num_virtual_tokens": 4, "token_dim": 16, "num_layers": 2, "num_attention_heads": 4}
    model = peft.get_peft_model(make(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", **sizes))
    with pytest.raises((ValueError, TypeError), match="[Pp]refix tuning"):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    model = make(SinkhornForSequenceClassification)
    model = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="SEQ_CLS", **sizes))
    with pytest.raises(ValueError, match="prefix tuning"):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS))


def test_continuous_batching_is_refused():
    with pytest.raises(NotImplementedError, match="Continuous batching .* is not supported"):
        make().generate_batch(inputs=[[5, 6, 7], [8, 9]], progress_bar=False)


def test_the_list_of_layer_types_of_the_library_is_its_own():
    from transformers import configuration_utils

    assert "sinkhorn_attention" not in configuration_utils.ALLOWED_ATTN_LAYER_TYPES
