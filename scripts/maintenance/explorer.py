# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Writes the pages of `docs/explorer/`: what the shipped classifier and the shipped language model sort in a text that
they never read, as `explore_sorting.py` shows it.

    python scripts/maintain.py explorer
    python scripts/maintain.py explorer --template_only  # the numbers stay, the page around them is renewed
"""

from pathlib import Path

from common.command_line import make_parser
from exploring.explore import ExploreArguments, explore
from exploring.page import read_page, write_page
from maintenance.recipes import CAUSAL_LM, CLASSIFIER


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "explorer"
TOKENS = {CLASSIFIER: 16_384, CAUSAL_LM: 2_000}


def example(name: str) -> tuple[str, str]:
    """A text of the test part of a model's data, and what it is."""
    from training.shipped_data import PARTIES, load_address_splits, load_passages

    if name == CLASSIFIER:
        passage = next(row for row in load_passages()["test"] if row["president"] == "Abraham Lincoln")
        party = PARTIES[passage["label"]]
        return passage["text"], f"From {passage['president']}'s address of {passage['year']} ({party})"
    address = load_address_splits(0)["test"][0]
    return address["text"], f"{address['president']}'s address of {address['year']}, its beginning"


def path_of(name: str, folder: Path = FOLDER) -> Path:
    return folder / f"{name}.html"


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "maintain.py explorer")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="Where they go; default: docs/explorer.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=TOKENS, help=f"Some of: {', '.join(TOKENS)}.")
    parser.add_argument("--template_only", action="store_true", help="Keep the numbers of the pages that are there.")
    options = parser.parse_args(arguments)
    for name in options.only or TOKENS:
        path = path_of(name, options.output_dir)
        if options.template_only:
            print(f"{path}: {write_page(read_page(path.read_text(encoding='utf-8')), path):,} bytes")
            continue
        text, title = example(name)
        args = ExploreArguments(
            model_name_or_path=str(ROOT / "checkpoints" / name),
            output=str(path),
            text=text,
            title=title,
            max_seq_length=TOKENS[name],
        )
        explore(args)
