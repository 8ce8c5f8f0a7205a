"""Responses of the file server: methods, ranges, caching, content types, scripts; and a port that is taken."""

from __future__ import annotations

import re
import socket
from html import unescape
from pathlib import Path

import httpx
import pytest

from bench.servers import free_port
from deployments.file_server import Application, Folders, listening
from musicgen_core.generation.page import write_index


def test_of_scripts_only_those_of_our_own_pages_run(site: str, tree: Path) -> None:
    (policy,) = {
        httpx.get(f"{site}{path}").headers["content-security-policy"]
        for path in ("/output/index.html", "/runs/first/samples/epoch_000_00.wav")
    }
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"]
    write_index(tree / "tokens", [])
    own = unescape((tree / "tokens" / "index.html").read_text())
    for script in re.findall("script-src ([^;]+);", own)[0].split():
        assert script in rules["script-src"]


def test_players_can_seek(site: str, tree: Path) -> None:
    content = (tree / "runs/first/samples/epoch_000_00.wav").read_bytes()
    url = f"{site}/runs/first/samples/epoch_000_00.wav"
    whole = httpx.get(url)
    assert whole.content == content and whole.headers["accept-ranges"] == "bytes"
    for asked, start, end in (("100-199", 100, 200), ("64000-", 64_000, len(content)), ("-10", -10, None)):
        part = httpx.get(url, headers={"Range": f"bytes={asked}"})
        assert part.status_code == 206 and part.content == content[start:end]
        assert part.headers["content-range"].endswith(f"/{len(content)}")
    assert httpx.get(url, headers={"Range": f"bytes={len(content)}-"}).status_code == 416


def test_nothing_can_be_written(site: str, tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert httpx.request(method, f"{site}/output/index.html", content=b"x").status_code == 405
    assert sorted(tree.rglob("*")) == before and (tree / "output/index.html").read_text() == "<title>music</title>"


def test_a_page_that_was_written_again_is_asked_for_again(site: str) -> None:
    first = httpx.get(f"{site}/output/index.html")
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(f"{site}/output/index.html", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.wav", "audio/wav"),
        ("a.flac", "audio/flac"),
        ("a.ogg", "audio/ogg"),
        ("a.mp3", "audio/mpeg"),
        ("a.png", "image/png"),
        ("a.json", "application/json"),
    ],
)
def test_a_file_has_the_content_type_of_its_ending(tmp_path: Path, name: str, kind: str) -> None:
    for each in (name, "a.wav"):
        (tmp_path / each).write_bytes(b"x")
    folders, port = Folders(), free_port()
    folders.served = {"output": str(tmp_path)}
    with listening(Application(folders, None), "127.0.0.1", port):
        answer = httpx.get(f"http://127.0.0.1:{port}/output/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_taken_port_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError), listening(Application(Folders(), None), "127.0.0.1", port):
            pass
