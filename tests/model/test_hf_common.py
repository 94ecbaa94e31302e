# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Hugging Face's own common tests on every class: configuration, saving, loading, initialisation, embeddings, outputs,
training, attention backends, RoPE scaling, parallel plans and pipelines. `hf_common.py` says where they come from.

Each skip and each override below has its reason beside it. A skip that the tests decide on by themselves (a GPU, a
library that is not installed, another kind of model) is shown by `pytest -rs`.
"""

import contextlib
import functools
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

import hf_common
from configuration_sinkhorn import SinkhornConfig
from hf_common import PipelineTask
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
)


try:
    hf = hf_common.load()
except unittest.SkipTest as reason:
    # Only where the user asked for it, by a variable, on a machine that cannot fetch the tests; CI never sets it.
    pytest.skip(str(reason), allow_module_level=True)

# Their tests choose labels, and know a base model, by class name in the library's tables.
TABLES = {
    "MODEL_MAPPING_NAMES": SinkhornModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": SinkhornForCausalLM,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": SinkhornForMaskedLM,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": SinkhornForQuestionAnswering,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": SinkhornForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": SinkhornForTokenClassification,
}
for _table, _model_class in TABLES.items():
    getattr(modeling_auto, _table)[SinkhornConfig.model_type] = _model_class.__name__


class SinkhornModelTester:
    """A small model of `overrides`, and inputs of an odd length: three full blocks and one token of a fourth."""

    base_model_class = SinkhornModel

    def __init__(self, parent: unittest.TestCase, **overrides: Any):
        self.parent = parent
        self.is_training = True
        self.batch_size = 3
        self.seq_length = 13
        self.vocab_size = 99
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.overrides = overrides

    def get_config(self) -> SinkhornConfig:
        settings = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "num_labels": 3,
            "block_size": 4,
        }
        return SinkhornConfig(**settings | self.overrides)

    def prepare_config_and_inputs_for_common(self) -> tuple[SinkhornConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)
        inputs = {
            "input_ids": hf.ids_tensor(shape, self.vocab_size),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=torch_device),
        }
        return self.get_config(), inputs


# --------------------------------------------------------------------------------------------------------------------
# Pipelines: what comes out of each, for one example
# --------------------------------------------------------------------------------------------------------------------

TEXTS = ["The state of the Union is strong.", "Peace, and friendship with all mankind, is our wisest policy."]
LABELS = ["peace", "trade"]


def check_features(output: list, text: str) -> None:
    assert len(output) == 1 and len(output[0]) > 1
    assert torch.tensor(output).isfinite().all()


def check_classes(output: list, text: str) -> None:
    assert [set(prediction) for prediction in output] == [{"label", "score"}]
    assert 0 < output[0]["score"] <= 1


def check_fillings(output: list, text: str) -> None:
    assert [set(filling) for filling in output] == [{"sequence", "score", "token", "token_str"}] * 5
    assert all(0 < filling["score"] < 1 for filling in output)


def check_tokens(output: list, text: str) -> None:
    assert len(output) > 1
    assert [entity["index"] for entity in output] == sorted(entity["index"] for entity in output)
    for entity in output:
        assert 0 <= entity["start"] < entity["end"] <= len(text)


def check_generated(output: list, text: str) -> None:
    assert [set(answer) for answer in output] == [{"generated_text"}]
    assert output[0]["generated_text"].startswith(text) and len(output[0]["generated_text"]) > len(text)


def check_zero_shot(output: dict, text: str) -> None:
    assert output["sequence"] == text and sorted(output["labels"]) == LABELS
    assert abs(sum(output["scores"]) - 1) < 1e-2  # half precision too


PIPELINE_TASKS = {
    "feature-extraction": PipelineTask("feature-extraction", TEXTS, check_features),
    "fill-mask": PipelineTask("fill-mask", [f"{text} <mask>" for text in TEXTS], check_fillings),
    "text-classification": PipelineTask("text-classification", TEXTS, check_classes),
    "text-generation": PipelineTask("text-generation", TEXTS, check_generated, max_new_tokens=9),
    "token-classification": PipelineTask("token-classification", TEXTS, check_tokens, ignore_labels=[]),
    "zero-shot": PipelineTask("zero-shot-classification", TEXTS, check_zero_shot, candidate_labels=LABELS),
}
hf_common.use_pipeline_tasks(hf, PIPELINE_TASKS)


# --------------------------------------------------------------------------------------------------------------------
# The tests
# --------------------------------------------------------------------------------------------------------------------


# What the other kinds of sorting do on their own in these tests: they are saved and loaded, give maps and states, train
# under checkpointing, and read from another implementation. The rest asks about the classes, which are the same.
OF_EVERY_KIND = (
    "test_attention_outputs",
    "test_batching_equivalence",
    "test_can_init_all_missing_weights",
    "test_config",
    "test_eager_matches_sdpa_inference_00_fp16_pad_left_sdpa_kernels",
    "test_eager_matches_sdpa_inference_09_fp32_pad_left",
    "test_eager_matches_sdpa_inference_15_fp32_pad_right_no_attn_mask",
    "test_eager_matches_sdpa_inference_21_bf16_pad_right",
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions",
    "test_feed_forward_chunking",
    "test_hidden_states_output",
    "test_load_save_without_tied_weights",
    "test_model_outputs_equivalence",
    "test_model_weights_reload_no_missing_tied_weights",
    "test_resize_tokens_embeddings",
    "test_save_load",
    "test_torch_save_load",
    "test_tp_plan_matches_params",
    "test_training_gradient_checkpointing_use_reentrant_false",
)


def slow_where(condition: Callable[[str], bool]):
    """Marks the tests of a class as slow whose names meet a condition: another class runs them every time."""

    def mark(test_class: type) -> type:
        for name in (name for name in dir(test_class) if name.startswith("test_") and condition(name)):
            function = getattr(test_class, name)
            if not callable(function):  # a setting of theirs
                continue

            # Of its own, as the classes share theirs.
            @functools.wraps(function)
            def own(self, *args, function=function, **kwargs):
                return function(self, *args, **kwargs)

            setattr(test_class, name, pytest.mark.slow(own))
        return test_class

    return mark


class CommonTests(hf.ModelTesterMixin, hf.TensorParallelTesterMixin):
    """What the test classes below share. A decoder's class adds `hf.GenerationTesterMixin` and its own attributes."""

    all_model_classes = tuple(model_class for model_class in TABLES.values() if model_class is not SinkhornForCausalLM)
    config_overrides: dict[str, Any] = {}

    def setUp(self) -> None:
        self.model_tester = SinkhornModelTester(self, **self.config_overrides)
        # What is saved is compared name by name, and there layer types have a name of their own.
        fields = {"attention_types" if name == "layer_types" else name: v for name, v in self.config_overrides.items()}
        self.config_tester = hf.ConfigTester(self, SinkhornConfig, num_hidden_layers=2, **fields)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_bc_torch_dtype(self) -> None:
        # Theirs, which ends at the first difference. A sub-test of each parameter and type, and a message with all its
        # numbers, took most of the time.
        with (
            mock.patch.object(self, "subTest", lambda *_, **__: contextlib.nullcontext()),
            mock.patch.object(torch.Tensor, "__format__", lambda *_: "a tensor"),
        ):
            super().test_bc_torch_dtype()

    def test_fsdp_plan_declared(self) -> None:
        # Theirs, in a mixin whose other tests need several processes, asks AutoModelForCausalLM alone for a model.
        for model_class in self.all_model_classes:
            with torch.device("meta"):
                model = model_class(self.model_tester.get_config())
            prefix = "" if model_class is SinkhornModel else "model."
            self.assertIn(f"{prefix}layers.*", model._fsdp_plan)

    def test_retain_grad_hidden_states_attentions(self) -> None:
        # Hidden states only. Theirs wants a gradient at the returned attention map, as if the output were computed
        # from it; here the map over source tokens is worked out from the block attention, beside the output.
        self.has_attentions = False
        super().test_retain_grad_hidden_states_attentions()

    def test_model_weights_reload_no_missing_tied_weights(self) -> None:
        # Theirs takes all weights out of a file, and has it loaded as random numbers. Here that is refused, naming each
        # once: no tied weight, and no buffer that is not saved.
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), tempfile.TemporaryDirectory() as folder:
                model = model_class(self.model_tester.get_config())
                model.save_pretrained(folder)
                expected = sorted({*model.state_dict()} - {*model.all_tied_weights_keys})
                safetensors.torch.save_file({"tensor": torch.tensor([1, 2])}, f"{folder}/model.safetensors")
                with self.assertRaises(ValueError) as caught:
                    model_class.from_pretrained(folder)
                self.assertIn(f"lacks {', '.join(expected[:3])} and {len(expected) - 3} more", str(caught.exception))


