# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
`scripts/push_to_hub.py` against a Hub on the loopback interface, and what it pushed, opened by its id where this package
is not installed.
"""

import copy
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, pipeline

import modeling_sinkhorn
from configuration_sinkhorn import SinkhornConfig
from elsewhere import Elsewhere, Result, environment_without_ours
from exploring.page import write_page
from helpers import BESIDE_THE_MODEL, SCRIPTS
from hub_server import JOHN, MARY, MARY_READS, Blob, HubServer, Repository
from hub_users import Users
from maintenance.recipes import RECIPES


TEXT = "The state of the Union is strong."
GENERATE = {"max_new_tokens": 8, "do_sample": False}
CARD = """---
license: apache-2.0
library_name: transformers
tags:
- sinkhorn
---

# A tiny model
"""


@pytest.fixture(autouse=True)
def sound_traffic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every request of every test was one that the Hub has, and no token went astray."""
    yield
    if "hub" in request.fixturenames:
        hub = request.getfixturevalue("hub")
        unknown, problems = list(hub.unknown), list(hub.problems)
        hub.unknown.clear()
        hub.problems.clear()
        assert unknown == [] and problems == []


@pytest.fixture(scope="module")
def users(elsewhere: Elsewhere) -> Users:
    return Users(elsewhere)


Push = Callable[..., Result]


@pytest.fixture
def push(users: Users) -> Push:
    def run(*flags, token: str | None = MARY, status: int = 0, endpoint=None, offline=False) -> Result:
        argv = [SCRIPTS / "push_to_hub.py", *flags]
        result = users.push(*argv, token=token or "", endpoint=endpoint, offline=offline)
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        assert token is None or token not in result.output
        return result

    return run


