# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Where this package is not installed, a saved folder opens with `trust_remote_code=True` and gives the same numbers
(invariant 12, fresh process). One process imports torch and transformers, which is what costs, and forks per case.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, pipeline

import modeling_sinkhorn
from configuration_sinkhorn import SinkhornConfig


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

# Runs away from the repository, with this package's modules hidden: that stands in for a machine without it. Each case
# has a process of its own, forked once the libraries are there: the code of the first folder registers its classes,
# and the next folder would be opened with those instead of its own.
CHILD = """
import gc, importlib.abc, inspect, json, os, pathlib, sys, traceback

job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
reports = pathlib.Path(sys.argv[2])


class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in job["hidden"]:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)


sys.meta_path.insert(0, Hide())

import torch
import transformers

# Loaded on first use, so each fork would load them again.
import transformers.core_model_loading
import transformers.conversion_mapping
import transformers.dynamic_module_utils
import transformers.loss.loss_utils
import transformers.masking_utils
import transformers.modeling_layers
import transformers.modeling_rope_utils
import transformers.utils.output_capturing
from transformers import AutoConfig, AutoModel, AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers import PreTrainedTokenizerFast, pipeline

for name in job["auto_classes"].values():
    getattr(transformers, name)
inspect.getmodule(Hide.find_spec.__code__)  # makes its table of all modules, which torch asks for
gc.freeze()  # else a collection in a fork copies all of it

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def case(name):
    def run(function):
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)
        try:
            report = function()
        except BaseException:
            report = traceback.format_exc()
        (reports / f"{name}.json").write_text(json.dumps(report, default=float), encoding="utf-8")
        os._exit(0)
    return run


def load(auto_class, folder):
    model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    ids, mask = torch.tensor(job["input_ids"]), torch.tensor(job["attention_mask"])
    with torch.no_grad():
        outputs = model(ids, attention_mask=mask).to_tuple()
    answers = [tensor.tolist() for tensor in outputs if isinstance(tensor, torch.Tensor)]  # without the cache
    report = {"class": type(model).__name__, "module": type(model).__module__, "answers": answers}
    return model, report | {"missing": sorted(info["missing_keys"])}


@case("import")
def _():
    found = []
    for name in job["hidden"]:
        try:
            __import__(name)
            found.append(name)
        except ModuleNotFoundError:
            pass
    return found


@case("no code")
def _():
    folder = f"{job['folder']}/SinkhornModel"
    ids = AutoTokenizer.from_pretrained(folder)("The state of the Union.")["input_ids"]
    config = transformers.PreTrainedConfig.from_pretrained(folder)
    again = transformers.PreTrainedConfig.from_json_file(f"{folder}/config.json")
    return {"ids": ids, "types": [config.attention_types, again.attention_types]}


@case("AutoConfig")
def _():
    config = AutoConfig.from_pretrained(f"{job['folder']}/SinkhornModel", trust_remote_code=True)
    return {"class": type(config).__name__, "module": type(config).__module__}


for class_name, auto_name in job["auto_classes"].items():
    folder = f"{job['folder']}/{class_name}"
    again = f"{job['folder']}/{class_name}_again"
    auto_class = getattr(transformers, auto_name)

    @case(f"{class_name} without trust")
    def _():
        try:
            auto_class.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            return str(error)

    @case(f"{class_name} own")
    def _():
        model, report = load(auto_class, folder)
        model.save_pretrained(again)
        return report

    @case(f"{class_name} again")
    def _():
        return load(auto_class, again)[1]

    @case(f"{class_name} body")
    def _():
        return load(AutoModel, folder)[1]


for task, (class_name, text) in job["pipelines"].items():
    @case(task)
    def _():
        pipe = pipeline(task, model=f"{job['folder']}/{class_name}", trust_remote_code=True)
        options = job["generate"] if task == "text-generation" else {}
        return {"module": type(pipe.model).__module__, "answer": pipe(text, **options)}
"""


@pytest.fixture(scope="module")
def here_and_there(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of models made here, and what a process without this package reports of their folders."""
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

    job = {
        "auto_classes": AUTO_CLASSES,
        "pipelines": PIPELINES,
        "folder": str(folder),
        "generate": GENERATE,
        "hidden": sorted(path.stem for path in Path(modeling_sinkhorn.__file__).parent.glob("*_sinkhorn.py")),
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
    }
    job_file, script = folder / "job.json", folder / "child.py"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    script.write_text(CHILD, encoding="utf-8")
    elsewhere, reports = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("reports")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(elsewhere / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # -I: neither the current folder, nor that of the script, nor PYTHONPATH is searched.
    command = [sys.executable, "-I", str(script), str(job_file), str(reports)]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr

    return here, {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in reports.iterdir()}


def assert_from_folder(report: Any, folder: str) -> None:
    """The case went well, and the code that ran is the one that was saved in `folder`."""
    assert isinstance(report, dict), report  # else a traceback
    assert report["module"].startswith(f"transformers_modules.{folder}."), report["module"]


def test_the_package_is_hidden_there(here_and_there):
    assert here_and_there[1]["import"] == []


def test_what_needs_no_code_runs_without_it(here_and_there, tiny_tokenizer):
    """A tokenizer, and what reads config.json by the library's base class, as servers do."""
    report = here_and_there[1]["no code"]
    assert isinstance(report, dict), report
    assert report["ids"] == tiny_tokenizer("The state of the Union.")["input_ids"]
    assert report["types"] == [["sinkhorn_attention", "sortcut_attention"]] * 2


def test_config_loads(here_and_there):
    report = here_and_there[1]["AutoConfig"]
    assert_from_folder(report, "SinkhornModel")
    assert report["class"] == "SinkhornConfig"


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_nothing_runs_without_trust(here_and_there, class_name):
    refusal = here_and_there[1][f"{class_name} without trust"]
    assert "`trust_remote_code=True`" in refusal and "Traceback" not in refusal


@pytest.mark.parametrize("class_name", AUTO_CLASSES)
@pytest.mark.parametrize("way", ["own", "body", "again"])
def test_same_numbers_there(here_and_there, class_name, way):
    """By its own Auto class, by AutoModel, and from a folder that was saved there."""
    here, there = here_and_there
    report = there[f"{class_name} {way}"]
    assert_from_folder(report, f"{class_name}_again" if way == "again" else class_name)
    assert report["class"] == ("SinkhornModel" if way == "body" else class_name)
    assert report["missing"] == []
    whole, body = here[class_name]
    assert report["answers"] == (body if way == "body" else whole)


@pytest.mark.parametrize("task", PIPELINES)
def test_pipeline_there(here_and_there, task):
    report = here_and_there[1][task]
    assert_from_folder(report, PIPELINES[task][0])
    assert len(report["answer"]) > 0


def test_the_same_text_is_generated_there(here_and_there):
    here, there = here_and_there
    assert there["text-generation"]["answer"] == here["text"]
