# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
After `import modeling_sinkhorn`, a saved folder opens through every Auto class and every pipeline without a flag
(invariant 12, installed). The same without the package is in `test_remote_code.py`.
"""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

import modeling_sinkhorn
from configuration_sinkhorn import SinkhornConfig
from helpers import BESIDE_THE_MODEL


ROOT = Path(__file__).resolve().parents[2]
AUTO_CLASSES = {
    "SinkhornModel": AutoModel,
    "SinkhornForCausalLM": AutoModelForCausalLM,
    "SinkhornForMaskedLM": AutoModelForMaskedLM,
    "SinkhornForQuestionAnswering": AutoModelForQuestionAnswering,
    "SinkhornForSequenceClassification": AutoModelForSequenceClassification,
    "SinkhornForTokenClassification": AutoModelForTokenClassification,
}
TEXTS = ["The state of the Union is strong.", "Peace, commerce, and honest friendship with all nations."]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable:
    """`saved(class_name)`: a small model of that class, and the folder where it stands with its tokenizer."""
    models: dict[str, tuple[PreTrainedModel, Path]] = {}

    def make(class_name: str) -> tuple[PreTrainedModel, Path]:
        if class_name not in models:
            torch.manual_seed(0)
            config = SinkhornConfig(
                vocab_size=len(tiny_tokenizer),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                block_size=4,
                initializer_range=0.2,
                pad_token_id=tiny_tokenizer.pad_token_id,
                bos_token_id=tiny_tokenizer.bos_token_id,
                eos_token_id=tiny_tokenizer.eos_token_id,
                id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
                label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
            )
            folder = tmp_path_factory.mktemp(class_name)
            model = getattr(modeling_sinkhorn, class_name)(config).eval()
            model.save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
            models[class_name] = model, folder
        return models[class_name]

    return make


def outputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[torch.Tensor]:
    """Every tensor of the model's answer to a padded batch."""
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return [output for output in outputs.to_tuple() if isinstance(output, torch.Tensor)]  # without the cache


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    assert all(torch.equal(a, e) for a, e in zip(actual, expected))


# Folders and Auto classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_own_auto_class_gives_the_same_model(saved, class_name, tiny_tokenizer):
    model, folder = saved(class_name)
    loaded, info = AUTO_CLASSES[class_name].from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    assert_same(outputs(loaded, tiny_tokenizer), outputs(model, tiny_tokenizer))


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_auto_model_opens_the_folder_of_every_class(saved, class_name, tiny_tokenizer):
    model, folder = saved(class_name)
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is modeling_sinkhorn.SinkhornModel
    assert not info["missing_keys"]
    assert_same(outputs(loaded, tiny_tokenizer), outputs(model.base_model, tiny_tokenizer))


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_every_auto_class_opens_the_folder_of_every_class(saved, class_name, tiny_tokenizer):
    """Only a new head is drawn; the body is the saved one."""
    model, folder = saved(class_name)
    for auto_class in AUTO_CLASSES.values():
        if model.config.is_decoder and auto_class is AutoModelForMaskedLM:
            with pytest.raises(ValueError, match="reads both directions.*is_decoder=False"):
                auto_class.from_pretrained(folder)
            continue
        body = auto_class.from_pretrained(folder).base_model.eval()
        if auto_class is AutoModelForCausalLM and not model.config.is_decoder:  # the same weights, read causally
            state = body.state_dict()
            assert body.config.is_decoder
            assert all(torch.equal(state[name], tensor) for name, tensor in model.base_model.state_dict().items())
        else:
            assert_same(outputs(body, tiny_tokenizer), outputs(model.base_model, tiny_tokenizer))


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_what_a_folder_holds(saved, class_name):
    _, folder = saved(class_name)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    shipped = set(packaged_modules()) - BESIDE_THE_MODEL
    assert {path.stem for path in folder.glob("*.py")} == shipped
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "sinkhorn" and config["architectures"] == [class_name]
    assert set(config["auto_map"]) == {"AutoConfig"} | {auto.__name__ for auto in AUTO_CLASSES.values()}
    for reference in config["auto_map"].values():
        assert reference.partition(".")[0] in shipped and "--" not in reference


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_saving_again_changes_nothing(saved, class_name, tmp_path):
    _, folder = saved(class_name)
    AUTO_CLASSES[class_name].from_pretrained(folder).save_pretrained(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_auto_config(saved):
    model, folder = saved("SinkhornModel")
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is SinkhornConfig
    assert config.to_diff_dict() == SinkhornConfig.from_pretrained(folder).to_diff_dict()
    assert config.layer_types == ["sinkhorn_attention"] * 2
    assert AutoConfig.from_pretrained(folder, block_size=8).block_size == 8
    assert type(AutoConfig.for_model("sinkhorn", num_hidden_layers=1)) is SinkhornConfig
    assert type(AutoModel.from_config(config)) is type(model)


def test_half_precision_weights_load_as_saved(saved, tmp_path):
    model, folder = saved("SinkhornForMaskedLM")
    AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())


