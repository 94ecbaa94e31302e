# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Hugging Face's own tests for models, taken at test time from the source distribution of the installed transformers.

pip fetches the archive once (10 MB, no dependencies); its `tests/*.py` are kept in the git-ignored `.cache/`. They are
part of a package, and import neighbours that the archive does not carry. `load()` makes that package here, under the
name `hf_tests`, out of the fetched files and of stand-ins for the missing ones, so nothing of theirs is copied into
this repository and nothing of ours is written beside their files.

Without a network and without the cache the tests fail and say so; SINKHORN_SKIP_HF_COMMON=1 skips them instead.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import transformers
from filelock import FileLock


PACKAGE = "hf_tests"
CACHE = Path(__file__).resolve().parent.parent / ".cache"
SKIP_VARIABLE = "SINKHORN_SKIP_HF_COMMON"


# --------------------------------------------------------------------------------------------------------------------
# Fetching
# --------------------------------------------------------------------------------------------------------------------


def fetch() -> Path:
    """The folder with the `tests/*.py` of the installed transformers; downloads them where the cache lacks them."""
    folder = CACHE / f"transformers-{transformers.__version__}-tests"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "fetch.lock"):  # several processes of one test run want them at once
        if not folder.is_dir():
            _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        archive = _download(Path(scratch))
        unpacked = Path(scratch) / "tests"
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                    (unpacked / parts[2]).write_bytes(tar.extractfile(member).read())
        if not (unpacked / "test_modeling_common.py").exists():
            raise RuntimeError(f"{archive.name} holds no tests/test_modeling_common.py.")
        unpacked.rename(folder)  # atomic: nobody sees half of it


def _download(folder: Path) -> Path:
    """The source distribution, fetched by pip into `folder`."""
    requirement = f"transformers=={transformers.__version__}"
    # The binary package carries no tests. pip reads the archive's metadata with the setuptools that is installed here.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-binary", "transformers", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        raise RuntimeError(
            f"Hugging Face's common tests need the source distribution of {requirement}, and pip could not download "
            f"it (exit code {result.returncode}). Connect once so that it can be kept in {CACHE}, or set "
            f"{SKIP_VARIABLE}=1 to skip these tests. pip said:\n{result.stdout}{result.stderr}"
        )
    return archives[0]


# --------------------------------------------------------------------------------------------------------------------
# Stand-ins for what the archive lacks
# --------------------------------------------------------------------------------------------------------------------


class ExportTesterMixin:
    """Theirs tests every exporter; ours are in `test_modeling.py` and `test_export.py`."""


class GenerationTesterMixin:
    """Theirs tests `generate()`; a class that can generate must inherit it, and our own tests do the work."""


# The fields that every configuration inherits, each at a value that is not its default.
CONFIG_COMMON_KWARGS = {
    "architectures": ["SinkhornModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "label"},
    "is_encoder_decoder": True,
    "label2id": {"label": 0},
    "output_attentions": False,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


def _needs_several_processes(*args: Any, **kwargs: Any) -> NoReturn:
    raise unittest.SkipTest("needs `distributed_testing_utils`, which the source distribution does not carry")


class PipelineTask:
    """
    What theirs in `tests/pipelines/` do for one task, which the archive lacks: makes the pipeline and examples, and
    checks what comes out for each example alone. The mixin then checks batches.
    """

    def __init__(self, task: str, examples: list[Any], check, **options: Any):
        self.task, self.examples, self.check, self.options = task, examples, check, options

    def __call__(self) -> "PipelineTask":
        return self

    def get_test_pipeline(self, model, tokenizer, dtype: str = "float32", **processors: Any):
        pipe = transformers.pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype, **self.options)
        return pipe, self.examples

    def run_pipeline_test(self, pipe, examples: list[Any]) -> None:
        for example in examples:
            self.check(pipe(example), example)


def use_pipeline_tasks(hf: SimpleNamespace, tasks: dict[str, PipelineTask]) -> None:
    """Puts `tasks` where the mixin looks for the test of each of its task names: a dotted path to a class."""
    names = {task: task.replace("-", "_") for task in tasks}
    module = _module("pipeline_tasks", **{names[task]: test for task, test in tasks.items()})
    for task, name in names.items():
        hf.pipelines.pipeline_test_mapping[task]["test"] = f"{module.__name__}.{name}"


# --------------------------------------------------------------------------------------------------------------------
# The package
# --------------------------------------------------------------------------------------------------------------------


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(f"{PACKAGE}.{name}" if name else PACKAGE)
    module.__dict__.update(contents)
    sys.modules[module.__name__] = module
    return module


def load() -> SimpleNamespace:
    """Their mixins and testers by name, and `pipelines`, their module that maps tasks to tests."""
    if os.environ.get(SKIP_VARIABLE) == "1":
        raise unittest.SkipTest(f"{SKIP_VARIABLE}=1")
    folder = fetch()
    _module("", __path__=[str(folder)])
    for package in ("exporters", "generation", "utils"):
        _module(package, __path__=[])
    _module("exporters.test_export", ExportTesterMixin=ExportTesterMixin)
    _module("generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
    _module("utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    _module("distributed_testing_utils", run_distributed=_needs_several_processes)

    # On import they load transformers a second time from the tree around them, and a list of models on the Hub; the
    # first is the installed one here, and the second is empty until a test fills it.
    with tempfile.TemporaryDirectory() as models:
        summary = Path(models, "reports", "tiny_model_summary.json")
        summary.parent.mkdir()
        summary.write_text("{}", encoding="utf-8")
        with (
            mock.patch("transformers.utils.direct_transformers_import", lambda *args, **kwargs: transformers),
            mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=models),
        ):
            from hf_tests import test_configuration_common as configuration
            from hf_tests import test_modeling_common as modeling
            from hf_tests import test_pipeline_mixin as pipelines
            from hf_tests import test_tensor_parallel_mixin as tensor_parallel
            from hf_tests import test_training_mixin as training
    return SimpleNamespace(
        ConfigTester=configuration.ConfigTester,
        GenerationTesterMixin=GenerationTesterMixin,
        ModelTesterMixin=modeling.ModelTesterMixin,
        PipelineTesterMixin=pipelines.PipelineTesterMixin,
        TensorParallelTesterMixin=tensor_parallel.TensorParallelTesterMixin,
        TrainingTesterMixin=training.TrainingTesterMixin,
        ids_tensor=modeling.ids_tensor,
        random_attention_mask=modeling.random_attention_mask,
        modeling=modeling,
        pipelines=pipelines,
    )
