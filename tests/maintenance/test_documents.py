# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What the documents say is true: tables and numbers are those of `results/`, links and anchors lead somewhere, and the
commands that they name exist. The last part tests the checks themselves.
"""

import importlib
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

import maintain
from configuration_sinkhorn import SinkhornConfig
from maintenance import documents, numbers, tables
from markdown_parts import DOCUMENTS, FENCED, NUMBER, ROOT, anchors, cells, code_blocks, links, name_of, read
from markdown_parts import tables as tables_in


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
SPECS = tables.load_specs(ROOT / "docs" / "tables")
ENTRIES = numbers.load_entries(ROOT)
# All numbers of their tables and sentences have a source.
STRICT = ("README.md", "README.zh.md", "docs/benchmarks.md")


# Numbers -------------------------------------------------------------------------------------------------------------


def test_writing_the_tables_again_changes_nothing():
    written = documents.documents()
    assert [name_of(path) for path, text in written.items() if text != read(path)] == [], "run scripts/maintain.py"
    # No other document has markers.
    marked = {path for path in DOCUMENTS if documents.BLOCK.search(read(path))}
    assert marked == written.keys()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "words" in spec], ids=lambda spec: spec["documents"][0])
def test_every_translation_is_used(spec):
    texts = {text for table in spec["tables"].values() for text in texts_of(table)}
    for words in spec["words"].values():
        assert words.keys() - texts == set()


def texts_of(table: dict) -> list[str]:
    """Headings, labels and other cells, before numbers are filled in."""
    columns = table.get("columns")
    texts = [table.get("corner", ""), *columns.values()] if columns else [*table["head"]]
    for row in tables.rows_of(table):
        texts += [row["label"], *tables.cells_of(table, row)]
    return texts


def test_numbers_in_sentences_are_those_of_the_results():
    assert numbers.wrong_numbers(ROOT, ENTRIES) == []


@pytest.mark.parametrize("name", STRICT)
def test_every_number_of_a_table_has_a_source(name):
    text = read(ROOT / name)
    for table in tables_in(documents.BLOCK.sub("", text)):
        assert not any(NUMBER.search(cell) for row in table for cell in cells(row)[1:]), table
    for spec in (spec for spec in SPECS if name in spec["documents"]):
        for table in spec["tables"].values():
            for row in tables.rows_of(table):
                for cell in tables.cells_of(table, row):
                    # A length says what was measured, and is no result.
                    rest = re.sub(r"[\d,]+ tokens", "", tables.PLACEHOLDER.sub("", cell))
                    assert not NUMBER.search(rest), cell


@pytest.mark.parametrize("name", STRICT)
def test_every_decimal_of_a_sentence_has_a_source(name):
    quoted = [
        number
        for entry in ENTRIES
        if name in entry["quotes"]
        for number in numbers.MARKED.findall(entry["quotes"][name])
    ]
    text = FENCED.sub("", documents.BLOCK.sub("", read(ROOT / name)))
    text = re.sub(r"\]\([^)]*\)", "]", text)
    # A version, the goal, and a size of noise.
    found = [number for number in NUMBER.findall(text) if "." in number and number not in ("3.11", "1.2", ".1")]
    assert sorted(found) == sorted(number for number in quoted if "." in number)


@pytest.mark.parametrize("folder", ["docs", "model_cards", "results", "scripts"])
def test_no_sources_in_comments(folder):
    paths = [*ROOT.glob("README*.md"), *(ROOT / folder).rglob("*.md"), *(ROOT / folder).rglob("*.py")]
    assert [path for path in paths if "<!-- from" in read(path)] == []


def test_settings_and_their_defaults():
    (table,) = tables_in(read(ROOT / "docs" / "usage.md"))
    for row in table:
        name, default, _ = cells(row)
        value = getattr(SinkhornConfig(), name.strip("`"))
        shown = default.removeprefix("all ").strip("`")
        values = set(value) if default.startswith("all ") else {value}
        assert {json.dumps(value) if isinstance(value, str) else str(value) for value in values} == {shown}, name


# Results -------------------------------------------------------------------------------------------------------------


def rows_of_results() -> list[tuple[list[str], str]]:
    """(patterns of files, pages that quote them) of each row of results/README.md."""
    (table,) = tables_in(read(ROOT / "results" / "README.md"))
    return [(re.findall(r"`([^`]+)`", cells(row)[0]), cells(row)[2]) for row in table]


def test_every_file_of_results_is_listed():
    patterns = [pattern for found, _ in rows_of_results() for pattern in found]
    files = [
        path.relative_to(ROOT / "results").as_posix()
        for path in (ROOT / "results").rglob("*")
        if path.is_file() and path.suffix != ".md"
    ]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in files)] == []


def test_the_pages_that_quote_a_file_are_listed():
    quoted: set[tuple[str, str]] = set()
    for spec in SPECS:
        for file in re.findall(r"results/[^|'\"]+?\.json", str(spec["tables"])):
            quoted |= {(file, document) for document in spec["documents"]}
    for entry in ENTRIES:
        quoted |= {(entry["file"], document) for document in entry["quotes"]}
    for file, document in sorted(quoted):
        page = f"(../{document.replace('.zh', '')})"
        # The first row that fits: the last ones name single files that a pattern above them takes in too.
        listed = [
            pages for patterns, pages in rows_of_results() if any(fnmatch(f"{file}", f"results/{p}") for p in patterns)
        ]
        assert any(page in pages for pages in listed), f"{file} is quoted in {document}"


# Links and commands --------------------------------------------------------------------------------------------------


@each_document
def test_linked_files_and_anchors_exist(document):
    for path, anchor in links(read(document)):
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor in anchors(read(target)), f"{path}#{anchor}"


@each_document
def test_commands_exist(document):
    text = read(document)
    for script in re.findall(r"(?:python|launch|torchrun[^`\n]*?) (scripts/\S+?\.py)", text):
        assert (ROOT / script).is_file(), script
    for command in re.findall(r"python scripts/maintain\.py ([a-z_]+)", text):
        assert command in maintain.COMMANDS, command
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *code_blocks(text, "bash")])
    assert set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= targets


def test_commands_of_maintain_exist():
    for module, _ in maintain.COMMANDS.values():
        path = ROOT / "scripts" / f"{module.replace('.', '/')}.py"
        assert "def main(" in read(path), module


def test_without_a_command_all_is_written(monkeypatch):
    called = []

    def imported(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda arguments: called.append(name))

    monkeypatch.setattr(importlib, "import_module", imported)
    maintain.main([])
    assert {"experiments.report", "maintenance.cards", "maintenance.documents"} <= set(called)
    # Documents quote the summary of the experiments, so they come after it.
    assert called.index("experiments.report") < called.index("maintenance.documents")


# The checks themselves -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """A repository with one result, one table and one sentence."""
    scores = {"a": {"mean": 0.874, "std": 0.01, "seeds": [0, 1]}, "b": {"mean": 0.9, "seeds": [0]}}
    (tmp_path / "a.json").write_text(json.dumps({"test": scores, "v.1": [12345], "gap": None}), encoding="utf-8")
    (tmp_path / "docs" / "tables").mkdir(parents=True)
    (tmp_path / "docs" / "tables" / "page.yaml").write_text(
        """
