# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Files as users have them: every cell is read as it stands, or the place that cannot be read is named."""

import codecs
import csv
import datetime
import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from helpers import SCRIPTS
from training import delimited, files, json_rows
from training.files import read_file
from training.texts import empty_rows, join_texts


CELLS = [
    "None",
    "NA",
    "null",
    "NaN",
    "",
    "007",
    "1.50",
    "1e5",
    "true",
    "False",
    "2026-01-02",
    "-",
    " x ",
    "#N/A",
    "1,5",
]
TEXTS = [*CELLS, 'she said "yes"', '"quoted"', "two\nlines", "two\r\nlines", "a\ttab", "émoji 🙂", "\u2028", "'"]


def cells(path: Path, column: str = "text") -> list:
    return list(read_file(str(path), [column])[column])


def texts(path: Path, *columns: str, separator: str = " ") -> list[str]:
    columns = columns or ("text",)
    return join_texts(read_file(str(path), columns), list(columns), separator, "the data").to_pylist()


@pytest.mark.parametrize("by", ["csv module", "pandas"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_of_tables_are_their_text(tmp_path, suffix, by):
    path, mark = tmp_path / f"table{suffix}", "\t" if suffix == ".tsv" else ","
    if by == "pandas":
        pandas.DataFrame({"unused": 1, "text": TEXTS}).to_csv(path, sep=mark, index=False)
    else:
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=mark).writerows([("unused", "text"), *((1, text) for text in TEXTS)])
    assert cells(path) == TEXTS
    rows = read_file(str(path), ["text", "nothing"])
    assert rows.column_names == ["unused", "text"] and list(rows.columns) == ["text"] and len(rows) == len(TEXTS)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".array.json", ".parquet"])
def test_cells_of_records_are_their_text(tmp_path, suffix):
    path = tmp_path / f"records{suffix}"
    records = [{"text": text, "unused": row} for row, text in enumerate(TEXTS)]
    if suffix == ".parquet":
        Dataset.from_list(records).to_parquet(path)
    elif suffix == ".array.json":
        path.write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8-sig")
    assert cells(path) == TEXTS
    assert texts(path) == TEXTS
    assert read_file(str(path), ["text"]).column_names == ["text", "unused"]


def test_numbers_of_json_are_written_as_they_stand(tmp_path):
    path = tmp_path / "numbers.jsonl"
    numbers = ["1.50", "12345678901234567890123", "true", "false", "0", "1.0"]
    path.write_text("\n".join(f'{{"text": {number}}}' for number in numbers))
    assert texts(path) == numbers
    path.write_text('{"text": "a"}\n{"other": 1}\n{"text": null}\n')
    assert texts(path) == ["a", "", ""]
    assert read_file(str(path), ["text"]).column_names == ["text", "other"]


def test_an_array_longer_than_a_piece(tmp_path, monkeypatch):
    path = tmp_path / "array.json"
    records = [{"text": "x" * row + "🙂]}, {", "label": [row]} for row in range(60)]
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    for piece in (1, 7, 64):
        monkeypatch.setattr(json_rows, "PIECE", piece)
        assert cells(path) == [record["text"] for record in records]
        assert cells(path, "label") == [record["label"] for record in records]


