# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
`docs/lesson.md` and `docs/lesson.zh.md`: sixteen sections with a figure and a table each, the same in both languages; the
numbers are those of `results/`, and the figures those that `scripts/maintain.py figures` draws now.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maintenance import documents
from maintenance import figures as lesson_figures
from maintenance.figures import LESSON, path_of
from maintenance.numbers import load_entries
from markdown_parts import ROOT, cells, code_blocks, numbers, read, tables


ENGLISH, CHINESE = ROOT / "docs" / "lesson.md", ROOT / "docs" / "lesson.zh.md"
DOCUMENTS = pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=lambda path: path.name)


def sections(document: Path) -> list[str]:
    """The text of each, from its heading on."""
    return re.split(r"^(?=## )", read(document), flags=re.MULTILINE)[1:]


# Documents -----------------------------------------------------------------------------------------------------------


@DOCUMENTS
def test_every_table_is_written_from_results(document):
    assert not tables(documents.BLOCK.sub("", read(document)))
    for table in tables(read(document)):
        assert all(numbers(row) for row in table), table


@DOCUMENTS
def test_sixteen_sections_with_a_figure_and_a_table(document):
    found = sections(document)
    assert [int(re.match(r"## (\d+)\. ", section)[1]) for section in found] == list(range(1, 17))
    for number, section in enumerate(found, 1):
        figures = re.findall(r"^!\[[^\]]+\]\((\S+)\)$", section, re.MULTILINE)
        assert len(figures) == 1 and figures[0].startswith(f"figures/lesson-{number:02}-"), f"section {number}"
        assert len(tables(section)) == 1, f"section {number}"


def test_figures_have_captions_in_chinese():
    for number, section in enumerate(sections(CHINESE), 1):
        (kind,) = re.findall(rf"^!\[.+\]\(figures/\S+\)\n\n\*图 {number}（(..)）：.+。\*\n\n", section, re.MULTILINE)
        assert kind in ("示意", "公式", "测量")


def test_languages_say_the_same():
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        for pattern in (r"\]\((figures/\S+)\)", r"^```.*?^```$", r"^\$\$.*?\$\$$"):
            flags = re.DOTALL | re.MULTILINE
            assert re.findall(pattern, english, flags) == re.findall(pattern, chinese, flags)
        rows, translated = tables(english)[0], tables(chinese)[0]
        assert [numbers(row) for row in rows] == [numbers(row) for row in translated]
        assert [len(cells(row)) for row in rows] == [len(cells(row)) for row in translated]


def test_languages_quote_the_same_numbers():
    for entry in load_entries(ROOT):
        quoted = [set(re.findall(r"{.*?}", quote)) for name, quote in entry["quotes"].items() if "lesson" in name]
        assert len(quoted) in (0, 2) and quoted[:1] == quoted[1:], entry["quotes"]


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(read(ENGLISH), "python")
    assert blocks
    for block in blocks:
        exec(compile(block, ENGLISH.name, "exec"), {"__name__": "__main__"})


# Figures -------------------------------------------------------------------------------------------------------------


def assert_same(shown: Any, computed: Any, where: str) -> None:
    """Nested dicts and lists of numbers and words; the last digit may differ from machine to machine."""
    if isinstance(computed, dict):
        assert list(shown) == list(computed), where
        for key, value in computed.items():
            assert_same(shown[key], value, f"{where}: {key}")
    elif isinstance(computed, list):
        assert len(shown) == len(computed), where
        for number, (left, right) in enumerate(zip(shown, computed)):
            assert_same(left, right, f"{where}[{number}]")
    elif isinstance(computed, str):
        assert shown == computed, where
    else:
        assert shown == pytest.approx(computed, rel=1e-3, abs=2e-3), where


def written_in(path: Path) -> dict[str, Any]:
    """What a figure says that it shows."""
    with Image.open(path) as image:
        return json.loads(image.text["Description"])


@pytest.mark.parametrize("name", LESSON)
def test_figures_show_what_would_be_drawn_now(name):
    assert_same(written_in(path_of(name)), LESSON[name][0](), name)


def test_figures_are_small_and_no_more_than_are_used():
    files = list((ROOT / "docs" / "figures").glob("lesson-*.png"))
    assert {file.name for file in files} == {path_of(name).name for name in LESSON}
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 80_000 and sum(sizes) < 1_000_000


def test_command_draws_the_figures(tmp_path, monkeypatch):
    drawn = {}
    names = ["05-balancing", "09-time"]
    for name in names:
        compute, draw = LESSON[name]
        keep = {}
        monkeypatch.setitem(LESSON, name, (compute, lambda data, d=draw, k=keep: k.setdefault("figure", d(data))))
        drawn[name] = keep
    monkeypatch.setattr(lesson_figures.plt, "close", lambda figure: None)
    lesson_figures.main(["--output_dir", str(tmp_path), "--only", *names])
    for name in names:
        assert_same(written_in(path_of(name, tmp_path)), written_in(path_of(name)), name)
    # The marks on the paper are the numbers.
    panels = drawn["05-balancing"]["figure"].axes
    for panel, matrix in zip(panels, lesson_figures.balancing().values(), strict=True):
        assert panel.images[0].get_array().tolist() == matrix
    rows = json.loads((ROOT / "results" / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))["rows"]
    lines = {line.get_label(): line for line in drawn["09-time"]["figure"].axes[0].lines}
    for name in ("sinkhorn soft", "full attention", "local"):
        for length, ratio in zip(*lines[name].get_data(), strict=True):
            assert ratio == pytest.approx(rows[name][str(int(length))]["forward_backward"]["ratio_to_floor"], abs=1e-3)
    monkeypatch.undo()
    lesson_figures.plt.close("all")