documents: [page.md, page.zh.md]
words: {page.zh.md: {score: 分数, best a: 甲}}
tables:
  scores:
    file: a.json
    corner: ""
    columns: {test: score}
    rows: [{key: a, label: best a}, {key: b, label: b}]
    cell: "{<column>.<row>|.000 ± .000}"
""",
        encoding="utf-8",
    )
    (tmp_path / "docs" / "numbers.yaml").write_text(
        """
- file: a.json
  paths: [test.a.mean, v.1.0]
  quotes: {page.md: "scores {.874} of {12,345}"}
""",
        encoding="utf-8",
    )
    for name in ("page.md", "page.zh.md"):
        text = "It scores .874\nof 12,345.\n\n<!-- BEGIN scores -->\nold\n<!-- END scores -->\n\nEnd.\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_tables_are_written_between_their_markers(folder):
    written = documents.documents(folder)
    assert written[folder / "page.md"] == (
        "It scores .874\nof 12,345.\n\n<!-- BEGIN scores -->\n| | score |\n|---|---|\n"
        "| best a | .874 ± .010 |\n| b | .900 |\n<!-- END scores -->\n\nEnd.\n"
    )
    assert "| | 分数 |\n|---|---|\n| 甲 | .874 ± .010 |" in written[folder / "page.zh.md"]
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    assert documents.documents(folder) == written


def test_markers_and_tables_belong_together(folder):
    page = folder / "page.md"
    page.write_text(read(page).replace("scores -->", "others -->"), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"page.md: markers and tables differ: \['others', 'scores'\]"):
        documents.documents(folder)
    with pytest.raises(SystemExit, match="markers and tables differ"):
        documents.with_tables("<!-- BEGIN a -->\n<!-- END a -->\n" * 2, {"a": ""}, "page.md")


def test_wrong_numbers_are_found(folder):
    page, entries = folder / "page.md", numbers.load_entries(folder)
    assert numbers.wrong_numbers(folder, entries) == []
    (entry,) = entries
    wrong = [entry | {"quotes": {"page.md": quote}} for quote in ("scores {.875} of {12,345}", "{.874} of 12,345")]
    assert numbers.wrong_numbers(folder, wrong) == [
        "page.md: found 0 times: scores .875 of 12,345",
        "page.md: .875 is 0.874 in a.json, test.a.mean: scores .875 of 12,345",
        "page.md: 1 numbers for 2 paths: .874 of 12,345",
    ]
    page.write_text(read(page) * 2, encoding="utf-8")
    assert numbers.wrong_numbers(folder, entries) == ["page.md: found 2 times: scores .874 of 12,345"]
    with pytest.raises(KeyError):
        numbers.wrong_numbers(folder, [entry | {"paths": ["test.c.mean", "v.1.0"]}])


@pytest.mark.parametrize(
    "value, printed, expected",
    [
        (0.8744, ".874", True),
        (0.8744, "0.87", True),
        (0.8744, "87.4 %", True),
        (0.8744, "87%", True),
        (0.8744, ".875", False),
        (0.8744, "1", False),
        (12345, "12,345", True),
        (12345, "12,346", False),
        (3, "3", True),
        (61.7, "62", True),
        (61.7, "61", False),
        (-0.031, "-.031", True),
    ],
)
def test_rounding(value, printed, expected):
    assert numbers.rounds_to(value, printed) is expected


@pytest.mark.parametrize(
    "value, sample, expected",
    [
        (0.8744, "0.00", "0.87"),
        (0.8744, ".000", ".874"),
        (-0.8744, ".000", "-.874"),
        (1.0, ".000", "1.000"),
        (0.40941, "0.0 %", "40.9 %"),
        (1946752, "0,0", "1,946,752"),
        (1999, "0", "1999"),
        (7204224, "0.0 MB", "7.2 MB"),
        ({"mean": 0.5, "std": 0.0123}, ".000 ± .000", ".500 ± .012"),
        ({"mean": 0.5}, ".000 ± .000", ".500"),
        ({"mean": 0.5, "std": 0.0123}, ".000", ".500"),
    ],
)
def test_formats(value, sample, expected):
    assert tables.formatted(value, sample) == expected


def test_the_best_of_those_with_the_most_seeds_is_bold(folder):
    scores = {name: {"mean": mean, "std": 0.1, "seeds": seeds} for name, mean, seeds in (
        ("a", 0.2, [0, 1]), ("b", 0.4, [0, 1]), ("c", 0.9, [0]), ("d", 0.4, [0, 1]),
    )}  # fmt: skip
    (folder / "b.json").write_text(json.dumps(scores), encoding="utf-8")
    spec = {"file": "b.json", "corner": "", "columns": {name: name for name in "abcde"}, "cell": "{<column>|.0 ± .0}"}

    def row(best: str | None) -> str:
        return tables.table(spec | {"rows": [{"key": "x", "label": "x", "best": best}]}, root=folder).splitlines()[2]

    assert row("higher") == "| x | .2 ± .1 | **.4** ± .1 | .9 ± .1 | **.4** ± .1 | - |"
    assert row("lower") == "| x | **.2** ± .1 | .4 ± .1 | .9 ± .1 | .4 ± .1 | - |"
    assert "**" not in row(None)


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"c": "c"}, "not in the results"),  # a row without any number
        ([["label", "{test.c|.000}"]], "not in the results"),
        ([["label", "{gap|.000}"]], "not in the results"),
        ([["label", "{test.a|.000}", "one too many"]], "3 cells under 2 headings"),
        ([["label", "{test|.000 ± .000}"]], "mean"),
    ],
)
def test_what_is_not_in_the_results_is_an_error(folder, rows, message):
    spec = {
        "file": "a.json",
        "corner": "",
        "columns": {"test": "score"},
        "rows": rows,
        "cell": "{<column>.<row>|.000}",
    }
    with pytest.raises((SystemExit, KeyError), match=message):
        tables.table(spec, root=folder)


def test_keys_may_have_dots():
    data = {"rows": [{"PyPI sinkhorn, 0.11": {"8": 2.5}}]}
    assert tables.look_up(data, "rows.0.PyPI sinkhorn, 0.11.8") == 2.5
    with pytest.raises(KeyError, match="9"):
        tables.look_up(data, "rows.0.PyPI sinkhorn, 0.11.9")


def test_links_and_anchors():
    text = "# A b, `c`: d\n\n[x](a.md#b) [y](#c) [z](https://h.org/#d) ![f](g.png)\n\n```bash\n# no heading\n```\n"
    assert links(text) == [("a.md", "b"), ("", "c"), ("g.png", "")]
    assert anchors(text) == {"a-b-c-d"}
