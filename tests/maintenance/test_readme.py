# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
README.md is one page, and the code in it and in the pages under docs/ runs: the blocks fenced as ```python, from top to
bottom, in one namespace, in an empty folder. Fence as ```py what needs more than that (a trained model, a network).
"""

import re
from typing import Any

import pytest
import torch

from configuration_sinkhorn import SinkhornConfig
from markdown_parts import ROOT, links, name_of, read
from modeling_sinkhorn import SinkhornForCausalLM


README = ROOT / "README.md"
# The lesson's blocks have a test of their own.
WITH_CODE = [
    path
    for path in (README, *sorted((ROOT / "docs").glob("*.md")))
    if "```python" in read(path) and "lesson" not in path.name
]


def test_one_page():
    text = read(README)
    assert len(text.encode()) <= 12_288 and len(text.splitlines()) <= 170


def test_comments_are_markers_of_tables():
    comments = re.findall(r"<!--.*?-->", read(README), re.DOTALL)
    assert all(re.fullmatch(r"<!-- (BEGIN|END) \w+ -->", comment) for comment in comments)


def test_the_index_links_every_page_once():
    index = read(README).partition("## Documents")[2]
    linked = [path for path, _ in links(index) if path.startswith("docs/")]
    assert sorted(linked) == sorted(name_of(path) for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture
def trained_models(tmp_path, tiny_tokenizer) -> None:
    """Small untrained models where the documents suppose those that the scripts trained."""
    torch.manual_seed(0)
    config = SinkhornConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    SinkhornForCausalLM(config).save_pretrained(tmp_path / "runs" / "clm")
    tiny_tokenizer.save_pretrained(tmp_path / "runs" / "clm")
    for folder in ("checkpoints", "data"):
        (tmp_path / folder).symlink_to(ROOT / folder)


@pytest.mark.parametrize("document", WITH_CODE, ids=name_of)
def test_python_blocks_run(document, tmp_path, monkeypatch, trained_models):
    text = read(document)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        # Empty lines before it, so that an error names the line of the document.
        code = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        # The package is at hand; code that comes with a model would take its place in all later tests.
        code = code.replace(", trust_remote_code=True)", ")")
        code = re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", code)
        exec(compile(code, str(document), "exec"), namespace)