@pytest.mark.parametrize("name", ["run [v2]", "a::b", "50% *?", "zip:__c__", "ünï {x}"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt"])
def test_signs_in_a_path_mean_nothing(tmp_path, name, kind):
    path = tmp_path / name / f"{name}.{kind}"
    path.parent.mkdir()
    write = {"csv": "to_csv", "jsonl": "to_json", "parquet": "to_parquet"}
    if kind == "txt":
        path.write_text("cats")
    else:
        with open(path, "wb") as file:
            getattr(Dataset.from_dict({"text": ["cats"]}), write[kind])(file)
    assert cells(path) == ["cats"]


def test_an_unused_column_is_not_looked_at(tmp_path):
    """Ten thousand empty notes, and then one: a reader that guesses types by the first rows fails there."""
    path = tmp_path / "notes.csv"
    path.write_text("text,label,notes\n" + "cats,pets,\n" * 9_999 + "cats,pets,at last\n")
    assert cells(path) == ["cats"] * 10_000


def test_quotes_of_a_tsv_that_are_part_of_the_text(tmp_path, capsys):
    path = tmp_path / "train.tsv"
    rows = [f"document {row}" for row in range(12)]
    rows[2], rows[7] = '"Hello there', '"Another one'
    path.write_text("text\tlabel\n" + "".join(f"{text}\tpets\n" for text in rows))
    assert cells(path) == rows
    assert "quotes are read as part of the text, a row a line (12 rows)" in capsys.readouterr().out
    rows[7] = 'the end of it"'  # with row 2 it would enclose what stands between them
    path.write_text("text\tlabel\n" + "".join(f"{text}\tpets\n" for text in rows))
    assert cells(path) == rows
    rows[7] = '"yes" and "no"'
    path.write_text("text\tlabel\n" + "".join(f"{text}\tpets\n" for text in rows))
    assert cells(path) == rows


def test_a_document_longer_than_a_piece_or_pythons_limit(tmp_path):
    path, long = tmp_path / "long.csv", "word " * 300_000
    path.write_text(f'text,label\n"{long}",a\nshort,b\n')
    assert cells(path) == [long, "short"]
    path.write_text(json.dumps([{"text": long}, {"text": "short"}]))
    path = path.rename(tmp_path / "long.json")
    assert cells(path) == [long, "short"]
    assert csv.field_size_limit() == 131072, "the limit of others stays"


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("open.csv", 'text,label\na,b\n"open,a\nb,c\n', r"line 3: unexpected end.*a quote inside it stands twice"),
        ("inner.csv", 'text,label\n"Hello" he said,a\n', "line 2: ',' expected after '\"'"),
        ("many.csv", "text,label\na,b\n\n1,2,3\n", "line 4: 3 cells where the names of the columns are 2. A comma in"),
        ("few.tsv", "text\tlabel\na\tb\nc\n", "line 3: 1 cells.*A tab in"),
        ("twice.csv", "text,text,label\na,b,c\n", "2 columns named 'text'"),
        ("head.csv", "text,label\n", "has no rows"),
        ("blank.csv", "\n\n", "has no rows"),
        ("head.json", "[]", "has no rows"),
        ("broken.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON.*one object a line"),
        ("broken.json", '[{"text": "a"}, {"text": ]', "row 1 .counted from 0. is not JSON"),
        ("cut.json", '[{"text": "a"}', "a comma or the end of the array is missing behind row 0"),
        ("words.jsonl", '{"text": "a"}\n"words"\n', 'line 2: it needs an object .* got "words"'),
        ("numbers.json", "[1, 2]", "row 0, counted from 0: it needs an object"),
        ("columns.json", '{"text": ["a", "b"], "label": [0, 1]}', "whole columns in one object"),
        ("no.parquet", "text", "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=f"(?s)error: .*{name}.*{words}"):
        read_file(str(tmp_path / name), ["text", "label"])


def test_text_that_is_not_utf8(tmp_path, monkeypatch):
    path = tmp_path / "latin1.csv"
    for piece in (1, 2, 3, 1 << 20):
        monkeypatch.setattr(files, "PIECE", piece)
        path.write_bytes("text,label\n🙂café,a\n".encode())
        assert cells(path) == ["🙂café"]
        path.write_bytes("text,label\n🙂".encode() + b"caf\xe9,a\n")
        with pytest.raises(SystemExit, match=r"not UTF-8 text \(byte 18\).*iconv -f latin1 -t utf-8"):
            cells(path)
        path.write_bytes(b"text,label\nxx\xe2\x82")  # cut in the middle of a letter
        with pytest.raises(SystemExit, match=r"byte 13\)"):
            cells(path)
    path.write_bytes(codecs.BOM_UTF16_LE + "text,label\ncafé,a\n".encode("utf-16-le"))
    with pytest.raises(SystemExit, match=r"byte 0\).*iconv -f utf-16 -t utf-8"):
        cells(path)


def test_parquet_says_what_its_columns_are(tmp_path):
    path = tmp_path / "table.parquet"
    names = ClassLabel(names=["neg", "pos"])
    features = Features({"text": Value("string"), "label": names, "all": List(names), "day": Value("date32")})
    day = datetime.date(2026, 1, 2)
    table = {"text": ["a", None], "label": [1, -1], "all": [[0, 1], []], "day": [day, None]}
    Dataset.from_dict(table, features=features).to_parquet(path)
    rows = read_file(str(path), ["text", "label", "all", "day"])
    assert list(rows["label"]) == [1, -1] and list(rows["all"]) == [[0, 1], []] and list(rows["text"]) == ["a", None]
    assert rows.features["label"] == names and rows.features["all"] == List(names)
    assert texts(path, "day", "text", separator=": ") == ["2026-01-02: a", ": "]


def test_cells_that_are_no_texts(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text('{"text": ["one", "two"]}\n{"text": "three"}\n{"text": []}\n')
    assert texts(path, separator="\n") == ["one\ntwo", "three", ""]
    path.write_text('{"text": "a"}\n{"text": {"role": "user"}}\n{"text": [1, 2]}\n')
    with pytest.raises(
        SystemExit, match="the text of rows 1, 2, counted from 0, is no text but an object.*column text"
    ):
        texts(path)


def test_empty_texts(tmp_path):
    path = tmp_path / "empty.csv"
    path.write_text('text,label\n"",a\n" \n\t",b\nx,c\n\u00a0,d\n', encoding="utf-8")
    rows = read_file(str(path), ["text"])
    assert empty_rows(join_texts(rows, ["text"], " ", "the data")) == [0, 1, 3]


def test_a_large_file_is_read_in_pieces(tmp_path):
    """With one emoji, four bytes for every letter of the file would be needed to hold it as one Python text."""
    path = tmp_path / "large.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n🙂,a\n")
        file.writelines("0123456789abcdef" * 64 + ",b\n" for _ in range(32 * 1024))  # 32 MiB
    program = (
        "import resource, sys; from training.files import read_file; from training.texts import join_texts\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before = peak(); rows = read_file({str(path)!r}, ['text', 'label'])\n"
        "join_texts(rows, ['text'], ' ', 'data'); print((peak() - before) / 1024)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 96, "three times the file"


def test_both_readings_of_a_tsv_are_tried(tmp_path):
    path = tmp_path / "one.tsv"
    path.write_text('text\n"two\nlines"\nplain\n')
    assert cells(path) == ["two\nlines", "plain"]
    path.write_text('text\n"two\nplain\n')
    assert cells(path) == ['"two', "plain"]
    assert delimited._tsv_quoting(path) == csv.QUOTE_NONE
