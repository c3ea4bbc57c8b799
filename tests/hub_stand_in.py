"""A stand-in of the hub on the loopback address: the requests that ``huggingface_hub`` makes, kept in memory.

Repositories with commits, branches and tags; uploads of large files by the LFS protocol; downloads. Whoever writes
needs the token. Failures are ordered with :meth:`HubStandIn.fail`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_secret_of_the_test"


@dataclass
class Repository:
    """One repository: the files of each commit, and which names point to which commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Put files on top of a branch."""
        parent = self.branches.get(branch)
        content = repr(
            (sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()), parent, message)
        )
        name = hashlib.sha1(content.encode()).hexdigest()
        self.commits[name], self.parents[name], self.messages[name] = files, parent, message
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch, a tag or a commit."""
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)

    def history(self, branch: str = "main") -> list[str]:
        """Return the messages of a branch's commits, the first one first."""
        commit, messages = self.branches.get(branch), []
        while commit is not None:
            messages.append(self.messages[commit])
            commit = self.parents[commit]
        return messages[::-1]


@dataclass
class Failure:
    """What happens to requests of a method to a path with a text in it.

    Attributes:
        status: of the answer; ``None``: the connection is cut.
        times: how often.
        headers: of the answer.
        after: requests that still succeed.
        half: of a file, the first half is sent before the connection is cut.
    """

    method: str
    path: str
    status: int | None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    half: bool = False


