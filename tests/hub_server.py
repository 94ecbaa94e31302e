# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A small Hugging Face Hub on the loopback interface, kept in memory: the routes that `huggingface_hub` 2.4 calls to push
and to pull models, and static Spaces. It is strict. A route that it does not know is answered 404 and written down in `unknown`; what the
real Hub would never see from a sound client (a token sent to the storage, an upload whose digest is wrong) goes to
`problems`. Tests assert that both stay empty.

Large files go by Git LFS, so a client needs HF_HUB_DISABLE_XET=1. They come back by a redirect to `localhost`, where
the Hub itself is `127.0.0.1`: to the client that is another host, as the Hub's storage is.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".arrow")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LICENSES = ("apache-2.0", "mit", "llama3.1", "other")  # a few of the real list are enough to refuse the rest


# Names, not secrets: nothing but the server below knows them.
MARY, MARY_READS, JOHN = "token-of-mary-1", "token-of-mary-2", "token-of-john-3"


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def oid(self) -> str:
        """The git object id."""
        data = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    summary: str
    files: dict[str, Blob]


@dataclass
class Repository:
    id: str
    private: bool
    sdk: str | None = None  # of a Space
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "refs/heads/main" -> commit

    def find(self, revision: str) -> Commit | None:
        """By branch, tag, full ref or full commit id."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        return self.commits.get(revision)

    def add_commit(self, ref: str, parent: Commit | None, summary: str, files: dict[str, Blob]) -> Commit:
        listing = sorted((path, blob.oid) for path, blob in files.items())
        text = repr((self.id, len(self.commits), parent and parent.oid, summary, listing))
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent and parent.oid, summary, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["refs/heads/main"]]


@dataclass
class Fault:
    """What to do instead of answering the requests that match. `status` None: the connection is closed, half read."""

    method: str
    path: str  # regular expression
    status: int | None = None
    message: str = "the server has hiccups"  # "{authorization}" stands for the header that came in
    times: int | None = None  # None: as long as the fault is set
    after: bool = False  # the request is carried out first, only its answer is lost
    first: Callable[[], Any] | None = None  # called before anything else
    passes: bool = False  # answered as ever in the end


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    body: Any = b""  # bytes, str, or what becomes JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply({"error": message} | (body or {}), status, headers)


Route = Callable[["HubServer", Request, re.Match], Reply]
ROUTES: list[tuple[str, re.Pattern, Route]] = []
KIND = r"(?P<kind>models|spaces)"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def route(methods: str, path: str) -> Callable[[Route], Route]:
    def register(function: Route) -> Route:
        ROUTES.extend((method, re.compile(path), function) for method in methods.split())
        return function

    return register


class HubServer:
    """
    `with HubServer() as hub:` serves at `hub.url`, to Mary and John. `MARY_READS` may only read.

    `log` has every request as (method, path, status); status 0 is a connection that was closed.
    """

    def __init__(self):
        self.users, self.read_tokens = {MARY: "mary", MARY_READS: "mary", JOHN: "john"}, (MARY_READS,)
        self.repos: dict[str, Repository] = {}
        self.spaces: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.faults: list[Fault] = []
        self.card_errors: list[str] = []  # further complaints of /api/validate-yaml, whatever the card
        self.log: list[tuple[str, str, int]] = []
        self.unknown: list[str] = []
        self.problems: list[str] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def fault(self, method: str, path: str, **settings) -> Iterator[Fault]:
        fault = Fault(method, path, **settings)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def writes(self) -> list[tuple[str, str, int]]:
        """Requests that could have changed something."""
        return [entry for entry in self.log if entry[0] not in ("GET", "HEAD") and "validate-yaml" not in entry[1]]

    # -- who may do what -------------------------------------------------------------------------------------------

    def user(self, request: Request) -> str | None:
        header = request.headers.get("Authorization")
        if header is None:
            return None
        user = self.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def writer(self, request: Request) -> str:
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if request.headers["Authorization"].removeprefix("Bearer ") in self.read_tokens:
            raise Refusal(403, "This token may only read")
        return user

    def readable(self, request: Request, match: re.Match) -> Repository:
        user, name = self.user(request), match["repo"]
        repo = (self.spaces if match.groupdict().get("kind") == "spaces" else self.repos).get(name)
        if repo is None or (repo.private and user != name.split("/")[0]):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: Request, match: re.Match, by_anyone: bool = False) -> Repository:
        user = self.writer(request)
        repo = self.readable(request, match)
        if not by_anyone and user != repo.id.split("/")[0]:
            raise Refusal(403, f"You don't have the required permissions to write to {repo.id}")
        return repo

    def commit_of(self, repo: Repository, revision: str) -> Commit:
        commit = repo.find(unquote(revision))
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit

    def answer(self, request: Request) -> Reply:
        for method, path, function in ROUTES:
            match = path.fullmatch(request.path)
            if match and method == request.method:
                try:
                    with self.lock:
                        return function(self, request, match)
                except Refusal as refusal:
                    return refusal.reply
        self.unknown.append(f"{request.method} {request.path}")
        return Reply({"error": "no such route"}, 404)


# --------------------------------------------------------------------------------------------------------------------
# Repositories
# --------------------------------------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def _whoami(hub: HubServer, request: Request, match: re.Match) -> Reply:
    user = hub.user(request)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    role = "read" if request.headers["Authorization"].removeprefix("Bearer ") in hub.read_tokens else "write"
    token = {"displayName": "test", "role": role}
    return Reply({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}})


@route("POST", "/api/repos/create")
def _create(hub: HubServer, request: Request, match: re.Match) -> Reply:
    user, order = hub.writer(request), request.json
    kind = order.get("type", "model")
    if kind not in ("model", "space"):
        raise Refusal(400, "this server has models and Spaces only")
    if kind == "space" and order.get("sdk") != "static":
        raise Refusal(400, "this server has static Spaces only")
    owner = order["organization"] or user
    name = f"{owner}/{order['name']}"
    if owner != user:
        raise Refusal(403, f"You don't have the rights to create a {kind} under the namespace {owner}")
    store, url = (hub.spaces, f"{hub.url}/spaces/{name}") if kind == "space" else (hub.repos, f"{hub.url}/{name}")
    if name in store:
        raise Refusal(409, f"You already created this {kind} repo", body={"url": url})
    repo = store[name] = Repository(name, order.get("visibility") == "private", order.get("sdk"))
    repo.add_commit("refs/heads/main", None, "initial commit", {".gitattributes": Blob(GITATTRIBUTES, False)})
    return Reply({"url": url, "name": name})


@route("GET", f"/api/{KIND}/{REPO}(/revision/(?P<revision>[^/]+))?")
def _info(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.readable(request, match)
    commit = hub.commit_of(repo, match["revision"] or "main")
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    facts = {"id": repo.id, "modelId": repo.id, "sha": commit.oid, "private": repo.private, "siblings": siblings}
    if repo.sdk:
        facts["sdk"] = repo.sdk
    return Reply(facts | {"tags": [], "downloads": 0, "likes": 0})


@route("GET", f"/api/{KIND}/{REPO}/refs")
def _refs(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.readable(request, match)

    def listed(prefix: str) -> list[dict]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if ref.startswith(prefix)
        ]

    return Reply({"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": []})


@route("POST", f"/api/{KIND}/{REPO}/branch/(?P<branch>[^/]+)")
def _branch(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.writable(request, match)
    start = hub.commit_of(repo, (request.json if request.body else {}).get("startingPoint", "main"))
    ref = f"refs/heads/{unquote(match['branch'])}"
    if ref in repo.refs:
        raise Refusal(409, "Reference already exists")
    repo.refs[ref] = start.oid
    return Reply({"ref": ref})


@route("POST", f"/api/{KIND}/{REPO}/tag/(?P<revision>[^/]+)")
def _tag(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.writable(request, match)
    commit, ref = hub.commit_of(repo, match["revision"]), f"refs/tags/{request.json['tag']}"
    if ref in repo.refs:
        raise Refusal(409, "Tag reference exists already")
    repo.refs[ref] = commit.oid
    return Reply({"ref": ref})


@route("POST", "/api/validate-yaml")
def _validate(hub: HubServer, request: Request, match: re.Match) -> Reply:
    card = request.json["content"]
    licence = re.search(r"(?m)^license: *(\S*)", card)
    errors = list(hub.card_errors)
    if licence and licence[1] not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    warnings = [] if card.lstrip().startswith("---") else ["empty or missing yaml metadata in repo card"]
    if "text/plain" in request.headers.get("Accept", ""):
        return Reply("\n".join(errors), 400 if errors else 200)
    lists = {"errors": errors, "warnings": warnings}
    return Reply(
        {name: [{"message": text} for text in texts] for name, texts in lists.items()}, 400 if errors else 200
    )


# --------------------------------------------------------------------------------------------------------------------
# Push
# --------------------------------------------------------------------------------------------------------------------


@route("POST", f"/api/{KIND}/{REPO}/preupload/(?P<revision>[^/]+)")
def _preupload(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.writable(request, match, by_anyone=request.query.get("create_pr") == "1")
    commit, order = hub.commit_of(repo, match["revision"]), request.json
    if len(order["files"]) > 256:
        raise Refusal(413, "too many files in one request")
    ignored = order.get("gitIgnore")
    if ignored is None:
        ignored = commit.files[".gitignore"].content.decode() if ".gitignore" in commit.files else ""
    answers = []
    for file in order["files"]:
        path, before = file["path"], commit.files.get(file["path"])
        base64.b64decode(file["sample"], validate=True)
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(path, pattern) for pattern in ignored.split()),
                "oid": before and (before.sha256 if before.lfs else before.oid),
            }
        )
    return Reply({"files": answers})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def _lfs_batch(hub: HubServer, request: Request, match: re.Match) -> Reply:
    hub.writable(request, match, by_anyone="ref" not in request.json)
    if request.json["operation"] != "upload" or "basic" not in request.json["transfers"]:
        raise Refusal(422, "this server takes basic uploads only")
    objects = []
    for item in request.json["objects"]:
        entry = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in hub.objects:
            place = f"{hub.url}/storage/{item['oid']}"
            verify = f"{hub.url}/{match['repo']}.git/info/lfs/objects/verify"
            entry["actions"] = {"upload": {"href": place, "header": {}}, "verify": {"href": verify, "header": {}}}
        objects.append(entry)
    return Reply({"transfer": "basic", "objects": objects})


@route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
def _lfs_put(hub: HubServer, request: Request, match: re.Match) -> Reply:
    if "Authorization" in request.headers:
        hub.problems.append("a token was sent to the storage (upload)")
    if hashlib.sha256(request.body).hexdigest() != match["oid"]:
        hub.problems.append(f"an upload does not have the digest {match['oid']}")
        raise Refusal(400, "the content does not have this digest")
    hub.objects[match["oid"]] = request.body
    return Reply()


@route("POST", rf"/{REPO}\.git/info/lfs/objects/verify")
def _lfs_verify(hub: HubServer, request: Request, match: re.Match) -> Reply:
    hub.writer(request)
    if len(hub.objects.get(request.json["oid"], b"")) != request.json["size"]:
        raise Refusal(404, "no such object of this size")
    return Reply()


@route("POST", f"/api/{KIND}/{REPO}/commit/(?P<revision>[^/]+)")
def _commit(hub: HubServer, request: Request, match: re.Match) -> Reply:
    create_pr = request.query.get("create_pr") == "1"
    repo = hub.writable(request, match, by_anyone=create_pr)
    if request.headers.get("Content-Type") != "application/x-ndjson":
        raise Refusal(400, "a commit is application/x-ndjson")
    revision = unquote(match["revision"])
    ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    if ref not in repo.refs:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    parent = repo.commits[repo.refs[ref]]
    header, *operations = (json.loads(line) for line in request.body.splitlines())
    wanted = header["value"].get("parentCommit")
    if wanted not in (None, parent.oid):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for operation in operations:
        _apply(hub, files, operation["key"], operation["value"])
    if create_pr:
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = f"refs/pr/{number}"
    commit = repo.add_commit(ref, parent, header["value"]["summary"], files)
    place = f"spaces/{repo.id}" if repo.sdk else repo.id
    answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{hub.url}/{place}/commit/{commit.oid}"}
    return Reply(answer | ({"pullRequestUrl": f"{hub.url}/{repo.id}/discussions/{number}"} if create_pr else {}))


def _apply(hub: HubServer, files: dict[str, Blob], key: str, value: dict) -> None:
    path = value["path"]
    if key == "file" and value["encoding"] == "base64":
        files[path] = Blob(base64.b64decode(value["content"], validate=True), lfs=False)
    elif key == "lfsFile" and value["algo"] == "sha256":
        if len(hub.objects.get(value["oid"], b"")) != value["size"]:
            raise Refusal(400, f"LFS object of {path} was never uploaded")
        files[path] = Blob(hub.objects[value["oid"]], lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    else:
        raise Refusal(400, f"this server has no operation {key}")


# --------------------------------------------------------------------------------------------------------------------
# Pull
# --------------------------------------------------------------------------------------------------------------------


@route("GET", f"/api/{KIND}/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def _tree(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.readable(request, match)
    commit = hub.commit_of(repo, match["revision"])
    prefix = f"{unquote(match['folder'])}/" if match["folder"] else ""
    recursive = request.query.get("recursive", "").lower() in ("1", "true")
    entries: dict[str, dict] = {}
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            entries[folder] = {"type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "path": folder}
        if recursive or len(parts) == 1:
            entries[path] = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": path}
            if blob.lfs:
                large = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
                entries[path]["lfs"] = large
    if prefix and not entries:
        raise Refusal(404, f"{prefix} does not exist on this revision", "EntryNotFound")
    return Reply([entry | {"size": entry.get("size", 0)} for entry in entries.values()])


@route("HEAD GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def _resolve(hub: HubServer, request: Request, match: re.Match) -> Reply:
    repo = hub.readable(request, match)
    commit = hub.commit_of(repo, match["revision"])
    blob, headers = commit.files.get(unquote(match["path"])), {"X-Repo-Commit": commit.oid}
    if blob is None:
        refusal = Refusal(404, "Entry not found", "EntryNotFound").reply
        return Reply(refusal.body, 404, refusal.headers | headers)
    if not blob.lfs:
        return Reply(blob.content, 200, headers | {"ETag": f'"{blob.oid}"'})
    headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
    return Reply(b"", 302, headers | {"Location": f"http://localhost:{hub.port}/storage/{quote(blob.sha256)}"})


@route("GET", "/storage/(?P<oid>[0-9a-f]{64})")
def _storage(hub: HubServer, request: Request, match: re.Match) -> Reply:
    if "Authorization" in request.headers:
        hub.problems.append("a token was sent to the storage (download)")
    if match["oid"] not in hub.objects:
        return Reply({"error": "no such object"}, 404)
    return Reply(hub.objects[match["oid"]], 200, {"ETag": f'"{match["oid"]}"'})


# --------------------------------------------------------------------------------------------------------------------
# HTTP
# --------------------------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds

    def log_message(self, *_) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        fault = self._fault(parts.path)
        if fault and fault.first:
            fault.first()
        if fault and fault.passes:
            fault = None
        if fault and fault.status is None and not fault.after:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self._close(parts.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        request = Request(self.command, parts.path, query, self.headers, self._body())
        if fault and fault.status is not None:
            message = fault.message.format(authorization=self.headers.get("Authorization"))
            reply = Reply({"error": message}, fault.status, {"X-Error-Message": message})
        else:
            reply = self.hub.answer(request)
        if fault and fault.after:
            return self._close(parts.path)
        self._send(parts.path, reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.method == self.command and re.search(fault.path, path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def _close(self, path: str) -> None:
        self.hub.log.append((self.command, path, 0))
        self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, path: str, reply: Reply) -> None:
        self.hub.log.append((self.command, path, reply.status))
        body, kind = reply.body, "application/octet-stream"
        if isinstance(body, str):
            body, kind = body.encode(), "text/plain; charset=utf-8"
        elif not isinstance(body, bytes):
            body, kind = json.dumps(body).encode(), "application/json; charset=utf-8"
        self.send_response(reply.status)
        for name, value in (reply.headers | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
