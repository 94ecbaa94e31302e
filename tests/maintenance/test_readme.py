# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
README.md and README.zh.md are one page each, and the code in them and in the pages under docs/ runs: the blocks fenced as
```python, from top to bottom, in one namespace, in an empty folder. Fence as ```py what needs more than that (a trained model, a network).
"""

import re
from typing import Any

import pytest
import torch

from configuration_sinkhorn import SinkhornConfig
from markdown_parts import FENCED, ROOT, links, name_of, numbers, read, tables
from modeling_sinkhorn import SinkhornForCausalLM


README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
# The heading of the list of pages, in each language.
LANGUAGES = pytest.mark.parametrize(
    "document, index", [(README, "## Documents"), (CHINESE, "## 文档")], ids=["English", "Chinese"]
)
# The lesson's blocks have a test of their own.
WITH_CODE = [
    path
    for path in (README, CHINESE, *sorted((ROOT / "docs").glob("*.md")))
    if "```python" in read(path) and "lesson" not in path.name
]


@LANGUAGES
def test_one_page(document, index):
    text = read(document)
    assert len(text.encode()) <= 12_288 and len(text.splitlines()) <= 170


@LANGUAGES
def test_comments_are_markers_of_tables(document, index):
    comments = re.findall(r"<!--.*?-->", read(document), re.DOTALL)
    assert all(re.fullmatch(r"<!-- (BEGIN|END) \w+ -->", comment) for comment in comments)


@LANGUAGES
def test_the_index_links_every_page_once(document, index):
    pages = read(document).partition(f"\n{index}\n")[2]
    linked = [path for path, _ in links(pages) if path.startswith("docs/")]
    assert sorted(linked) == sorted(name_of(path) for path in (ROOT / "docs").glob("*.md"))


def test_languages_say_the_same():
    english, chinese = read(README), read(CHINESE)
    assert len(chinese.splitlines()) <= len(english.splitlines())
    assert len(re.findall(r"^#+ ", english, re.MULTILINE)) == len(re.findall(r"^#+ ", chinese, re.MULTILINE))
    assert FENCED.findall(english) == FENCED.findall(chinese)
    for table, translated in zip(tables(english), tables(chinese), strict=True):
        assert [numbers(row) for row in table] == [numbers(row) for row in translated]
    assert ("README.zh.md", "") in links(english) and ("README.md", "") in links(chinese)


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
