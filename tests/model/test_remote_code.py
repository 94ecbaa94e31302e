# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Where this package is not installed, a saved folder opens with `trust_remote_code=True` and gives the same numbers
(invariant 12, fresh process).
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, pipeline

import modeling_sinkhorn
from configuration_sinkhorn import SinkhornConfig
from elsewhere import Elsewhere


AUTO_CLASSES = {
    "SinkhornModel": "AutoModel",
    "SinkhornForCausalLM": "AutoModelForCausalLM",
    "SinkhornForMaskedLM": "AutoModelForMaskedLM",
    "SinkhornForQuestionAnswering": "AutoModelForQuestionAnswering",
    "SinkhornForSequenceClassification": "AutoModelForSequenceClassification",
    "SinkhornForTokenClassification": "AutoModelForTokenClassification",
}
PIPELINES = {
    "feature-extraction": ("SinkhornModel", "The state of the Union is strong."),
    "fill-mask": ("SinkhornForMaskedLM", "The state of the <mask> is strong."),
    "text-classification": ("SinkhornForSequenceClassification", "The state of the Union is strong."),
    "token-classification": ("SinkhornForTokenClassification", "The state of the Union is strong."),
    "text-generation": ("SinkhornForCausalLM", "The state of the Union is strong."),
}
GENERATE = {"max_new_tokens": 12, "do_sample": False}

# What the other process does.
PROGRAM = """
def answers(auto_class, folder, again, ids, mask):
    auto_class = getattr(transformers, auto_class)
    model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    with torch.no_grad():
        outputs = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).to_tuple()
    if again:
        model.save_pretrained(again)
    tensors = [tensor.tolist() for tensor in outputs if isinstance(tensor, torch.Tensor)]  # without the cache
    report = {"class": type(model).__name__, "module": type(model).__module__}
    return report | {"missing": sorted(info["missing_keys"]), "answers": tensors}


def refusal(auto_class, folder):
    try:
        getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        return str(error)


def no_code(folder):
    ids = AutoTokenizer.from_pretrained(folder)("The state of the Union.")["input_ids"]
    config = transformers.PreTrainedConfig.from_pretrained(folder)
    again = transformers.PreTrainedConfig.from_json_file(f"{folder}/config.json")
    return {"ids": ids, "types": [config.attention_types, again.attention_types]}


def config_class(folder):
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return {"class": type(config).__name__, "module": type(config).__module__}


def pipe(task, folder, text, options):
    built = pipeline(task, model=folder, trust_remote_code=True)
    return {"module": type(built.model).__module__, "answer": built(text, **options)}
"""


class Saved:
    """A folder of each class, and the numbers of the models that were saved."""

    def __init__(self, folder: Path, there: Elsewhere, here: dict[str, Any], batch: dict[str, list]):
        self.folder, self.there, self.here, self.batch = folder, there, here, batch

    def ask(self, function: str, class_name: str, **arguments) -> Any:
        """What a function of the program says there, without a network."""
        arguments["folder"] = str(self.folder / class_name)
        return self.there.do(function, PROGRAM, arguments, offline=True).checked()

    def answers(self, class_name: str, auto_class: str, again: Path | None = None) -> dict[str, Any]:
        return self.ask("answers", class_name, auto_class=auto_class, again=again and str(again), **self.batch)


@pytest.fixture(scope="module")
def saved(
    elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Saved:
    folder = tmp_path_factory.mktemp("remote")
    batch = tiny_tokenizer(["The state of the Union.", "Peace, commerce, and honest friendship."], padding=True)
    ids, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
    here = {}
    for class_name in AUTO_CLASSES:
        torch.manual_seed(0)
        causal = class_name == "SinkhornForCausalLM"
        config = SinkhornConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            layer_types=["sinkhorn_attention", "local_attention" if causal else "sortcut_attention"],
            block_size=4,
            initializer_range=0.2,
        )
        model = getattr(modeling_sinkhorn, class_name)(config).eval()
        model.save_pretrained(folder / class_name)
        tiny_tokenizer.save_pretrained(folder / class_name)
        with torch.no_grad():
            whole, body = (part(ids, attention_mask=mask).to_tuple() for part in (model, model.base_model))
        here[class_name] = [
            [tensor.tolist() for tensor in tensors if isinstance(tensor, torch.Tensor)] for tensors in (whole, body)
        ]
        if causal:
            text = PIPELINES["text-generation"][1]
            here["text"] = pipeline("text-generation", model=model, tokenizer=copy.deepcopy(tiny_tokenizer))(
                text, **GENERATE
            )

    return Saved(folder, elsewhere, here, {"ids": batch["input_ids"], "mask": batch["attention_mask"]})


def assert_from_folder(report: dict[str, Any], folder: str) -> None:
    """The code that ran is the one that was saved in `folder`."""
    assert report["module"].startswith(f"transformers_modules.{folder}."), report["module"]


def test_the_package_is_hidden_there(elsewhere):
    assert elsewhere.do("found", "", {}).checked() == []


def test_what_needs_no_code_runs_without_it(saved, tiny_tokenizer):
    """A tokenizer, and what reads config.json by the library's base class, as servers do."""
    report = saved.ask("no_code", "SinkhornModel")
    assert report["ids"] == tiny_tokenizer("The state of the Union.")["input_ids"]
    assert report["types"] == [["sinkhorn_attention", "sortcut_attention"]] * 2


def test_config_loads(saved):
    report = saved.ask("config_class", "SinkhornModel")
    assert_from_folder(report, "SinkhornModel")
    assert report["class"] == "SinkhornConfig"


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_nothing_runs_without_trust(saved, class_name):
    assert "`trust_remote_code=True`" in saved.ask("refusal", class_name, auto_class=AUTO_CLASSES[class_name])


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_same_numbers_there(saved, class_name):
    """By its own Auto class, from a folder that was saved there, and by AutoModel."""
    whole, body = saved.here[class_name]
    again = f"{class_name}_again"
    own = AUTO_CLASSES[class_name]
    for folder, report, expected in (
        (class_name, saved.answers(class_name, own, saved.folder / again), whole),
        (again, saved.answers(again, own), whole),
        (class_name, saved.answers(class_name, "AutoModel"), body),
    ):
        assert_from_folder(report, folder)
        assert report["class"] == (class_name if expected is whole else "SinkhornModel")
        assert report["missing"] == []
        assert report["answers"] == expected


@pytest.mark.parametrize("task", PIPELINES)
def test_pipeline_there(saved, task):
    class_name, text = PIPELINES[task]
    report = saved.ask("pipe", class_name, task=task, text=text, options=GENERATE if task == "text-generation" else {})
    assert_from_folder(report, class_name)
    assert len(report["answer"]) > 0
    if task == "text-generation":
        assert report["answer"] == saved.here["text"]
