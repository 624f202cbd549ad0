"""A local server that behaves like the Hugging Face hub and its CDN, and misbehaves where a test says so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

HOLD_S = 30.0  # an upper bound; a test that forgets to let go must not hang
_LARGE_SUFFIXES = (".onnx", ".onnx_data", ".safetensors", ".bin")


@dataclass(kw_only=True)
class HubRepository:
    """A repository with one commit; large files are kept as the hub keeps LFS files, on the CDN, named by SHA-256."""

    name: str
    commit: str
    files: dict[str, bytes]
    license: str = "apache-2.0"
    is_gated: bool = False
    tags: tuple[str, ...] = ("main",)

    @classmethod
    def of_folder(cls, name: str, folder: Path, **facts: Any) -> Self:
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        return cls(name=name, commit=commit, files=files, **facts)

    def etag(self, path: str) -> str:
        content = self.files[path]
        if path.endswith(_LARGE_SUFFIXES):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HubRequest:
    """What the server was asked."""

    server: str  # "hub" or "cdn"
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class FakeHub:
    """The hub at 127.0.0.1 and the CDN at localhost: two hosts, as a token sees them.

    `cuts`, `statuses` and `wrong` go by a file's path; the first two have an entry for each of its next downloads.
    """

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: list[HubRequest] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # bytes sent, then the line is dead
    statuses: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    busy: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # by method, before any file is sent
    wrong: dict[str, bytes] = field(default_factory=dict)  # sent instead of what is described
    tokens: tuple[str, ...] = ("secret-token",)
    ignores_ranges: bool = False
    has_etags: bool = True
    held: threading.Event = field(default_factory=threading.Event)  # a download has come that `hold` stops
    release: threading.Event = field(default_factory=threading.Event)
    hold: str | None = None
    encodings: dict[str, str] = field(default_factory=dict)  # what a body is said to be packed as
    model_info: bytes | None = None  # the answer for a repository, instead of the right one
    odd_etag: str | None = None
    states_sizes: bool = True  # before a file is sent

    def __enter__(self) -> Self:
        self._servers = [_Server(self, "hub"), _Server(self, "cdn")]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(HOLD_S)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._servers[1].server_port}"

    def add(self, repository: HubRepository) -> HubRepository:
        self.repositories[repository.name] = repository
        return repository

    def downloads(self, name: str = "") -> list[HubRequest]:
        """The GET requests for files whose path ends so, in order; a redirected one counts at the CDN."""
        files = [request for request in self.requests if request.method == "GET" and "/api/" not in request.path]
        return [request for request in files if request.path.endswith(name)]

    def blob(self, digest: str) -> tuple[str, bytes] | None:
        for repository in self.repositories.values():
            for path, content in repository.files.items():
                if hashlib.sha256(content).hexdigest() == digest:
                    return path, content
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.role = role


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the kernel would hold the second one back for 40 ms
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    @property
    def _hub(self) -> FakeHub:
        return self.server.hub

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._hub.requests.append(
            HubRequest(server=self.server.role, method=self.command, path=self.path, headers=headers)
        )
        if self.server.role == "cdn":
            found = self._hub.blob(self.path.rpartition("/")[2].partition("?")[0])
            return self._error(404, None) if found is None else self._send_file(found[0], found[1], {})
        if (self.command == "HEAD" or self.path.startswith("/api/")) and (busy := self._hub.busy[self.command]):
            return self._error(busy.pop(0), None)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^?]+))?(?:\?.*)?", self.path):
            return self._model_info(match[1], match[2] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            return self._resolve(match[1], match[2], match[3])
        return self._error(404, None)

    def _model_info(self, name: str, revision: str) -> None:
        repository = self._hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound")
        if revision not in (repository.commit, *repository.tags):
            return self._error(404, "RevisionNotFound")
        document = {
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": False,
            "gated": "auto" if repository.is_gated else False,
            "cardData": {"license": repository.license},
            "siblings": [{"rfilename": path} for path in sorted(repository.files)],
        }
        body = json.dumps(document).encode() if self._hub.model_info is None else self._hub.model_info
        return self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound")
        if revision not in (repository.commit, *repository.tags):
            return self._error(404, "RevisionNotFound")
        if path not in repository.files:
            return self._error(404, "EntryNotFound")
        if repository.is_gated and self.headers.get("authorization") not in [f"Bearer {t}" for t in self._hub.tokens]:
            return self._error(403 if self.headers.get("authorization") else 401, "GatedRepo")
        content = repository.files[path]
        facts = {"X-Repo-Commit": repository.commit}
        etag = self._hub.odd_etag or repository.etag(path)
        if not path.endswith(_LARGE_SUFFIXES):
            return self._send_file(path, content, facts | ({"ETag": f'"{etag}"'} if self._hub.has_etags else {}))
        linked = {"X-Linked-Size": str(len(content))}
        if self._hub.has_etags:
            linked["X-Linked-Etag"] = f'"{etag}"'
        location = f"{self._hub.cdn}/blobs/{hashlib.sha256(content).hexdigest()}?signature=of-this-minute"
        return self._send(302, b"", facts | linked | {"Location": location})

    def _send_file(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        """Send a file as servers do, with ranges, or as the test wants it."""
        hub = self._hub
        if self.command == "HEAD":
            return self._send(200, content, headers)
        if hub.statuses[path]:
            return self._error(hub.statuses[path].pop(0), None)
        if hub.hold == path:
            hub.held.set()
            hub.release.wait(HOLD_S)
        body, status = hub.wrong.get(path, content), 200
        if path in hub.encodings:
            headers = headers | {"Content-Encoding": hub.encodings[path]}
        if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))) and not hub.ignores_ranges:
            start = int(match[1])
            if start >= len(body):
                return self._error(416, None)
            headers = headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            body, status = body[start:], 206
        cut = hub.cuts[path].pop(0) if hub.cuts[path] else None
        return self._send(status, body, headers | {"Accept-Ranges": "bytes"}, cut=cut)

    def _error(self, status: int, code: str | None) -> None:
        headers = {} if code is None else {"X-Error-Code": code, "X-Error-Message": f"{code} here"}
        self._send(status, b"", headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" or self._hub.states_sizes:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@contextlib.contextmanager
def fake_hub(*repositories: HubRepository) -> Iterator[FakeHub]:
    """Serve some repositories."""
    with FakeHub() as hub:
        for repository in repositories:
            hub.add(repository)
        yield hub