class HubStandIn:
    """The server's state."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        self.address = ""

    def reset(self) -> None:
        """Forget everything."""
        self.repositories, self.blobs, self.failures, self.requests = {}, {}, [], []

    def fail(self, method: str, path: str, status: int | None, times: int = 1, **more: Any) -> None:
        """Let requests fail."""
        self.failures.append(Failure(method, path, status, times, **more))

    def failure_of(self, method: str, path: str) -> Failure | None:
        """Return what happens to a request."""
        for failure in self.failures:
            if failure.method == method and failure.path in path and failure.times:
                if failure.after:
                    failure.after -= 1
                    return None
                failure.times -= 1
                return failure
        return None


class _Cut(Exception):
    pass


class _Status(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for an acknowledgement, 40 ms
    wbufsize = -1
    hub: HubStandIn
    _cut_after_half = False

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = url.path.strip("/")
        self.hub.requests.append(f"{method} {unquote(path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if failure := self.hub.failure_of(method, path):
                if failure.half:
                    self._cut_after_half = True
                    self._route(method, path, body)
                if failure.status is None:
                    raise _Cut
                for name, value in failure.headers.items():
                    self._extra = {**getattr(self, "_extra", {}), name: value}
                raise _Status(failure.status, message="Invalid credentials in Authorization header")
            if method != "GET" and method != "HEAD":
                self._require_token()
            self._route(method, path, body)
        except _Cut:
            self.close_connection = True
            self.connection.close()
        except _Status as error:
            self._send(
                error.status, {"error": error.message}, {"X-Error-Code": error.code, "X-Error-Message": error.message}
            )

    def _route(self, method: str, path: str, body: bytes) -> None:
        parts = [unquote(part) for part in path.split("/")]
        if parts[0] == "api":
            self._api(method, parts[1:], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._lfs_batch(json.loads(body))
        elif parts[0] == "lfs":
            self.hub.blobs[parts[1]] = body
            self._send(200, {})
        elif "resolve" in parts[2:4] and len(parts) >= 5:
            at = parts.index("resolve", 2)
            self._file(method, "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            raise _Status(404)

    def _api(self, method: str, parts: list[str], body: bytes) -> None:
        if parts == ["repos", "create"]:
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            if name in self.hub.repositories:
                raise _Status(409)
            private = values.get("visibility") == "private" or bool(values.get("private"))
            self.hub.repositories[name] = repository = Repository(private)
            repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            self._send(200, {"url": f"{self.hub.address}/{name}", "name": name})
        elif parts == ["validate-yaml"]:
            self._send(200, {"errors": [], "warnings": []})
        elif parts[0] == "models":
            self._repository_api(method, "/".join(parts[1:3]), parts[3:], body)
        elif parts[0] == "datasets":
            self._repository_api(method, "/".join(parts[:3]), parts[3:], body)
        else:
            raise _Status(404)

    def _repository_api(self, method: str, name: str, parts: list[str], body: bytes) -> None:
        repository = self._repository(name)
        what, argument = (*parts, "main", "main")[:2] if parts else ("revision", "main")
        if what == "revision":
            commit = self._commit(repository, argument)
            siblings = [{"rfilename": file} for file in sorted(repository.commits[commit])]
            self._send(200, {"id": name, "sha": commit, "private": repository.private, "siblings": siblings})
        elif what == "refs":
            kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
            refs = {
                kind: [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": c} for n, c in names.items()]
                for kind, (folder, names) in kinds.items()
            }
            self._send(200, {**refs, "converts": []})
        elif what == "tree":
            files = repository.commits[self._commit(repository, argument)]
            self._send(200, [self._entry(name, data) for name, data in sorted(files.items())])
        elif what == "paths-info":
            files = repository.commits[self._commit(repository, argument)]
            names = parse_qs(body.decode())["paths"]
            self._send(200, [self._entry(name, files[name]) for name in names if name in files])
        elif what == "preupload":
            files = repository.commits[self._commit(repository, argument)]
            answers = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid(file["path"], files[file["path"]]) if file["path"] in files else None,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": answers})
        elif what == "commit":
            self._commit_files(repository, name, argument, body)
        elif what == "tag" and method == "POST":
            tag = json.loads(body)["tag"]
            if tag in repository.tags:
                raise _Status(409)
            repository.tags[tag] = self._commit(repository, argument)
            self._send(200, {})
        elif what == "branch" and method == "POST":
            if argument in repository.branches:
                raise _Status(409)
            start = json.loads(body or b"{}").get("startingPoint", "main")
            repository.branches[argument] = self._commit(repository, start)
            self._send(200, {})
        elif what in ("tag", "branch") and method == "DELETE":
            (repository.tags if what == "tag" else repository.branches).pop(argument)
            self._send(200, {})
        else:
            raise _Status(404)

    def _commit_files(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        files = dict(repository.commits[self._commit(repository, branch)])
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                parent = value.get("parentCommit")
                if parent is not None and parent != repository.branches.get(branch):
                    raise _Status(412, message="A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Status(400)
        commit = repository.commit(branch, files, message)
        address = f"{self.hub.address}/{name}/commit/{commit}"
        self._send(200, {"commitOid": commit, "commitUrl": address, "success": True})

    def _lfs_batch(self, values: dict[str, Any]) -> None:
        objects = []
        for entry in values["objects"]:
            known = entry["oid"] in self.hub.blobs
            upload = {"upload": {"href": f"{self.hub.address}/lfs/{entry['oid']}", "header": {}}}
            objects.append({**entry, **({} if known else {"actions": upload})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _file(self, method: str, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        data = repository.commits[commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            raise _Status(404, "EntryNotFound")
        headers |= {"ETag": f'"{self._oid(file, data)}"', "Accept-Ranges": "bytes"}
        self._send_bytes(200, data, headers)

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _oid(self, path: str, data: bytes) -> str:
        if path.endswith(".safetensors"):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def _repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._has_token()):
            raise _Status(404 if self._has_token() else 401, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise _Status(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _require_token(self) -> None:
        if not self._has_token() and not self.path.startswith("/lfs/"):
            raise _Status(401, message="Invalid credentials in Authorization header")

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = {"Content-Type": "application/json", **(headers or {})}
        self._send_bytes(status, json.dumps(value).encode(), content)

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **getattr(self, "_extra", {}), "Content-Length": str(len(data))}.items():
            if value:
                self.send_header(name, value)
        self._extra: dict[str, str] = {}
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self._cut_after_half else data)
            self.wfile.flush()


@contextmanager
def serving() -> Iterator[HubStandIn]:
    """A running stand-in."""
    hub = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    """Let ``huggingface_hub`` speak to a stand-in, logged in, with a cache of the test's own; retries do not wait."""
    from types import SimpleNamespace

    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    # transformers keeps an object with the address of when it was made: the real hub's, or that of a stand-in before.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
