# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Pushes a model folder to the Hugging Face Hub, in one commit, after checking that it can be opened from there.

    python scripts/push_to_hub.py --model_folder runs/clm --repo_id USER/NAME --dry_run
    python scripts/push_to_hub.py --model_folder runs/clm --repo_id USER/NAME --private --tag v1.0
    python scripts/push_to_hub.py --model_folder runs/clm --repo_id OTHER/NAME --create_pr
    python scripts/push_to_hub.py --model_folder runs/clm --repo_id USER/NAME --space explorer.html

The token is HF_TOKEN, or that of `hf auth login`. What a training run leaves behind (checkpoints, optimizer, logs,
pickles) stays here, and is listed. A folder without a card (README.md) gets one from the run.json of its training run.
With --space a page of `explore_sorting.py` becomes a static Space next to the model, and the card links it.
"""

import tempfile
from pathlib import Path

from transformers import HfArgumentParser

from hub.folder_checks import check_folder
from hub.run_card import card_from_run
from hub.space import check_page
from hub.upload import Push, PushArguments


def main() -> None:
    (args,) = HfArgumentParser(PushArguments).parse_args_into_dataclasses()
    folder = Path(args.model_folder)
    if args.space:
        check_page(Path(args.space))
    with tempfile.TemporaryDirectory() as drafts:

        def make_card(folder: Path) -> Path | None:
            text = card_from_run(folder, args.repo_id.split("/")[-1], args.license)
            if text is None:
                return None
            draft = Path(drafts) / "README.md"
            draft.write_text(text, encoding="utf-8")
            print(text)
            if args.license == PushArguments.license:
                print(f"README.md: the licence is given as {args.license}; name yours with --license.")
            return draft

        files = check_folder(folder, make_card)
        if args.dry_run:
            print(f"dry run: this would go to {args.repo_id}; nothing was sent.")
            if args.space:
                print(f"{args.space} would be the page of a Space of the same name.")
        else:
            Push(args, files).run()


if __name__ == "__main__":
    main()
