# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Writes one HTML page that shows what a model sorts in a document: click a passage and see what it reads, how strongly,
in each layer and head, before and after balancing.

    python scripts/explore_sorting.py --model_name_or_path runs/mine --text_file speech.txt --output explorer.html

The page is one file, which needs no network. Any Sinkhorn model works. Of a classifier it also shows the answer, and
what becomes of it when a passage is left out; of a language model the next token, and what the last one reads.
"""

from transformers import HfArgumentParser

from exploring.explore import ExploreArguments, explore


def main() -> None:
    (args,) = HfArgumentParser(ExploreArguments).parse_args_into_dataclasses()
    explore(args)


if __name__ == "__main__":
    main()
