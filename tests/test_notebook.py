# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`examples/long_documents.ipynb`: it is kept without outputs, and runs from its first cell to a push."""

import json

import pytest

from elsewhere import environment_without_ours
from helpers import SCRIPTS
from hub_server import MARY


ROOT = SCRIPTS.parent
NOTEBOOK = ROOT / "examples" / "long_documents.ipynb"


def test_no_outputs_are_kept():
    """They would be numbers that no file in `results/` has."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow  # trains a model for some minutes
def test_it_runs(hub, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # its files go elsewhere
        cell.source = cell.source.replace('"runs/notebook"', repr(str(tmp_path)))
    for name, value in environment_without_ours(hub.url, tmp_path / "home", HF_TOKEN=MARY).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    texts = ["".join(str(output) for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert not any("Traceback" in text or "error:" in text for text in texts), texts
    assert any("TF-IDF" in text for text in texts) and any("since 1964" in text for text in texts)
    assert {"model.safetensors", "README.md", "modeling_sinkhorn.py"} <= set(hub.repos["mary/sotu-periods"].head.files)
    assert "index.html" in hub.spaces["mary/sotu-periods"].head.files