# The `sdpa_kernels` are those of a GPU: here the two of a pair compute the same.
@slow_where(lambda name: name.endswith("sdpa_kernels") and name not in OF_EVERY_KIND)
class SinkhornModelTest(CommonTests, hf.TrainingTesterMixin, hf.PipelineTesterMixin, unittest.TestCase):
    """Every head on the default sorting, soft and bilinear."""

    pipeline_model_mapping = {
        "feature-extraction": SinkhornModel,
        "fill-mask": SinkhornForMaskedLM,
        "text-classification": SinkhornForSequenceClassification,
        "token-classification": SinkhornForTokenClassification,
        "zero-shot": SinkhornForSequenceClassification,
    }

    training_overfit_steps = 60  # theirs takes 300 steps of 1e-3
    training_overfit_learning_rate = 1e-2

    def _get_trainable_model_class(self) -> type:
        return SinkhornForMaskedLM  # theirs prefers a decoder, and gives one label per token

    @pytest.fixture(autouse=True)
    def _tiny_models(
        self, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a pipeline test looks for a model on the Hub, it finds one made here."""
        task = self._testMethodName.removeprefix("test_pipeline_").removesuffix("_fp16").replace("_", "-")
        if task not in self.pipeline_model_mapping:
            return
        model_class = self.pipeline_model_mapping[task]
        name = model_class.__name__
        folder = tmp_path / SinkhornConfig.model_type / name
        tester = SinkhornModelTester(self, vocab_size=len(tiny_tokenizer), **self.config_overrides)
        model_class(tester.get_config()).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        summary = {name: {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}}
        monkeypatch.setattr(hf.pipelines, "TRANSFORMERS_TINY_MODEL_PATH", str(tmp_path))
        monkeypatch.setattr(hf.pipelines, "tiny_model_summary", summary)


@slow_where(lambda name: name not in OF_EVERY_KIND)
class SinkhornHardModelTest(CommonTests, unittest.TestCase):
    """Hard sorting of several blocks, beside several local ones, and SortCut."""

    config_overrides = {
        "layer_types": ["sinkhorn_attention", "sortcut_attention"],
        "sort_assignment": "hard",
        "num_sorted_blocks": 2,
        "num_local_blocks": 2,
    }


@slow_where(lambda name: name not in OF_EVERY_KIND)
class SinkhornMixtureModelTest(CommonTests, unittest.TestCase):
    """The Mixture with the paper's summed descriptors, and local attention."""

    # Not with the SortNets of fixed size: the RoPE tests feed more than `max_position_embeddings` tokens.
    config_overrides = {"layer_types": ["mixture_attention", "local_attention"], "sort_pooling": "sum"}


class CausalTests(CommonTests, hf.GenerationTesterMixin):
    """The decoder's classes."""

    all_model_classes = (SinkhornModel, SinkhornForCausalLM, SinkhornForSequenceClassification)


@slow_where(lambda name: name.startswith("test_eager_matches") and name not in OF_EVERY_KIND)
class SinkhornCausalModelTest(CausalTests, hf.TrainingTesterMixin, hf.PipelineTesterMixin, unittest.TestCase):
    """Soft sorting."""

    config_overrides = {"is_decoder": True}
    pipeline_model_mapping = {
        "feature-extraction": SinkhornModel,
        "text-classification": SinkhornForSequenceClassification,
        "text-generation": SinkhornForCausalLM,
        "zero-shot": SinkhornForSequenceClassification,
    }
    training_overfit_steps = 60  # theirs takes 300 steps of 1e-3
    training_overfit_learning_rate = 1e-2
    _tiny_models = SinkhornModelTest._tiny_models

    def _get_trainable_model_class(self) -> type:
        return SinkhornForCausalLM  # theirs looks it up in the library's tables of classes


@slow_where(lambda name: name not in OF_EVERY_KIND)
class SinkhornHardCausalModelTest(CausalTests, unittest.TestCase):
    """Hard sorting of several blocks, beside several local ones, and full attention, with its own kind of cache."""

    config_overrides = {
        "is_decoder": True,
        "layer_types": ["sinkhorn_attention", "full_attention"],
        "sort_assignment": "hard",
        "num_sorted_blocks": 2,
        "num_local_blocks": 2,
    }


@slow_where(lambda name: name not in OF_EVERY_KIND)
class SinkhornMixtureCausalModelTest(CausalTests, unittest.TestCase):
    """The Mixture with the paper's summed descriptors, and local attention."""

    config_overrides = {
        "is_decoder": True,
        "layer_types": ["mixture_attention", "local_attention"],
        "sort_pooling": "sum",
    }