def save_model(folder: Path, class_name: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = SinkhornConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        block_size=4,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = getattr(modeling_sinkhorn, class_name)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Not to be changed: `folder` is a copy for that."""
    return save_model(tmp_path_factory.mktemp("models") / "clf", "SinkhornForSequenceClassification", tiny_tokenizer)


@pytest.fixture
def folder(classifier: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classifier, tmp_path / "model"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository that no other test pushes to."""
    return "mary/" + re.sub(r"\W+", "-", request.node.name).strip("-")[:80]


def contents(repo: Repository, revision: str = "main") -> dict[str, bytes]:
    return {path: blob.content for path, blob in repo.find(revision).files.items() if path != ".gitattributes"}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_page({"model": "model", "text": "speech.txt", "tokens": []}, tmp_path / "explorer.html")
    return tmp_path / "explorer.html"


# --------------------------------------------------------------------------------------------------------------------
# The round trip
# --------------------------------------------------------------------------------------------------------------------

LOADS = {
    "AutoModel": ("load", "mary/clf", {"auto_class": "AutoModel"}),
    "AutoModelForSequenceClassification": ("load", "mary/clf", {"auto_class": "AutoModelForSequenceClassification"}),
    "AutoModelForCausalLM": ("load", "mary/clm", {"auto_class": "AutoModelForCausalLM"}),
    "text-classification": ("pipe", "mary/clf", {"task": "text-classification", "options": {"top_k": None}}),
    "text-generation": ("pipe", "mary/clm", {"task": "text-generation", "options": GENERATE}),
}


@dataclass
class RoundTrip:
    here: dict[str, Any]
    online: dict[str, Result]
    offline: dict[str, Result]
    commits: dict[str, str]
    requests_offline: int


def answers_here(folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the models that were saved give in this process, with the package."""
    classifier = modeling_sinkhorn.SinkhornForSequenceClassification.from_pretrained(folders["mary/clf"]).eval()
    writer = modeling_sinkhorn.SinkhornForCausalLM.from_pretrained(folders["mary/clm"]).eval()
    tokenizer = copy.deepcopy(tokenizer)  # a pipeline changes its side of padding, and other tests use it
    batch = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        return {
            "AutoModel": classifier.model(**batch)[0].tolist(),
            "AutoModelForSequenceClassification": classifier(**batch)[0].tolist(),
            "AutoModelForCausalLM": writer(**batch)[0].tolist(),
            "text-classification": pipeline("text-classification", model=classifier, tokenizer=tokenizer)(
                TEXT, top_k=None
            ),
            "text-generation": pipeline("text-generation", model=writer, tokenizer=tokenizer)(TEXT, **GENERATE),
        }


@pytest.fixture(scope="module")
def round_trip(
    hub: HubServer,
    users: Users,
    classifier: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> RoundTrip:
    """
    A public classifier and a private language model. Then a second commit with other weights, so that only the pinned
    revision has the numbers of `here`.
    """
    base = tmp_path_factory.mktemp("round")
    folders = {"mary/clf": classifier, "mary/clm": save_model(base / "lm", "SinkhornForCausalLM", tiny_tokenizer)}
    other = {
        "mary/clf": save_model(base / "clf2", "SinkhornForSequenceClassification", tiny_tokenizer, seed=1),
        "mary/clm": save_model(base / "lm2", "SinkhornForCausalLM", tiny_tokenizer, seed=1),
    }
    script = str(SCRIPTS / "push_to_hub.py")
    commits = {}
    for models in (folders, other):
        for repo, folder in models.items():
            argv = [script, "--model_folder", str(folder), "--repo_id", repo]
            argv += ["--private"] if repo == "mary/clm" else []
            result = users.push(*argv)
            assert result.status == 0, result.output
            commits.setdefault(repo, hub.repos[repo].head.oid)
            assert contents(hub.repos[repo]) == contents_of(folder)

    def load_all(**how) -> dict[str, Result]:
        return {
            name: users.pull(function, repo=repo, revision=commits[repo], text=TEXT, **arguments, **how)
            for name, (function, repo, arguments) in LOADS.items()
        }

    online = load_all(token=MARY)
    before = len(hub.log)
    offline = load_all(offline=True)
    here = answers_here(folders, tiny_tokenizer)
    return RoundTrip(here, online, offline, commits, len(hub.log) - before)


def test_the_package_is_hidden_there(elsewhere):
    assert elsewhere.do("found", "", {}).checked() == []


@pytest.mark.parametrize("where", ["online", "offline"])
@pytest.mark.parametrize("name", LOADS)
def test_the_same_numbers_from_the_hub(round_trip, hub, name, where):
    """Pinned to the first commit, in a process without this package; offline, from the cache that the pull left."""
    result, repo = getattr(round_trip, where)[name], LOADS[name][1]
    assert result.status == 0, result.output
    commit = round_trip.commits[repo]
    module = result.report["module"]
    assert module.startswith("transformers_modules.") and commit in module, module
    assert result.report.get("missing", []) == []
    assert result.report["answer"] == round_trip.here[name]


def test_offline_asks_nothing(round_trip):
    assert round_trip.requests_offline == 0


def test_the_later_commit_has_other_weights(round_trip, hub):
    """Else the pinned revision would prove nothing."""
    for repo, commit in round_trip.commits.items():
        first, last = hub.repos[repo].commits[commit], hub.repos[repo].head
        assert last.parent == first.oid
        changed = {path for path in last.files if last.files[path] != first.files[path]}
        assert changed == {"model.safetensors"}


def test_private_is_private(round_trip, hub):
    assert hub.repos["mary/clm"].private and not hub.repos["mary/clf"].private


SHIPPED = {
    "sinkhorn-sotu-encoder": ("fill-mask", "The state of the <mask> is strong.", {}),
    "sinkhorn-books-encoder": ("fill-mask", "And God said unto <mask>, Speak.", {}),
    "sinkhorn-sotu-party": ("text-classification", TEXT * 100, {"top_k": None}),
    "sinkhorn-sotu-lm": ("text-generation", TEXT, GENERATE),
}


# One quick; each is half a dozen processes' work.
@pytest.mark.parametrize("model", [pytest.param(m, marks=() if "party" in m else pytest.mark.slow) for m in SHIPPED])
def test_the_documents_command_makes_a_public_model_that_works(hub, users, model, tmp_path):
    root = SCRIPTS.parent
    (command,) = re.findall(
        r"scripts/push_to_hub.py (.*/sinkhorn-sotu-lm)$", (root / "docs" / "hub.md").read_text(), re.M
    )
    flags = (
        command.replace("sinkhorn-sotu-lm", model)
        .replace("USER/", "mary/")
        .replace("checkpoints/", f"{root}/checkpoints/")
    )
    users.push(SCRIPTS / "push_to_hub.py", *flags.split()).checked()
    repo = f"mary/{model}"
    assert not hub.repos[repo].private
    there, folder = contents(hub.repos[repo]), contents_of(root / "checkpoints" / model)
    assert f'"{repo}"'.encode() in there["README.md"]
    assert {path: there[path] for path in folder if path.endswith(".py")} == {  # which are links here
        path.name: path.read_bytes() for path in root.glob("*_sinkhorn.py") if path.stem not in BESIDE_THE_MODEL
    }
    assert there.keys() == folder.keys()
    task, text, options = SHIPPED[model]
    pinned = {"repo": repo, "revision": hub.repos[repo].head.oid}
    report = users.pull("pipe", task=task, text=text, options=options, **pinned).checked()
    here = pipeline(task, model=str(root / "checkpoints" / model))(text, **options)
    assert report["answer"] == json.loads(json.dumps(here, default=float))
    assert report["module"].startswith("transformers_modules.")
    snippets = re.findall(r"^```python\n(.*?)^```$", there["README.md"].decode(), re.DOTALL | re.MULTILINE)
    assert snippets
    for code in snippets:  # as the card has them
        assert f'"{repo}"' in code
        program = tmp_path / "snippet.py"
        program.write_text(code, encoding="utf-8")
        result = users.pull("script", argv=[str(program)])
        assert result.status == 0 and result.output.strip(), result.output


def test_every_shipped_model_is_pushed():
    assert SHIPPED.keys() == RECIPES.keys()


def test_the_librarys_upload_of_a_shipped_folder_is_whole(hub, users):
    """Code and all, although the code in the folder is links."""
    folder = SCRIPTS.parent / "checkpoints" / "sinkhorn-sotu-party"
    users.pull("upload", token=MARY, repo="mary/uploaded", folder=str(folder)).checked()
    assert contents(hub.repos["mary/uploaded"]) == contents_of(folder)


# --------------------------------------------------------------------------------------------------------------------
# What the script does
# --------------------------------------------------------------------------------------------------------------------


def test_nothing_changed_makes_no_commit(hub, push, folder, name):
    push("--model_folder", folder, "--repo_id", name)
    head, writes = hub.repos[name].head.oid, len(hub.writes())
    output = push("--model_folder", folder, "--repo_id", name).output
    assert f"nothing changed: {name} has these files at commit {head}" in output
    assert hub.repos[name].head.oid == head and len(hub.writes()) == writes


def test_only_what_changed_goes_up(hub, push, folder, name):
    push("--model_folder", folder, "--repo_id", name)
    (folder / "README.md").write_text(CARD + "\nMore.\n", encoding="utf-8")
    start = len(hub.log)
    output = push("--model_folder", folder, "--repo_id", name, "--commit_message", "A word more").output
    assert f"{len(contents_of(folder)) - 1} of {len(contents_of(folder))} files are there already" in output
    assert not any("storage" in path for _, path, _ in hub.log[start:])
    assert hub.repos[name].head.summary == "A word more"
    assert contents(hub.repos[name]) == contents_of(folder)


def test_name_alone_is_mine(hub, push, folder):
    push("--model_folder", folder, "--repo_id", "name-alone")
    assert contents(hub.repos["mary/name-alone"]) == contents_of(folder)


def test_our_cards_name_who_pushed(hub, push, folder, name):
    (folder / "README.md").write_text(CARD + "\nUSER/it, not MYUSER/it or USER.\n", encoding="utf-8")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "a.yaml").write_text("- dataset: {id: USER/data, task_id: a}\n  value: 1\n")
    push("--model_folder", folder, "--repo_id", name)
    there = contents(hub.repos[name])
    assert there["README.md"].decode().endswith("\nmary/it, not MYUSER/it or USER.\n")
    assert b"id: mary/data" in there[".eval_results/a.yaml"]
    assert "\nUSER/it" in (folder / "README.md").read_text(encoding="utf-8")
    assert "nothing changed" in push("--model_folder", folder, "--repo_id", name).output


def test_dry_run_sends_nothing(hub, push, folder, name):
    size = (folder / "model.safetensors").stat().st_size
    before = len(hub.log)
    output = push("--model_folder", folder, "--repo_id", name, "--dry_run", token=None).output
    assert len(hub.log) == before and name not in hub.repos
    for path in contents_of(folder):
        assert re.search(rf"^{re.escape(path)} +[\d.]+ (B|kB|MB)$", output, re.MULTILINE), path
    assert re.search(rf"^model\.safetensors +{size / 1000:.3g} kB$", output, re.MULTILINE)
    assert f"{len(contents_of(folder))} files" in output and "nothing was sent" in output


def test_a_folder_without_a_card_gets_one_from_its_run(hub, push, folder, name):
    (folder / "README.md").unlink()
    run = {
        "command": ["scripts/run_classification.py", "--train_file", "/home/mary/secret/tickets.csv", "--seed=1"],
        "base_model": "sinkhorn-books-encoder",
        "data": {"train": 1800, "validation": 200, "test": 50, "split_seed": 0},
        "part": "test",
        "scores": {"TF-IDF, whole text": {"accuracy": 0.9}, "this model": {"accuracy": 0.875, "macro_f1": 0.8}},
        "seed": 1,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    before = len(hub.log)
    output = push("--model_folder", folder, "--repo_id", name, "--dry_run").output
    assert "licence is given as unknown; name yours with --license" in output
    assert "made from run.json" in output and len(hub.log) == before
    output = push("--model_folder", folder, "--repo_id", name, "--license", "mit").output
    assert "licence is given" not in output and not (folder / "README.md").exists()
    card = contents(hub.repos[name])["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    assert "fine-tuned from `sinkhorn-books-encoder`" in card and "base_model:" not in card
    assert "1,800 train, 200 validation, 50 test documents" in card
    assert "| this model | 0.8750 | 0.8000 |" in card and "| TF-IDF, whole text | 0.9000 |  |" in card
    assert "run_classification.py --train_file tickets.csv --seed=1" in card and "secret" not in card
    assert f'model="{name}"' in card
    assert "run.json" not in contents(hub.repos[name])
    message = "--license: `license` is 'MIT License', which the Hub does not know; write 'mit'"
    assert message in push("--model_folder", folder, "--repo_id", name, "--license", "MIT License", status=1).output


def test_the_card_of_a_language_model(monkeypatch, tmp_path):
    from hub.run_card import card_from_run

    (tmp_path / "config.json").write_text('{"architectures": ["SinkhornForCausalLM"]}', encoding="utf-8")
    assert card_from_run(tmp_path, "clm", "unknown") is None
    models = {"this model": {"scores": {"validation": {"perplexity": 12.5, "bits_per_byte": 1.25}}}}
    command = ["scripts/run_clm.py", "--model-name-or-path", "mary/base", "--output_dir", "~/runs/x"]
    run = {"models": models, "part": "test", "data": {"train": 7, "validation": 2}, "command": command}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    card = card_from_run(tmp_path, "clm", "unknown")
    assert "pipeline_tag: text-generation" in card and "base_model: mary/base" in card
    assert "## Scores on the validation data" in card and "| this model | 12.5000 | 1.2500 |" in card
    assert "--output_dir x\n" in card and "7 train, 2 validation rows" in card


def test_leftovers_stay_here(hub, push, folder, name):
    kept = contents_of(folder)
    leftovers = (
        "checkpoint-5/model.safetensors checkpoint-5/optimizer.pt runs/x/events.out.tfevents.1 .git/config .env "
        "__pycache__/modeling_sinkhorn.cpython-311.pyc optimizer.pt scheduler.pt training_args.bin rng_state.pth "
        "rng_state_0.pth pytorch_model.bin model.ckpt data.pkl model.safetensors.tmp trainer_state.json "
        "sub/.ipynb_checkpoints/x.json sub/cache.tmp model-00007-of-00007.safetensors "
        "run.json scores.json model_and_data.json all_results.json eval_results.json predict_results.tsv"
    ).split()
    for path in leftovers:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    (folder / "sub/notes.txt").write_text("goes up", encoding="utf-8")
    (folder / "link").symlink_to(folder.parent, target_is_directory=True)
    output = push("--model_folder", folder, "--repo_id", name).output
    assert contents(hub.repos[name]) == kept | {"sub/notes.txt": b"goes up"}
    told = re.search(r"^left out: (.*)$", output, re.MULTILINE)[1]
    for path in leftovers:
        parts = Path(path).parts
        starts = ["/".join(parts[: i + 1]) + ("/" if i + 1 < len(parts) else "") for i in range(len(parts))]
        assert any(f"{start} (" in told for start in starts), path
    assert "link/ (link to a folder)" in told


def test_branch_tag_and_pull_request(hub, push, folder, name):
    push("--model_folder", folder, "--repo_id", name)
    main = hub.repos[name].head.oid
    (folder / "README.md").write_text(CARD + "\nBranch.\n", encoding="utf-8")
    push("--model_folder", folder, "--repo_id", name, "--revision", "next", "--tag", "v1.0")
    repo = hub.repos[name]
    assert repo.head.oid == main
    assert repo.refs["refs/tags/v1.0"] == repo.refs["refs/heads/next"] != main
    assert contents(repo, "next") == contents_of(folder)

    again = push("--model_folder", folder, "--repo_id", name, "--revision", "next", "--tag", "v1.0").output
    assert "nothing changed" in again
    (folder / "README.md").write_text(CARD + "\nLater.\n", encoding="utf-8")
    refs = dict(repo.refs)
    refused = push("--model_folder", folder, "--repo_id", name, "--revision", "next", "--tag", "v1.0", status=1)
    assert f"has a tag v1.0 already, at commit {refs['refs/tags/v1.0']}" in refused.output
    refused = push("--model_folder", folder, "--repo_id", name, "--revision", "v1.0", status=1)
    assert "is a tag" in refused.output
    assert repo.refs == refs

    output = push("--model_folder", folder, "--repo_id", name, "--create_pr", token=JOHN).output
    assert f"pull request {hub.url}/{name}/discussions/1" in output
    assert repo.refs.items() - refs.items() == {("refs/pr/1", repo.refs["refs/pr/1"])}
    assert contents(repo, "refs/pr/1") == contents_of(folder)
    (folder / "README.md").write_text(CARD + "\nBetter.\n", encoding="utf-8")
    push("--model_folder", folder, "--repo_id", name, "--revision", "refs/pr/1")
    assert contents(repo, "refs/pr/1") == contents_of(folder) and repo.head.oid == main


def test_a_page_becomes_a_space_that_the_card_links(hub, push, folder, name, page):
    flags = ("--model_folder", folder, "--repo_id", name, "--space", page)
    assert f"{page} would be the page of a Space of the same name." in push(*flags, "--dry_run").output
    assert name not in hub.spaces and name not in hub.repos
    output = push(*flags).output
    url = f"{hub.url}/spaces/{name}"
    assert f"README.md: links {url} there" in output and f"Space {url}: README.md, index.html" in output
    space = hub.spaces[name]
    assert space.sdk == "static" and not space.private
    found = contents(space)
    assert found.keys() == {"README.md", "index.html"} and found["index.html"] == page.read_bytes()
    metadata = yaml.safe_load(found["README.md"].decode().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("static", "index.html", [name])
    card = contents(hub.repos[name])["README.md"].decode()
    assert card.startswith(CARD) and card.count(url) == 1
    # Again: nothing changes. Then another page: the Space alone does.
    before = hub.repos[name].head, space.head
    output = push(*flags).output
    assert f"nothing changed: the Space {url} has this page." in output
    assert (hub.repos[name].head, space.head) == before
    write_page({"model": "model", "text": "another.txt", "tokens": []}, page)
    assert f"Space {url}: index.html" in push(*flags).output
    assert contents(space)["index.html"] == page.read_bytes() and hub.repos[name].head == before[0]


def test_a_private_model_has_a_private_space(hub, push, folder, name, page):
    push("--model_folder", folder, "--repo_id", name, "--space", page, "--private")
    assert hub.repos[name].private and hub.spaces[name].private


def test_another_space_is_not_overwritten(hub, push, folder, name, page):
    hub.spaces[name] = Repository(name, private=False, sdk="gradio")
    hub.spaces[name].add_commit("refs/heads/main", None, "an app", {})
    output = push("--model_folder", folder, "--repo_id", name, "--space", page, status=1).output
    assert f"there is a Space {name} with the SDK gradio, which is not such a page" in output
    assert name not in hub.repos


def test_a_space_that_fails_leaves_the_model_and_says_so(hub, push, folder, name, page):
    with hub.fault("POST", f"/api/spaces/{name}/commit/", status=403):
        output = push("--model_folder", folder, "--repo_id", name, "--space", page, status=1).output
    assert f"could not publish the Space {name}" in output and "The model is pushed." in output
    assert "model.safetensors" in contents(hub.repos[name])
    push("--model_folder", folder, "--repo_id", name, "--space", page)
    assert "index.html" in contents(hub.spaces[name])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no page"),
        ("<html></html>", "is no page of scripts/explore_sorting.py"),
        (b"\xff", "cannot be"),
    ],
    ids=["missing", "other", "binary"],
)
def test_what_is_no_page_is_refused(hub, push, folder, name, tmp_path, content, message):
    path = tmp_path / "page.html"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    output = push("--model_folder", folder, "--repo_id", name, "--space", path, status=1).output
    assert "error: --space: " in output and message in output and name not in hub.repos


def test_weights_of_an_earlier_push_go_away(hub, push, folder, name):
    """Else `from_pretrained` would open the old model.safetensors, which it prefers to shards."""
    push("--model_folder", folder, "--repo_id", name)
    model = modeling_sinkhorn.SinkhornForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    output = push("--model_folder", folder, "--repo_id", name).output
    assert "removed from the repository" in output and ": model.safetensors" in output
    assert contents(hub.repos[name]) == contents_of(folder)


def test_private_is_not_pretended(hub, push, folder, name):
    push("--model_folder", folder, "--repo_id", name)
    head = hub.repos[name].head.oid
    (folder / "README.md").write_text(CARD + "\nSecret.\n", encoding="utf-8")
    output = push("--model_folder", folder, "--repo_id", name, "--private", status=1).output
    assert "exists and is public" in output and hub.repos[name].head.oid == head


def test_a_file_that_the_repository_ignores_is_told(hub, push, folder, name):
    push("--model_folder", folder, "--repo_id", name)
    repo = hub.repos[name]
    repo.add_commit("refs/heads/main", repo.head, "ignore", repo.head.files | {".gitignore": Blob(b"*.txt\n", False)})
    (folder / "notes.txt").write_text("does not go up", encoding="utf-8")
    (folder / "more.md").write_text("goes up", encoding="utf-8")
    output = push("--model_folder", folder, "--repo_id", name, status=1).output
    assert "notes.txt did not arrive" in output and ".gitignore" in output


# --------------------------------------------------------------------------------------------------------------------
# When the Hub does not do as asked
# --------------------------------------------------------------------------------------------------------------------

INTERRUPTIONS = {
    "upload answered 500": ("PUT", "^/storage/", {"status": 500}),
    "upload cut off": ("PUT", "^/storage/", {}),
    "commit answered 500": ("POST", "/commit/", {"status": 500}),
    "commit cut off": ("POST", "/commit/", {}),
}


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_interrupted_push(hub, push, folder, name, case):
    push("--model_folder", folder, "--repo_id", name)
    head = hub.repos[name].head.oid
    change_weights(folder)
    method, path, settings = INTERRUPTIONS[case]
    with hub.fault(method, path, **settings):
        output = push("--model_folder", folder, "--repo_id", name, status=1).output
    assert "could not upload" in output
    assert ("the server answered 500" in output) == ("500" in case)
    assert ("the connection broke" in output) == ("cut off" in case)
    assert f"No commit was made: main is still at {head}" in output
    assert hub.repos[name].head.oid == head

    push("--model_folder", folder, "--repo_id", name)
    assert hub.repos[name].head.parent == head
    assert contents(hub.repos[name]) == contents_of(folder)


def change_weights(folder: Path) -> None:
    """To numbers that no other test has: the Hub does not ask again for an object that it was given once."""
    generator = torch.Generator().manual_seed(hash(str(folder)) % 2**31)
    edit_weights(folder, lambda weights: [tensor.normal_(generator=generator) for tensor in weights.values()])


def test_interrupted_first_push(hub, push, folder, name):
    """The repository is there and empty then, which is told."""
    change_weights(folder)
    with hub.fault("PUT", "^/storage/", status=503):
        output = push("--model_folder", folder, "--repo_id", name, status=1).output
    assert f"The repository {name} was made, and is empty." in output and "No commit was made" in output
    assert contents(hub.repos[name]) == {}
    push("--model_folder", folder, "--repo_id", name)
    assert contents(hub.repos[name]) == contents_of(folder)


def test_a_hiccup_is_survived(hub, push, folder, name):
    change_weights(folder)
    with hub.fault("PUT", "^/storage/", status=503, times=2) as fault:
        push("--model_folder", folder, "--repo_id", name)
    assert fault.times == 0
    assert contents(hub.repos[name]) == contents_of(folder)


def test_an_answer_that_is_lost(hub, push, folder, name):
    """The commit is made, but the client never hears of it."""
    push("--model_folder", folder, "--repo_id", name)
    change_weights(folder)
    with hub.fault("POST", "/commit/", after=True):
        output = push("--model_folder", folder, "--repo_id", name, status=1).output
    assert f"main is at commit {hub.repos[name].head.oid} now" in output
    assert "nothing changed" in push("--model_folder", folder, "--repo_id", name).output


def test_a_tag_that_fails_leaves_the_commit_and_says_so(hub, push, folder, name):
    with hub.fault("POST", "/tag/", status=500):
        output = push("--model_folder", folder, "--repo_id", name, "--tag", "v1", status=1).output
    head = hub.repos[name].head.oid
    assert (
        f"could not set the tag v1: the server answered 500 (the server has hiccups). The files are in commit {head}"
        in output
    )
    push("--model_folder", folder, "--repo_id", name, "--tag", "v1")
    assert hub.repos[name].refs["refs/tags/v1"] == head == hub.repos[name].head.oid


def test_somebody_else_pushes_meanwhile(hub, push, folder, name):
    """Their commit stands: ours was made for the one before it."""
    push("--model_folder", folder, "--repo_id", name)
    repo = hub.repos[name]
    change_weights(folder)

    def theirs() -> None:
        repo.add_commit("refs/heads/main", repo.head, "theirs", repo.head.files | {"config.json": Blob(b"{}", False)})

    with hub.fault("PUT", "^/storage/", first=theirs, passes=True):
        output = push("--model_folder", folder, "--repo_id", name, status=1).output
    assert "someone else has pushed to main meanwhile" in output
    assert repo.head.summary == "theirs"


def test_no_token(hub, push, folder, name):
    before = len(hub.log)
    output = push("--model_folder", folder, "--repo_id", name, token=None, status=1).output
    assert "there is no token" in output and "HF_TOKEN" in output and len(hub.log) == before


@pytest.mark.parametrize(
    "token, repo_id, message",
    [
        ("token-that-nobody-has", "mary/x", "does not accept your token"),
        (MARY_READS, "mary/x", "may only read"),
        (MARY, "john/x", "mary may not write to john/x: it belongs to someone else"),
        (MARY, "john/public", "mary may not write to john/public: it belongs to someone else"),
    ],
)
def test_not_allowed(hub, push, folder, token, repo_id, message):
    hub.repos["john/public"] = Repository("john/public", private=False)
    head = hub.repos["john/public"].add_commit("refs/heads/main", None, "john's", {})
    output = push("--model_folder", folder, "--repo_id", repo_id, token=token, status=1).output
    assert message in output
    assert hub.repos.keys() & {"mary/x", "john/x"} == set() and hub.repos["john/public"].head == head


def test_the_token_is_not_printed(hub, push, folder, name):
    """Even where the server puts it into its answer; `push` looks for it in every output."""
    for method, path in (("GET", "/whoami-v2$"), ("GET", "/refs$"), ("POST", "/commit/")):
        with hub.fault(method, path, status=500, message="bad header {authorization}"):
            output = push("--model_folder", folder, "--repo_id", name, status=1).output
        assert "bad header Bearer <token>" in output


def test_server_unreachable(push, folder, name):
    output = push("--model_folder", folder, "--repo_id", name, endpoint="http://127.0.0.1:9", status=1).output
    assert "no connection to http://127.0.0.1:9" in output and "Nothing was written." in output


def test_offline_mode(push, folder, name):
    output = push("--model_folder", folder, "--repo_id", name, offline=True, status=1).output
    assert "HF_HUB_OFFLINE is set" in output and "Nothing was written." in output


def test_the_hub_refuses_the_card(hub, push, folder, name):
    """What only the Hub knows is asked before a repository is made."""
    hub.card_errors.append('"base_model" does not exist')
    try:
        output = push("--model_folder", folder, "--repo_id", name, status=1).output
    finally:
        hub.card_errors.clear()
    assert 'README.md: the Hub refuses the metadata: "base_model" does not exist' in output
    assert name not in hub.repos


# --------------------------------------------------------------------------------------------------------------------
# What is refused before anything is sent
# --------------------------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def only_in_a_checkpoint(folder: Path) -> None:
    for step in (5, 10):
        shutil.copytree(folder, folder.parent / "copy")
        shutil.move(folder.parent / "copy", folder / f"checkpoint-{step}")
        shutil.rmtree(folder / f"checkpoint-{step}" / "checkpoint-5", ignore_errors=True)
    (folder / "model.safetensors").unlink()


def break_index(folder: Path) -> None:
    model = modeling_sinkhorn.SinkhornForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    next(folder.glob("model-00002-of-*.safetensors")).unlink()


def other_repository(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"]["AutoModel"] = "john/x--modeling_sinkhorn.SinkhornModel"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def rename_class(folder: Path) -> None:
    path = folder / "modeling_sinkhorn.py"
    path.write_text(path.read_text(encoding="utf-8").replace("class SinkhornModel(", "class Other("), encoding="utf-8")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSED = {
    "no config": (lambda f: (f / "config.json").unlink(), ["there is no config.json in"]),
    "config not JSON": (lambda f: truncate(f / "config.json", 99), ["config.json is not JSON", "in line"]),
    "other model": (lambda f: edit_config(f, model_type="bert"), ["config.json: `model_type` is 'bert'"]),
    "no auto_map": (lambda f: edit_config(f, auto_map=None), ["config.json: `auto_map`", "save_pretrained"]),
    "code elsewhere": (other_repository, ["takes AutoModel from another repository (john/x--"]),
    "code missing": (
        lambda f: (f / "modeling_sinkhorn.py").unlink(),
        ["modeling_sinkhorn.py is missing, which `auto_map`"],
    ),
    "imported code missing": (
        lambda f: (f / "sorting_sinkhorn.py").unlink(),
        ["sorting_sinkhorn.py is missing, which", "_sinkhorn.py needs"],
    ),
    "class missing": (rename_class, ["modeling_sinkhorn.py has no class SinkhornModel, which `auto_map`"]),
    "code cut off": (
        lambda f: (f / "cache_sinkhorn.py").write_text("def x(:\n", encoding="utf-8"),
        ["cache_sinkhorn.py, line 1 is not Python"],
    ),
    "code that fails": (
        lambda f: (f / "cache_sinkhorn.py").write_text("raise KeyError('gone')\n", encoding="utf-8"),
        ["its code does not build a SinkhornForSequenceClassification", "KeyError"],
    ),
    "impossible config": (
        lambda f: edit_config(f, sinkhorn_temperature=-1.0),
        ["does not build", "`sinkhorn_temperature` must be above 0"],
    ),
    "no architecture": (lambda f: edit_config(f, architectures=None), ["config.json: `architectures` is None"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["there are no weights in"]),
    "weights in a checkpoint": (only_in_a_checkpoint, ["there are no weights in", "checkpoint-10."]),
    "pickled weights": (pickled, ["are pickled (pytorch_model.bin)", "save_pretrained"]),
    "truncated header": (lambda f: truncate(f / "model.safetensors", 20), ["model.safetensors is damaged"]),
    "truncated data": (lambda f: truncate(f / "model.safetensors", 9000), ["model.safetensors is damaged"]),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_bytes(Blob(b"x", True).pointer),
        ["is a Git LFS pointer", "git lfs pull"],
    ),
    "header too large": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**60)),
        ["model.safetensors is damaged"],
    ),
    "shard missing": (break_index, ["model-00002-of-", "is missing, which model.safetensors.index.json names"]),
    "weight missing": (
        lambda f: edit_weights(f, lambda w: w.pop("model.norm.weight")),
        ["they lack model.norm.weight"],
    ),
    "weight too many": (
        lambda f: edit_weights(f, lambda w: w.update(extra=torch.zeros(1))),
        ["they have extra, which the model lacks"],
    ),
    "other shape": (
        lambda f: edit_config(f, intermediate_size=64),
        ["they have model.layers.0.mlp.down_proj.weight of shape (32, 48), the model (32, 64)"],
    ),
    "not a number": (
        lambda f: edit_weights(f, lambda w: w["model.norm.weight"].fill_(float("nan"))),
        ["model.norm.weight holds NaN"],
    ),
    "card": (
        lambda f: (f / "README.md").write_text("---\nlicense: Apache 2.0\n---\n", encoding="utf-8"),
        ["README.md: `license` is 'Apache 2.0'", "write 'apache-2.0'"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_sent(hub, push, folder, name, case):
    spoil, words = REFUSED[case]
    spoil(folder)
    before = len(hub.log)
    output = push("--model_folder", folder, "--repo_id", name, status=1).output
    assert output.startswith("error: ") or "\nerror: " in output
    for word in words:
        assert word in output
    assert len(hub.log) == before


def test_no_folder(push, tmp_path, name):
    output = push("--model_folder", tmp_path / "none", "--repo_id", name, status=1).output
    assert output == f"error: there is no folder {tmp_path / 'none'}.\n"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--repo_id", "a/b/c"], "--repo_id a/b/c"),
        (["--repo_id", "a/b", "--commit_message", ""], "--commit_message is empty"),
        (["--repo_id", "a/b", "--revision", "0" * 40], "--revision names a commit"),
        (["--repo_id", "a/b", "--create_pr", "--tag", "v1"], "--tag and --create_pr exclude each other"),
        (["--repo_id", "a/b", "--create_pr", "--space", "p.html"], "--space and --create_pr exclude each other"),
    ],
)
def test_flags_that_cannot_be_meant(push, folder, flags, message):
    assert message in push("--model_folder", folder, *flags, status=1).output


# --------------------------------------------------------------------------------------------------------------------
# Model cards
# --------------------------------------------------------------------------------------------------------------------

RESULT = """model-index:
- name: tiny
  results:
  - task:
      type: text-classification
    dataset:
      type: sotu
      name: State of the Union
      {extra}
    metrics:
    - type: accuracy
      value: 0.5
"""
BAD_CARDS = {
    "license: Apache-2.0\n": "`license` is 'Apache-2.0', which the Hub does not know; write 'apache-2.0'.",
    "license: Apache License 2.0\n": "write 'apache-2.0'",
    "license:\n": "`license` is empty",
    "license: 2\n": "`license[0]` must be a text, got 2",
    "base_model: ''\n": "`base_model` is empty",
    "datasets:\n- /data/mine\n": "`datasets[0]` is '/data/mine'; it must be an id on the Hub",
    "tags: sinkhorn\n": "`tags` must be a list",
    "tags:\n- 2026\n": "`tags[0]` must be a text, got 2026; put it in quotes.",
    "pipeline_tag: []\n": "`pipeline_tag` must be a text",
    "license: mit\nlicense: mit\n": ", line 3: the metadata is not YAML: `license` comes twice",
    "tags: [a\n": ", line 2: the metadata is not YAML",
    "- a\n- b\n": "the metadata is a list",
    "model-index: 3\n": "`model-index` must be a list",
    "model-index:\n- results: []\n": "`model-index[0].name` must be a text",
    "model-index:\n- name: a\n  results:\n  - task: {type: b}\n": "`model-index[0].results[0].dataset.type` must be",
    RESULT.format(extra="config: 1"): "`model-index[0].results[0].dataset.config` must be a text, got 1",
    RESULT.format(extra="").replace("value: 0.5", "name: Accuracy"): "`model-index[0].results[0].metrics[0].value`",
}
GOOD_CARDS = [
    "license: apache-2.0\nlanguage: en\ndatasets: imdb\nbase_model: mary/tiny\n",
    "license:\n- mit\n- apache-2.0\ndatasets:\n- mary/data.v2\nmetrics: [accuracy]\npipeline_tag: text-classification\n",
    RESULT.format(extra="config: default"),
    "model-index:\n- name: a\n  results: []\n",  # as the Trainer writes it before it has evaluated
]


@pytest.fixture
def check_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[str]]:
    from hub import card_checks

    def check(text: str) -> list[str]:
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        return card_checks.check_card(tmp_path / "README.md")

    return check


@pytest.mark.parametrize("metadata", BAD_CARDS)
def test_bad_cards(check_card, tmp_path, metadata):
    with pytest.raises(SystemExit) as error:
        check_card(f"---\n{metadata}---\n# Model\n")
    assert str(error.value).startswith(f"error: {tmp_path / 'README.md'}")
    assert BAD_CARDS[metadata] in str(error.value)


@pytest.mark.parametrize("metadata", GOOD_CARDS)
def test_good_cards(check_card, metadata):
    assert check_card(f"---\n{metadata}---\n# Model\n") == []


@pytest.mark.parametrize(
    "text, remark",
    [
        ("# Model\n", "no metadata"),
        ("---\nlicense: llama9\n---\n", "`license: llama9` is none that this script knows"),
        ("---\nlicense: other\n---\n", "`license: other` goes with a `license_name`"),
    ],
)
def test_remarks_on_cards(check_card, text, remark):
    (found,) = check_card(text)
    assert remark in found


def test_metadata_without_an_end(check_card):
    with pytest.raises(SystemExit, match="does not end"):
        check_card("---\nlicense: mit\n# Model\n")


# --------------------------------------------------------------------------------------------------------------------
# The library's own pushes, and the server
# --------------------------------------------------------------------------------------------------------------------

LIBRARY_PUSH = """
import sys

from transformers import AutoTokenizer, Trainer, TrainingArguments

import modeling_sinkhorn

folder, output = sys.argv[1:]
model = modeling_sinkhorn.SinkhornForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
print(model.push_to_hub("mary/by-model"))
tokenizer.push_to_hub("mary/by-model")
row = dict(tokenizer("peace and friendship"), labels=1)
args = TrainingArguments(
    output, max_steps=2, save_steps=2, report_to="none", push_to_hub=True, hub_model_id="mary/by-trainer", use_cpu=True
)
trainer = Trainer(model, args, train_dataset=[row] * 16, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
"""


@pytest.mark.slow
def test_the_library_pushes_too(hub, users, folder, tmp_path):
    """`model.push_to_hub` and a Trainer with `push_to_hub=True`; both open where the package is not installed."""
    root = Path(modeling_sinkhorn.__file__).parent
    environment = environment_without_ours(hub.url, tmp_path / "home", HF_TOKEN=MARY, PYTHONPATH=str(root))
    command = [sys.executable, "-c", LIBRARY_PUSH, str(folder), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    for name in ("mary/by-model", "mary/by-trainer"):
        files = contents(hub.repos[name])
        assert {"config.json", "model.safetensors", "modeling_sinkhorn.py", "README.md"} <= files.keys()
        model = {
            "auto_class": "AutoModelForSequenceClassification",
            "repo": name,
            "revision": hub.repos[name].head.oid,
        }
        assert users.pull("load", token=MARY, text=TEXT, **model).checked()["missing"] == []


@pytest.mark.slow
def test_from_a_shell(hub, folder, name, tmp_path):
    """As its docstring says, in a process of its own, with a token from the login instead of the environment."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(MARY, encoding="utf-8")
    command = [sys.executable, str(SCRIPTS / "push_to_hub.py"), "--model_folder", "model", "--repo_id", name]
    environment = environment_without_ours(hub.url, home)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    assert MARY not in result.stdout + result.stderr
    assert contents(hub.repos[name]) == contents_of(folder)


@pytest.mark.slow
def test_control_c(hub, folder, name, tmp_path):
    """In the middle of an upload."""
    change_weights(folder)
    command = [sys.executable, str(SCRIPTS / "push_to_hub.py"), "--model_folder", str(folder), "--repo_id", name]
    environment = environment_without_ours(hub.url, tmp_path / "home", HF_TOKEN=MARY)
    arrived, released = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        released.wait(600)

    with hub.fault("PUT", "^/storage/", first=hold):
        # As from a terminal: where the tests run in a shell's background, the signal is ignored, by children too.
        process = subprocess.Popen(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert arrived.wait(600)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=600)[1]
        released.set()
    assert process.returncode == 1
    assert "error: could not upload: interrupted." in errors and "No commit was made" in errors
    assert "Traceback" not in errors
    assert contents(hub.repos[name]) == {}


def ask(hub: HubServer, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    request = urllib.request.Request(hub.url + path, body or None, headers, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_is_strict(hub):
    """What the other tests lean on: it notes unknown routes, leaked tokens and damaged uploads."""
    bearer = {"Authorization": f"Bearer {MARY}"}
    assert ask(hub, "GET", "/api/models/mary/none/whatever/else") == 404
    assert hub.unknown == ["GET /api/models/mary/none/whatever/else"]
    assert ask(hub, "PUT", f"/storage/{'0' * 64}", b"x", **bearer) == 400
    assert len(hub.problems) == 2
    hub.unknown.clear()
    hub.problems.clear()
    create = json.dumps({"name": "strict", "organization": "mary"}).encode()
    assert ask(hub, "POST", "/api/repos/create", create) == 401
    assert ask(hub, "POST", "/api/repos/create", create, Authorization=f"Bearer {JOHN}") == 403
    assert ask(hub, "POST", "/api/repos/create", create, **bearer) == 200
    lines = [
        {"key": "header", "value": {"summary": "x", "description": ""}},
        {"key": "lfsFile", "value": {"path": "w.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    commit = b"\n".join(json.dumps(line).encode() for line in lines)
    bearer["Content-Type"] = "application/x-ndjson"
    assert ask(hub, "POST", "/api/models/mary/strict/commit/main", commit, **bearer) == 400
    assert contents(hub.repos["mary/strict"]) == {}
