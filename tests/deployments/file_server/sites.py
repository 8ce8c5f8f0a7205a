"""Requests to the file server, and its pages as they are read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx

from bench.servers import free_port
from deployments.file_server import Application, Folders, listening, page_policy

SECRET = b"not for readers"


def folders_of(tree: Path) -> Folders:
    folders = Folders()
    folders.served = {name: str(tree / name) for name in ("tokens", "runs", "output")}
    return folders


@contextmanager
def site_of(output: Path) -> Iterator[str]:
    folders, port = Folders(), free_port()
    folders.served = {"output": str(output)}
    with listening(Application(folders, None), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


def ask(app: Any, path: str, host: str = "127.0.0.1") -> tuple[int, bytes]:
    """GET a path verbatim, which HTTP clients would normalize first, and return status and body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "query_string": b""}
    scope["headers"] = [(b"host", host.encode())] if host else []
    asyncio.run(app({**scope, "raw_path": path.encode(errors="replace")}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


class Listing(HTMLParser):
    """Parser of a page of the file server: its links with their texts, and all of its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.text = ""
        self._link: str | None = None
        self.feed(page)

    @property
    def names(self) -> list[str]:
        """Texts of the links to what is in the folder."""
        return [text for link, text in self.links if re.fullmatch(r"\./[^/]+/?", link)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "iframe")
        if tag == "a":
            self._link = dict(attrs)["href"]
            self.links.append((str(self._link), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._link is not None:
            link, text = self.links.pop()
            self.links.append((link, text + data))


def listing(site: str, path: str) -> Listing:
    answer = httpx.get(f"{site}{path}", timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == page_policy()
    assert answer.headers["x-content-type-options"] == "nosniff"
    return Listing(answer.text)
