"""A local stand-in for the Hugging Face Hub: its HTTP protocol for downloads and uploads, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.stand_in_hub_uploads import BATCH, STORED, UPLOAD, XET_TOKEN, Uploads

TOKEN = "hf_the-right-one"
_API = re.compile(r"/api/models/(?P<repo>.+?)/(?P<what>revision|tree)/[^/]+|/api/models/(?P<bare>[^/]+/[^/]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/[^/]+/(?P<name>.+)")


@dataclass
class Repository:
    """A repository: files by name. Those of `lfs` bytes or more are served as LFS files."""

    files: dict[str, bytes]
    access: str = "public"
    """public, private or gated"""
    lfs: int = 1000

    @property
    def card(self) -> dict[str, Any]:
        """Return the front matter of the model card."""
        _, mark, text = self.files.get("README.md", b"").decode().partition("---\n")
        return yaml.safe_load(text.partition("\n---\n")[0]) or {} if mark else {}

    @property
    def commit(self) -> str:
        content = json.dumps({name: self.etag(name) for name in sorted(self.files)})
        return hashlib.sha1(content.encode()).hexdigest()

    def is_large(self, name: str) -> bool:
        return len(self.files[name]) >= self.lfs

    def etag(self, name: str) -> str:
        data = self.files[name]
        if self.is_large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Fault:
    """A fault of the next requests.

    Attributes:
        path: substring of the affected paths.
        times: number of affected requests.
        status, headers: status and headers of the response.
        hangs: whether the request is accepted and never answered.
        sends: bytes of the body to send before the connection is dropped.
        takes: bytes of an uploaded body to receive before the connection is dropped.
        spoils: whether wrong bytes are sent.
    """

    path: str = ""
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    sends: int | None = None
    takes: int | None = None
    spoils: bool = False


@dataclass
class StandInHub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request"""
    user: str = "somebody"
    has_metadata: bool = True
    """Whether `?blobs=true` is supported; mirrors may lack it"""
    ignores_ranges: bool = False
    uploads: Uploads = field(default_factory=Uploads)
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, repo: str, directory: Path, **more: bytes) -> Repository:
        files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        self.repositories[repo] = Repository({name: path.read_bytes() for name, path in files.items()} | more)
        return self.repositories[repo]

    def fetched(self) -> list[str]:
        """Return the names of the requested files, in order, one per request."""
        return [match["name"] for method, path, _ in self.requests if method == "GET" if (match := _FILE.match(path))]

    def fault_of(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.path in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client may be killed
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        fault = self.hub.fault_of(path)
        body = self._receive(fault) if self.command in ("POST", "PUT") else b""
        if body is None:
            self.close_connection = True
        elif fault is not None and fault.hangs:
            self.hub.released.wait()
            self.close_connection = True
        elif fault is not None and fault.status:
            self._send(fault.status, b"busy", fault.headers)
        elif self._token() not in ("", TOKEN):
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/whoami-v2":
            self._whoami()
        elif self.command in ("POST", "PUT") or XET_TOKEN.fullmatch(path):
            self._take(path, body)
        elif path.startswith("/cdn/") and self._token():
            self._send(400, b"the token is of no concern to a CDN", {})
        elif path.startswith("/cdn/"):
            self._serve(path.removeprefix("/cdn/"), fault)
        else:
            self._answer_for_repository(path, fault)

    def _whoami(self) -> None:
        if self._token():
            self._send_json(self.hub.uploads.account(self.hub.user))
        else:
            self._send(401, b"{}", {})

    def _receive(self, fault: Fault | None) -> bytes | None:
        """Return the body of a request; None: the connection was dropped in the middle of it."""
        length = int(self.headers.get("Content-Length", "0"))
        data = self.rfile.read(length if fault is None or fault.takes is None else min(fault.takes, length))
        if self.path.startswith("/lfs"):
            self.hub.uploads.received += len(data)
        return data if len(data) == length else None

    def _take(self, path: str, body: bytes) -> None:
        uploads = self.hub.uploads
        match = UPLOAD.fullmatch(path) or XET_TOKEN.fullmatch(path) or BATCH.fullmatch(path)
        if stored := STORED.fullmatch(path):
            self._store(stored["what"], stored["oid"], int(stored["part"] or 0), body)
        elif not self._token():
            self._send(401, b"{}", {"X-Error-Message": "Invalid username or password."})
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match is None or match["repo"] not in self.hub.repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif not uploads.may_write(self.hub.user, match["repo"].partition("/")[0]):
            self._send(403, b"{}", {"X-Error-Message": "You need write access to this repository"})
        elif match.re is BATCH:
            self._send_json(uploads.batch(self.hub.url.replace("127.0.0.1", "localhost"), json.loads(body)))
        elif match.re is XET_TOKEN:
            self._send_json(uploads.xet_token())
        elif match["what"] == "preupload":
            self._send_json(uploads.modes(self.hub.repositories[match["repo"]], json.loads(body)))
        else:
            repository = self.hub.repositories[match["repo"]]
            uploads.commit(repository, body)
            url = f"{self.hub.url}/{match['repo']}/commit/{repository.commit}"
            self._send_json({"success": True, "commitOid": repository.commit, "commitUrl": url, "hookOutput": ""})

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.hub.uploads.may_write(self.hub.user, asked["organization"]):
            self._send(403, b"{}", {"X-Error-Message": "You don't have the rights to create a model there"})
        elif repo in self.hub.repositories:
            self._send(409, json.dumps({"error": "exists", "url": f"{self.hub.url}/{repo}"}).encode(), {})
        else:
            files = {".gitattributes": b"*.bin filter=lfs\n"}
            self.hub.repositories[repo] = Repository(files, asked.get("visibility", "public"))
            self._send_json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _store(self, what: str, oid: str, part: int, body: bytes) -> None:
        """Take a large file or a part of it; like the downloads, from an address of its own."""
        if what in ("lfs", "lfs-part") and self._token():
            self._send(400, b"the token is of no concern to a store", {})
            return
        if what in ("lfs", "lfs-part"):
            self.hub.uploads.store(oid, part, body)
        elif what == "lfs-end":
            self.hub.uploads.complete(oid, json.loads(body))
        self._send(200, b"{}", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _answer_for_repository(self, path: str, fault: Fault | None) -> None:
        match = _API.match(path) or _FILE.match(path)
        found = match.groupdict() if match else {}
        repo = found.get("bare") or found.get("repo", "")
        repository = self.hub.repositories.get(repo)
        if match is None or repository is None or (repository.access == "private" and not self._token()):
            self._send(401 if not self._token() else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif match.re is _API:
            self._send_listing(repo, match["what"] or "revision", repository)
        elif repository.access == "gated" and not self._token():
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif match["name"] not in repository.files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send_file(repository, match["name"], fault)

    def _send_listing(self, repo: str, what: str, repository: Repository) -> None:
        entries: list[dict[str, object]] = []
        for name, data in sorted(repository.files.items()):
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": name, "rfilename": name}
            if what == "tree" or self.hub.has_metadata:
                entry |= {"size": len(data), "oid": git, "blobId": git}
                if repository.is_large(name):
                    sha256 = repository.etag(name)
                    entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        if what == "tree":
            self._send_json(entries)
        else:
            is_private = repository.access == "private"
            card = repository.card
            info = {"id": repo, "sha": repository.commit, "private": is_private, "siblings": entries, "cardData": card}
            self._send_json(info | {name: card[name] for name in ("library_name", "tags") if name in card})

    def _send_file(self, repository: Repository, name: str, fault: Fault | None) -> None:
        etag = repository.etag(name)
        known = {"X-Repo-Commit": repository.commit, "ETag": f'"{etag}"'}
        if repository.is_large(name):
            known |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(repository.files[name]))}
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, as far as tokens are concerned
            self._send(302, b"", {**known, "Location": f"{elsewhere}/cdn/{etag}?signature=not-to-be-seen"})
        else:
            self._send_ranged(repository.files[name], known, fault)

    def _serve(self, etag: str, fault: Fault | None) -> None:
        for repository in self.hub.repositories.values():
            for name, data in repository.files.items():
                if repository.etag(name) == etag:
                    self._send_ranged(data, {"ETag": f'"{etag}"'}, fault)
                    return
        self._send(404, b"", {})

    def _send_ranged(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        first = 0
        if (wanted := self.headers.get("Range", "")) and not self.hub.ignores_ranges:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers = {**headers, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        body = data[first:]
        if fault is not None and fault.spoils:
            body = bytes(255 - byte for byte in body)
        self._send(206 if first else 200, body, headers, None if fault is None else fault.sends)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], sends: int | None = None) -> None:
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if sends is None else body[:sends])
            self.close_connection |= sends is not None


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """Serve an empty Hub."""
    hub = StandInHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(url: str, cache: Path, set_attribute: Callable[..., None]) -> None:
    """Make huggingface_hub in this process use the Hub at `url` and the given cache.

    Args:
        set_attribute: pytest's `monkeypatch.setattr`.
    """
    from huggingface_hub import constants

    set_attribute(constants, "ENDPOINT", url)
    set_attribute(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    set_attribute(constants, "HF_HUB_CACHE", str(cache))
    set_attribute(constants, "HF_TOKEN_PATH", str(cache.with_name("no-token")))
    set_attribute(constants, "HF_HUB_OFFLINE", False)
    # Xet's client is a binary with a protocol of its own; only a local directory stands in for it: see `Uploads.xet`.
    set_attribute(constants, "HF_HUB_DISABLE_XET", True)
