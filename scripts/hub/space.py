# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""A static Space with a page of `explore_sorting.py`, next to a model on the Hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, RepoFile, constants
from huggingface_hub.errors import RepositoryNotFoundError

from common.errors import UserError
from exploring.page import read_page


CARD = """\
---
title: {title}
sdk: static
app_file: index.html
pinned: false
models:
- {repo_id}
---

What [{repo_id}]({endpoint}/{repo_id}) sorts in a document: one page without a server, made by `explore_sorting.py`.
"""
LINK = """
## What it sorts

[An interactive page]({url}): click a passage of a document and see what it reads, in each layer and head.
"""


def check_page(path: Path) -> None:
    """Refuses what `explore_sorting.py` did not write."""
    try:
        data = read_page(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--space: there is no page {path}; make one with scripts/explore_sorting.py.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--space: {path} cannot be read: {error}.") from None
    except ValueError:
        data = None
    if data is None:
        raise UserError(f"--space: {path} is no page of scripts/explore_sorting.py; make one with it.")


def space_url(repo_id: str) -> str:
    return f"{constants.ENDPOINT}/spaces/{repo_id}"


def check_space(api: HfApi, repo_id: str) -> None:
    """Refuses to write into a Space that is something else."""
    try:
        sdk = api.space_info(repo_id).sdk
    except RepositoryNotFoundError:
        return
    if sdk not in (None, "static"):
        raise UserError(
            f"there is a Space {repo_id} with the SDK {sdk}, which is not such a page; move it, or leave --space out."
        )


def space_files(page: Path, repo_id: str, folder: Path) -> dict[str, Path]:
    """What the Space holds, by path there; the card is written to `folder`."""
    card = folder / "space.md"
    title = f"What {repo_id.split('/')[1]} sorts"
    card.write_text(CARD.format(title=title, repo_id=repo_id, endpoint=constants.ENDPOINT), encoding="utf-8")
    return {"README.md": card, "index.html": page}


def linked_card(text: str, repo_id: str) -> str:
    """The model's card with a link to the Space, unless it has one."""
    url = space_url(repo_id)
    return text if url in text else text.rstrip("\n") + "\n" + LINK.format(url=url)


def space_tree(api: HfApi, repo_id: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, repo_type="space")
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def upload_space(api: HfApi, repo_id: str, files: dict[str, Path]) -> None:
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file)) for path, file in files.items()]
    api.create_commit(repo_id, operations, commit_message="Upload the page", repo_type="space")
