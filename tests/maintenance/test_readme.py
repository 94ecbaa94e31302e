# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What README.md and the model cards say is true.

- The blocks fenced as ```python run from top to bottom, in one namespace, in an empty folder. Fence as ```py what
  needs more than that (a trained model, a network).
- A line may say where its numbers come from, in a comment that does not show:

      | by address | .874 | .861 | <!-- from results/sotu.json: test.accuracy; test.macro_f1 -->

  Each path names a number in that file, keys and list indices joined by dots; paths are parted by semicolons. It must stand on the line, rounded as
  printed there; `87.4 %` and `12,345` are understood. A line may hold several such comments.
- Every `make` target that is named exists, and so does every file that is linked.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from configuration_sinkhorn import SinkhornConfig
from modeling_sinkhorn import SinkhornForCausalLM


ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "docs" / "gpu.md", *sorted((ROOT / "model_cards").glob("*.md"))]
SOURCE = re.compile(r"<!--\s*from\s+(\S+?):\s*(.+?)\s*-->")
NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d[\d,]*)?\.?\d+(?:\s?%)?")


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def look_up(data: Any, path: str) -> float:
    """The number at `a.b.0` in nested dicts and lists."""
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    assert isinstance(data, (int, float)) and not isinstance(data, bool), f"{path} is {data!r}, not a number"
    return data


def is_printed(value: float, text: str) -> bool:
    """Whether `text` holds `value`, rounded to as many decimals as are printed."""
    for printed in NUMBER.findall(text):
        digits = printed.rstrip("% ").replace(",", "")
        decimals = len(digits.partition(".")[2])
        expected = value * 100 if printed.endswith("%") else value
        # 1 is not a rounding of 0.82: without decimals, only whole numbers and large ones count.
        precise = decimals > 0 or printed.endswith("%") or value == int(value) or abs(value) >= 10
        if precise and abs(float(digits) - expected) <= 0.5 * 10**-decimals * (1 + 1e-9):
            return True
    return False


def sources(text: str) -> list[tuple[int, str, str, str]]:
    """(line number, visible text of the line, file, path) for each number that has a source."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        visible = re.sub(r"<!--.*?-->", "", line)
        for file, paths in SOURCE.findall(line):
            found += [(number, visible, file, path.strip()) for path in paths.split(";")]
    return found


def wrong_numbers(text: str, root: Path) -> list[str]:
    wrong = []
    for number, visible, file, path in sources(text):
        value = look_up(json.loads((root / file).read_text(encoding="utf-8")), path)
        if not is_printed(value, visible):
            wrong.append(f"line {number}: {path} in {file} is {value}, which is not in: {visible.strip()}")
    return wrong


@pytest.fixture
def trained_models(tmp_path, tiny_tokenizer) -> None:
    """Small untrained models where README.md supposes those that the scripts trained."""
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


def test_python_blocks_run(tmp_path, monkeypatch, trained_models):
    text = read(README)
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert blocks, "README.md has no ```python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        # Empty lines before it, so that an error names the line of README.md.
        code = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        # The package is at hand; code that comes with a model would take its place in all later tests.
        code = code.replace(", trust_remote_code=True)", ")")
        exec(compile(code, str(README), "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_numbers_come_from_results(document):
    assert wrong_numbers(read(document), ROOT) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document):
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", read(document))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", read(README), re.MULTILINE))
    assert named <= targets


# The check itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, text, expected",
    [
        (0.8744, "| .874 |", True),
        (0.8744, "| 0.87 |", True),
        (0.8744, "| 87.4 % |", True),
        (0.8744, "| 87% |", True),
        (0.8744, "| .875 |", False),
        (0.8744, "| 1 |", False),
        (0.8744, "| seed 1, .86 |", False),
        (12345, "| 12,345 tokens |", True),
        (12345, "| 12,346 tokens |", False),
        (3, "| 3 seeds |", True),
        (61.7, "| 62 s |", True),
        (61.7, "| 61 s |", False),
        (-0.031, "| -.031 |", True),
        (0.031, "| ± .031 |", True),
    ],
)
def test_printed_numbers(value, text, expected):
    assert is_printed(value, text) is expected


def test_wrong_numbers_are_found(tmp_path):
    (tmp_path / "a.json").write_text('{"test": {"accuracy": [0.874, 0.861]}}', encoding="utf-8")
    line = "| .874 | .861 | <!-- from a.json: test.accuracy.0; test.accuracy.1 -->"
    assert wrong_numbers(line, tmp_path) == []
    assert len(wrong_numbers(line.replace(".874", ".878"), tmp_path)) == 1
    with pytest.raises(KeyError):
        wrong_numbers(line.replace("test.", "train."), tmp_path)