# Pipelines -----------------------------------------------------------------------------------------------------------


def test_pipeline_feature_extraction(saved, tiny_tokenizer):
    model, folder = saved("SinkhornModel")
    features = torch.tensor(pipeline("feature-extraction", model=str(folder))(TEXTS[0]))
    assert torch.equal(features, model(**tiny_tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state)


def test_pipeline_text_classification(saved, tiny_tokenizer):
    model, folder = saved("SinkhornForSequenceClassification")
    pipe = pipeline("text-classification", model=str(folder))
    expected = outputs(model, tiny_tokenizer)[0].softmax(-1)
    for predictions in (pipe(TEXTS, top_k=None), pipe(TEXTS, top_k=None, batch_size=2)):
        for scores, probabilities in zip(predictions, expected):
            found = {score["label"]: score["score"] for score in scores}
            assert found == pytest.approx(dict(zip(model.config.label2id, probabilities.tolist())), abs=1e-5)


def test_pipeline_text_generation(saved, tiny_tokenizer):
    model, folder = saved("SinkhornForCausalLM")
    answer = pipeline("text-generation", model=str(folder))(TEXTS[0], max_new_tokens=8, do_sample=False)
    batch = tiny_tokenizer(TEXTS[0], return_tensors="pt")
    tokens = model.generate(batch["input_ids"], max_new_tokens=8, do_sample=False)
    assert answer[0]["generated_text"] == tiny_tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_pipeline_fill_mask(saved):
    model, folder = saved("SinkhornForMaskedLM")
    pipe = pipeline("fill-mask", model=str(folder))
    fillings = pipe("The state of the <mask> is strong.", top_k=3)
    assert len(fillings) == 3
    assert fillings[0]["score"] >= fillings[-1]["score"] > 0
    batch = pipe.tokenizer("The state of the <mask> is strong.", return_tensors="pt")
    at_mask = model(batch["input_ids"]).logits[batch["input_ids"] == pipe.tokenizer.mask_token_id][0]
    assert fillings[0]["token"] == int(at_mask.argmax())


def test_pipeline_token_classification(saved, tiny_tokenizer):
    model, folder = saved("SinkhornForTokenClassification")
    entities = pipeline("token-classification", model=str(folder), ignore_labels=[])(TEXTS[0])
    expected = model(**tiny_tokenizer(TEXTS[0], return_tensors="pt")).logits[0].argmax(-1)
    assert [model.config.label2id[entity["entity"]] for entity in entities] == expected.tolist()


def test_pipeline_zero_shot_classification(saved):
    _, folder = saved("SinkhornForSequenceClassification")
    pipe = pipeline("zero-shot-classification", model=str(folder))
    answer = pipe(TEXTS[1], candidate_labels=["war", "trade", "law"])
    assert sorted(answer["labels"]) == ["law", "trade", "war"]
    assert sum(answer["scores"]) == pytest.approx(1)


def test_question_answering_without_a_pipeline(saved):
    """Transformers 5 has no `question-answering` pipeline any more; this is what takes its place."""
    _, folder = saved("SinkhornForQuestionAnswering")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    batch = tokenizer("What is strong?", TEXTS[0], return_tensors="pt")
    answer = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert answer.start_logits.shape == answer.end_logits.shape == batch["input_ids"].shape


# Packaging -----------------------------------------------------------------------------------------------------------


def packaged_modules() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["setuptools"]["py-modules"]


def test_every_module_is_packaged():
    assert packaged_modules() == sorted(path.stem for path in ROOT.glob("*.py"))
