# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The checkpoints that ship are complete and small, and their cards say what was measured."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors import safe_open

import modeling_sinkhorn
from helpers import tiny_config
from hub import card_checks
from maintenance import cards as make_cards
from maintenance import checkpoints, code_links
from maintenance.recipes import RECIPES


ROOT = Path(__file__).resolve().parents[2]


HUB_TEMPLATE = Path(huggingface_hub.__file__).parent / "templates" / "modelcard_template.md"
each_checkpoint = pytest.mark.parametrize("name", RECIPES)


def folder_of(name: str) -> Path:
    return ROOT / "checkpoints" / name


def results_of(name: str) -> dict:
    return json.loads((ROOT / "results" / "checkpoints" / f"{name}.json").read_text(encoding="utf-8"))


def headings(text: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line.removesuffix(" [optional]") for line in re.findall(r"^##+ .*$", text, re.MULTILINE)]


def snippets_of(name: str) -> list[str]:
    text = (folder_of(name) / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@each_checkpoint
def test_generation_settings_are_those_of_the_recipe(name):
    file = folder_of(name) / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    assert RECIPES[name].generation.items() <= settings.items()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@each_checkpoint
def test_code_is_links_to_the_modules_that_a_save_copies(name, tmp_path):
    (architecture,) = json.loads((folder_of(name) / "config.json").read_text(encoding="utf-8"))["architectures"]
    getattr(modeling_sinkhorn, architecture)(tiny_config()).save_pretrained(tmp_path)
    links = {path.name: os.readlink(path) for path in folder_of(name).glob("*.py") if path.is_symlink()}
    assert links == {path.name: f"../../{path.name}" for path in tmp_path.glob("*.py")}, (
        "`python scripts/maintain.py links` makes them"
    )
    assert links.keys() == {path.name for path in folder_of(name).glob("*.py")}


@each_checkpoint
def test_a_copy_has_the_code_itself(name, tmp_path):
    shutil.copytree(folder_of(name), tmp_path / "by Python")
    subprocess.run(["cp", "-rL", folder_of(name), tmp_path / "by the shell"], check=True)
    for copy in tmp_path.iterdir():
        assert not any(path.is_symlink() for path in copy.rglob("*"))
        assert files_of(copy) == files_of(folder_of(name))


@pytest.mark.parametrize("name", ["sinkhorn-sotu-lm"])  # the one with generation_config.json
def test_a_refreshed_folder_is_the_same(name, tmp_path):
    """Links again, and nothing was written through them."""
    folder, code = tmp_path / "checkpoint", {path: path.read_bytes() for path in ROOT.glob("*.py")}
    shutil.copytree(folder_of(name), folder)
    code_links.link_code(folder)
    checkpoints.export(RECIPES[name], folder, folder)
    assert {path: path.read_bytes() for path in ROOT.glob("*.py")} == code
    assert all(path.is_symlink() and path.resolve().parent == ROOT for path in folder.glob("*.py"))
    after, before = files_of(folder), files_of(folder_of(name))
    for files in (after, before):  # the library notes its version
        for file in {"config.json", "generation_config.json"} & files.keys():
            files[file] = json.loads(files[file]) | {"transformers_version": None}
    assert after == before


def test_small():
    sizes = {
        path: path.stat().st_size
        for path in (ROOT / "checkpoints").rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    data = sum(path.stat().st_size for path in (ROOT / "data").rglob("*") if path.is_file())
    for path, size in sizes.items():
        assert size < 25e6 and path.suffix in (".safetensors", ".json", ".md", ".yaml"), path
    assert sum(sizes.values()) + data < 60e6


@each_checkpoint
def test_weights_are_those_of_the_scores(name):
    weights = folder_of(name) / "model.safetensors"
    stated = results_of(name)["weights"]
    assert stated == {
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    with safe_open(weights, framework="pt") as tensors:
        assert {tensors.get_tensor(key).element_size() for key in tensors.keys()} == {2}  # noqa: SIM118


@each_checkpoint
def test_card_is_made_from_the_results(name):
    text = make_cards.card(name, results_of(name))
    assert (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8") == text
    assert (folder_of(name) / "README.md").read_text(encoding="utf-8") == text
    files = {path.name: path.read_text(encoding="utf-8") for path in (folder_of(name) / ".eval_results").iterdir()}
    assert files == make_cards.evaluation_files(name, results_of(name))


@each_checkpoint
def test_card_is_whole(name):
    text = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert card_checks.check_card(folder_of(name) / "README.md") == []
    assert not re.search(r"more information needed|todo|tbd|\{\{|\{%", text, re.IGNORECASE)
    # The template's last lines name two forms of citation in bold; ours has one.
    assert headings(text) == headings(HUB_TEMPLATE.read_text(encoding="utf-8"))
    body = ModelCard(text).text
    for heading, content in re.findall(r"^##+ ([^\n]+)\n(.*?)(?=^##+ |\Z)", body, re.DOTALL | re.MULTILINE):
        deeper = re.search(rf"^(#+) {re.escape(heading)}\n+\1# ", body, re.MULTILINE)
        assert content.strip() or deeper, f"{heading} is empty"


@each_checkpoint
def test_results_that_the_hub_reads(name):
    data = ModelCard.load(folder_of(name) / "README.md").data
    model_name, in_card = model_index_to_eval_results(data.to_dict()["model-index"])
    scores = make_cards.test_scores(name, results_of(name))
    assert model_name == name
    assert {(result.dataset_type, result.metric_type): result.metric_value for result in in_card} == {
        (dataset, make_cards.METRICS[metric][0]): value
        for dataset, by_metric in scores.items()
        for metric, value in by_metric.items()
    }
    files = (folder_of(name) / ".eval_results").iterdir()
    entries = [
        entry
        for file in files
        for entry in huggingface_hub.parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
    ]
    assert {(entry.dataset_id, entry.task_id.rpartition("-")[2], entry.value) for entry in entries} == {
        (dataset, metric, value) for dataset, by_metric in scores.items() for metric, value in by_metric.items()
    }
    assert str(ModelCard(str(ModelCard.load(folder_of(name) / "README.md")))) == str(
        ModelCard.load(folder_of(name) / "README.md")
    )


@pytest.mark.slow
@each_checkpoint
def test_the_cards_commands_give_the_cards_scores(name, tmp_path):
    """To the digit."""
    text = (folder_of(name) / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(python .*?)\n```$", text, re.MULTILINE | re.DOTALL)
    again = {}
    for part, command in zip(("evaluation", "evaluation_on_books"), block.splitlines(), strict=False):
        command = command.removeprefix("python ").replace("runs/check", str(tmp_path / part))
        subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=True)
        again[part] = json.loads((tmp_path / part / "run.json").read_text(encoding="utf-8"))
    stated, found = make_cards.test_scores(name, results_of(name)), make_cards.test_scores(name, again)
    assert found.keys() == stated.keys()
    for dataset, scores in stated.items():
        assert found[dataset] == pytest.approx(scores, rel=1e-4)
        if "accuracy" in scores:
            assert found[dataset]["accuracy"] == pytest.approx(scores["accuracy"], abs=1e-9)
