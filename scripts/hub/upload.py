# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""One push of checked files to the Hub, in one commit."""

import hashlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    RepoFile,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from common.errors import UserError
from hub.card_checks import license_problems
from hub.folder_checks import first_few, is_weights
from hub.space import check_space, linked_card, space_files, space_tree, space_url, upload_space


@dataclass
class PushArguments:
    model_folder: str = field(metadata={"help": "Folder that `save_pretrained` or a training script wrote."})
    repo_id: str = field(metadata={"help": "USER/NAME or ORGANIZATION/NAME; NAME alone is yours. Made if missing."})
    commit_message: str = field(default="Upload model", metadata={"help": "First line of the commit."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to; made from main if missing."})
    tag: str | None = field(default=None, metadata={"help": "Tag to put on the commit, such as v1.0."})
    private: bool = field(default=False, metadata={"help": "A repository that is made is seen by you alone."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of a commit on the branch."})
    space: str | None = field(
        default=None,
        metadata={
            "help": "Page of explore_sorting.py to publish, as a static Space of the same name; the card links it."
        },
    )
    license: str = field(
        default="unknown",
        metadata={
            "help": "Licence for the card that is made where the folder has none: apache-2.0, mit, cc-by-4.0 ..."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "Check, and list what would go; send nothing."})

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise UserError(f"--repo_id {self.repo_id}: {error}") from None
        for problem in license_problems({"license": self.license}):
            raise UserError(f"--license: {problem}")
        if not self.commit_message.strip():
            raise UserError("--commit_message is empty; a commit needs one.")
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            raise UserError("--revision names a commit; a push goes to a branch.")
        if self.create_pr and self.tag:
            raise UserError("--tag and --create_pr exclude each other: tag the commit once it is merged.")
        if self.create_pr and self.space:
            raise UserError("--space and --create_pr exclude each other: a Space is published by who owns the model.")


NETWORK_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)


class Push:
    """
    One push. `changes` lists in words what has changed on the Hub so far, for error messages.
    """

    def __init__(self, args: PushArguments, files: dict[str, Path]):
        self.args, self.files = args, files
        self.token = get_token()
        if not self.token:
            raise UserError(
                f"there is no token. Make one that may write at {constants.ENDPOINT}/settings/tokens, and set "
                "HF_TOKEN or run `hf auth login`."
            )
        self.api = HfApi(token=self.token)
        self.user = ""
        self.repo_id = args.repo_id
        self.branch = args.revision or "main"
        self.head: str | None = None  # commit of the branch before the push
        self.current_step = "reach the Hub"
        self.changes: list[str] = []
        self.drafts = tempfile.TemporaryDirectory()

    def run(self) -> None:
        try:
            self._run()
        except (*NETWORK_ERRORS, KeyboardInterrupt) as error:
            message = f"could not {self.current_step}: {self._explain(error)} {self._state_on_hub()}"
            raise UserError(message.replace(self.token, "<token>")) from None

    def _run(self) -> None:
        self._sign_in()
        self._fill_in_owner()
        if self.args.space:
            self.current_step = f"look at the Space {self.repo_id}"
            check_space(self.api, self.repo_id)
            self._link_space()
        self._check_card()
        self.current_step = f"look at {self.repo_id}"
        info = self._repository()
        refs = self.api.list_repo_refs(self.repo_id)
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        if self.branch in tags:
            raise UserError(f"--revision {self.branch} is a tag of {self.repo_id}; a push goes to a branch.")
        branch_exists = self._find_branch(info, {branch.name: branch.target_commit for branch in refs.branches})
        remote_files = self._tree(self.head)
        self.current_step = "read the files again"
        changed = [path for path, file in self.files.items() if not has_same_content(file, remote_files.get(path))]
        stale = [path for path in remote_files if is_weights(path) and path not in self.files]
        self._check_tag(tags, will_commit=bool(changed or stale))
        if not branch_exists:
            self.current_step = f"make the branch {self.branch}"
            self.api.create_branch(self.repo_id, branch=self.branch, revision=self.head, exist_ok=True)
            self.changes.append(f"The branch {self.branch} was made.")
        commit = self._commit(changed, stale) if changed or stale else self.head
        if not (changed or stale):
            print(f"nothing changed: {self.repo_id} has these files at commit {commit}; no commit was made.")
        if self.args.tag and self.args.tag not in tags:
            self.current_step = f"set the tag {self.args.tag}"
            self.api.create_tag(self.repo_id, tag=self.args.tag, revision=commit)
            print(f"tag {self.args.tag} is at {commit}")
        print(f'open it with revision="{commit}", trust_remote_code=True')
        if self.args.space:
            self._publish_space()

    def _sign_in(self) -> None:
        self.current_step = f"sign in at {constants.ENDPOINT}"
        answer = self.api.whoami()
        self.user = answer["name"]
        if "/" not in self.repo_id:
            self.repo_id = f"{self.user}/{self.repo_id}"
        if answer.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"the token of {self.user} may only read. Make one that may write at "
                f"{constants.ENDPOINT}/settings/tokens."
            )

    def _fill_in_owner(self) -> None:
        """Replaces `USER/` in a card and its evaluation results by the owner of the repository."""
        owner = self.repo_id.split("/")[0]
        for path in [path for path in self.files if path == "README.md" or path.startswith(".eval_results/")]:
            text = self.files[path].read_text(encoding="utf-8")
            named = re.sub(r"\bUSER/(?=[\w.-])", f"{owner}/", text)
            if named != text:
                self._replace(path, named)
                print(f"{path}: USER/ is {owner}/ there")

    def _replace(self, path: str, text: str) -> None:
        """Uploads this text in place of the folder's file."""
        draft = Path(self.drafts.name) / path
        draft.parent.mkdir(exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        self.files[path] = draft

    def _link_space(self) -> None:
        if "README.md" not in self.files:
            print("README.md: none, so nothing on the model's page links the Space")
            return
        text = self.files["README.md"].read_text(encoding="utf-8")
        linked = linked_card(text, self.repo_id)
        if linked != text:
            self._replace("README.md", linked)
            print(f"README.md: links {space_url(self.repo_id)} there")

    def _publish_space(self) -> None:
        self.changes = ["The model is pushed."]
        self.current_step = f"publish the Space {self.repo_id}"
        files = space_files(Path(self.args.space), self.repo_id, Path(self.drafts.name))
        self.api.create_repo(
            self.repo_id, repo_type="space", space_sdk="static", private=self.args.private or None, exist_ok=True
        )
        remote_files = space_tree(self.api, self.repo_id)
        changed = {path: file for path, file in files.items() if not has_same_content(file, remote_files.get(path))}
        if changed:
            upload_space(self.api, self.repo_id, changed)
            print(f"Space {space_url(self.repo_id)}: {', '.join(changed)}")
        else:
            print(f"nothing changed: the Space {space_url(self.repo_id)} has this page.")

    def _check_card(self) -> None:
        """The Hub's own check of the metadata, before anything is created there."""
        self.current_step = "have README.md checked by the Hub"
        if "README.md" not in self.files:
            return
        text = self.files["README.md"].read_text(encoding="utf-8")
        if not REGEX_YAML_BLOCK.search(text):
            return
        try:
            card = ModelCard(text)
        except ValueError as error:
            raise UserError(f"{self.files['README.md']}: {error}") from None
        try:
            card.validate()
        except HfHubHTTPError:
            raise
        except ValueError as error:
            message = f"{self.files['README.md']}: the Hub refuses the metadata: {error}"
            raise UserError(message.replace(self.token, "<token>")) from None

    def _repository(self) -> ModelInfo:
        try:
            info = self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            if self.args.create_pr:
                raise UserError(f"there is no repository {self.repo_id} to open a pull request in.") from None
            self.current_step = f"make the repository {self.repo_id}"
            self.api.create_repo(self.repo_id, private=self.args.private or None, exist_ok=True)
            self.changes.append(f"The repository {self.repo_id} was made, and is empty.")
            print(f"made {'the private repository' if self.args.private else 'the repository'} {self.repo_id}")
            return self.api.model_info(self.repo_id)
        if self.args.private and info.private is False:
            raise UserError(
                f"{self.repo_id} exists and is public, which --private does not change. Make it private at "
                f"{constants.ENDPOINT}/{self.repo_id}/settings, or leave --private out."
            )
        return info

    def _find_branch(self, info: ModelInfo, branches: dict[str, str]) -> bool:
        """Sets `head`. Returns whether the branch exists."""
        if self.branch.startswith("refs/"):
            self.head = self.api.model_info(self.repo_id, revision=self.branch).sha
            return True
        self.head = branches.get(self.branch, info.sha)
        if self.branch in branches or self.branch == "main":
            return True
        if self.args.create_pr:
            raise UserError(f"{self.repo_id} has no branch {self.branch} to open a pull request for.")
        return False

    def _check_tag(self, tags: dict[str, str], will_commit: bool) -> None:
        tag = self.args.tag
        if tag in tags and (will_commit or tags[tag] != self.head):
            raise UserError(
                f"{self.repo_id} has a tag {tag} already, at commit {tags[tag]}. Nothing was pushed; choose another "
                "--tag."
            )

    def _tree(self, revision: str | None) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _commit(self, changed: list[str], stale: list[str]) -> str:
        """All in one atomic commit. Its parent is `head`, so nobody else's work is undone."""
        unchanged = len(self.files) - len(changed)
        if unchanged:
            print(f"{unchanged} of {len(self.files)} files are there already")
        if stale:
            print(f"removed from the repository, because from_pretrained might open them instead: {', '.join(stale)}")
        operations = [
            *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(self.files[path])) for path in changed),
            *(CommitOperationDelete(path_in_repo=path) for path in stale),
        ]
        self.current_step = "upload"
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.args.commit_message,
            revision=self.args.revision,
            create_pr=self.args.create_pr,
            parent_commit=self.head,
        )
        self.changes = [f"The files are in commit {commit.oid}."]
        print(f"pull request {commit.pr_url}" if self.args.create_pr else f"commit {commit.commit_url}")
        self.current_step = "look at what arrived"
        remote_files = self._tree(commit.pr_revision if self.args.create_pr else commit.oid)
        wrong = [path for path, file in self.files.items() if not has_same_content(file, remote_files.get(path))]
        if wrong:
            raise UserError(
                f"commit {commit.oid} was made, but {first_few(wrong)} did not arrive as it is here. See whether the "
                "repository's .gitignore names it, or whether the folder changed meanwhile; then run this again."
            )
        return commit.oid

    def _explain(self, error: BaseException) -> str:
        """The problem, for someone who does not know the protocol."""
        if isinstance(error, KeyboardInterrupt):
            return "interrupted."
        chain: list[BaseException | None] = [error]
        while chain[-1] is not None:
            chain.append(chain[-1].__cause__)
        known = [cause for cause in chain if isinstance(cause, (httpx2.HTTPError, OfflineModeIsEnabled))]
        if not known:
            return f"{error}."
        cause = known[0]
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and forbids it; unset it."
        if not isinstance(cause, HfHubHTTPError):
            what = "no connection to" if isinstance(cause, httpx2.ConnectError) else "the connection broke to"
            return f"{what} {constants.ENDPOINT} ({cause or type(cause).__name__})."
        status = cause.response.status_code
        if status == 401:
            return (
                f"the Hub does not accept your token. Make a new one at {constants.ENDPOINT}/settings/tokens, and set "
                "HF_TOKEN or run `hf auth login`."
            )
        if status == 403:
            return (
                f"{self.user} may not write to {self.repo_id}: it belongs to someone else, or the token may not write "
                "there. Use a --repo_id of yours, a token that may write, or --create_pr."
            )
        if status == 412:
            return f"someone else has pushed to {self.branch} meanwhile; run this again."
        if isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError)):
            return f"{self.repo_id} has no {self.branch}, or the token may not see it."
        return f"the server answered {status} ({(cause.server_message or str(cause)).splitlines()[0]})."

    def _state_on_hub(self) -> str:
        """The state of the Hub after a failure. After an interrupted upload it asks the Hub: there may be a commit."""
        if self.current_step != "upload":
            return " ".join(self.changes) or "Nothing was written."
        if self.args.create_pr:
            return f"No commit of {self.branch} was touched; see {constants.ENDPOINT}/{self.repo_id}/discussions."
        try:
            now = self.api.model_info(self.repo_id, revision=self.branch).sha
        except NETWORK_ERRORS:
            return (
                "Whether the commit was made is not known, since the Hub does not answer; "
                f"{self.branch} was at {self.head}."
            )
        if now == self.head:
            stands = f"No commit was made: {self.branch} is still at {now}. The same command tries again."
        else:
            stands = f"But {self.branch} is at commit {now} now; the same command tells whether the files are in it."
        return " ".join([*self.changes, stands])


def has_same_content(file: Path, remote: RepoFile | None) -> bool:
    """Whether the repository has the same content: by SHA-256 for a large file, or else by git object id."""
    if remote is None or remote.size != file.stat().st_size:
        return False
    with file.open("rb") as stream:
        if remote.lfs is not None:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
        digest = hashlib.sha1(b"blob %d\0" % remote.size)
        digest.update(stream.read())
        return digest.hexdigest() == remote.blob_id
