# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""A wheel has everything, and works where it is installed, away from this repository."""

import email
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in ROOT.glob("*_sinkhorn.py"))

USE = """
import importlib, importlib.metadata, os, pathlib, sys

site, checkpoint, *modules = sys.argv[1:]
for name in modules:
    assert pathlib.Path(importlib.import_module(name).__file__).parent == pathlib.Path(site), name
assert importlib.metadata.version("sparse-sinkhorn-attention")

import torch
from transformers import AutoModel, AutoModelForCausalLM
from configuration_sinkhorn import SinkhornConfig
from modeling_sinkhorn import SinkhornForCausalLM

config = SinkhornConfig(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, block_size=4
)
model = SinkhornForCausalLM(config).eval()
model.save_pretrained("saved")
again = AutoModelForCausalLM.from_pretrained("saved").eval()
ids = torch.arange(1, 12)[None]
assert torch.equal(again(ids).logits, model(ids).logits)
assert torch.equal(AutoModel.from_pretrained("saved").eval()(ids)[0], model.model(ids)[0])
written = [each.generate(ids, max_new_tokens=6, do_sample=False) for each in (model, again)]
assert torch.equal(*written) and written[0].shape == (1, 17)
assert AutoModel.from_pretrained(checkpoint).config.model_type == "sinkhorn"
"""


def run(*command, cwd: Path) -> None:
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since the build writes next to its sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", target]
    run(sys.executable, "-m", "pip", "wheel", *flags, source, cwd=target)
    (built,) = target.iterdir()
    return built


def test_contents(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert wheel.name == f"sparse_sinkhorn_attention-{project['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        files = {name: archive.read(name) for name in archive.namelist()}
    code = {name: content for name, content in files.items() if not name.startswith(f"{info}/")}
    assert code == {f"{name}.py": (ROOT / f"{name}.py").read_bytes() for name in MODULES}
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = email.message_from_bytes(files[f"{info}/METADATA"])
    for key in ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Description-Content-Type"):
        assert metadata[key], key
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Name"] == "sparse-sinkhorn-attention"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.split(">")[0].split("<")[0] for line in required} == {"torch", "transformers", "safetensors"}
    assert set(metadata.get_all("Provides-Extra")) == project["optional-dependencies"].keys()


@pytest.mark.ci
@pytest.mark.slow  # a process of its own
def test_it_works_where_it_is_installed(wheel, tmp_path):
    """In a new environment, which borrows only what this one installed from elsewhere."""
    environment, place = tmp_path / "environment", tmp_path / "place"
    place.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = environment.glob("lib/python*/site-packages")
    # A plain path: what the borrowed environment has as editable, this package, is not found by that.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    checkpoint = ROOT / "checkpoints" / "sinkhorn-sotu-party"
    run(python, "-I", "-c", USE, site.resolve(), checkpoint, *MODULES, cwd=place)
