"""The file server of `up`: what it serves, to whom, and that nothing else of the machine is reached through it."""

from __future__ import annotations

import asyncio
import http.client
import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow, settings
from prefect.client.orchestration import get_client
from prefect.variables import Variable

from bench.servers import free_port
from deployments.file_server import Application, Folders, listening, names_of_machine, page_policy, password, serving
from deployments.listing import MOST_ROWS
from deployments.run import WAVS, _outcome
from musicgen_core.escaping import markdown_link, printable
from musicgen_core.generation.page import write_index
from tasks.artifacts import Artifacts
from tasks.served import GREETING, VARIABLE, FileServer, file_link, is_served, links_in
from tests.hostile import TEXTS

SECRET = b"not for readers"
PASSWORD = "me:se:cret ü"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Served folders with music, and things in and beside them that are not to be read."""
    top = tmp_path_factory.mktemp("places")
    run = top / "runs" / "first"
    (run / "samples").mkdir(parents=True)
    (run / "wandb").mkdir()
    (run / ".git").mkdir()
    (top / "output").mkdir()
    (top / "tokens").mkdir()
    tone = 0.3 * np.sin(np.arange(32_000) / 20)
    for name in ("runs/first/samples/epoch_000_00.wav", "output/a b#c%d?é.wav"):
        soundfile.write(top / name, tone, 32_000)
    (top / "output" / "a b#c%d?é.json").write_text('{"prompt": "jazz"}')
    (top / "output" / "index.html").write_text("<title>music</title>")
    (top / "runs-of-others").mkdir()
    hidden = ["secret.wav", "runs-of-others/secret.wav", "runs/config.json", "runs/first/config.json"]
    hidden += ["runs/first/.env", "runs/first/.git/secret.wav", "runs/first/.hidden.wav", "runs/first/settings.yaml"]
    for name in [*hidden, "runs/first/wandb/wandb-metadata.json"]:
        (top / name).write_bytes(SECRET)
    (run / "out").symlink_to(top)
    (run / "out.wav").symlink_to(top / "secret.wav")
    (run / "settings.wav").symlink_to(run / "config.json")
    (run / "loop.wav").symlink_to(run / "loop.wav")
    os.mkfifo(run / "pipe.wav")
    return top


def folders_of(tree: Path) -> Folders:
    folders = Folders()
    folders.served = {name: str(tree / name) for name in ("tokens", "runs", "output")}
    return folders


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


PARTS = st.sampled_from(
    [
        *("..", ".", "", "%2e%2e", "..%2f", "\\", "..\\", "\x00", "~", "a" * 300),
        *("runs", "output", "first", "out", "samples", "wandb", ".git", "runs-of-others"),
        *("secret.wav", "out.wav", "loop.wav", "pipe.wav", "settings.wav", ".hidden.wav", "epoch_000_00.wav"),
        *("index.html", ".env", "config.json", "wandb-metadata.json", "settings.yaml"),
    ]
)


@given(parts=st.lists(st.one_of(PARTS, st.text(max_size=8)), max_size=9), decoded=st.integers(0, 2))
def test_no_path_leads_out_of_the_folders_or_to_what_is_hidden(tree: Path, parts: list[str], decoded: int) -> None:
    path = "/" + "/".join(parts)
    for _ in range(decoded):
        path = unquote(path)
    status, body = ask(Application(folders_of(tree), None), path)
    assert status in (200, 307, 404, 405) and SECRET not in body
    if status == 200 and body != GREETING.encode():
        assert body.startswith((b"RIFF", b"<title>", b'{"prompt"', b"<!DOCTYPE html>"))


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/../secret.wav", "/runs/first/out/secret.wav", "/runs/first/out.wav", "/runs/first/settings.wav"),
        *("/runs/first/config.json", "/runs/first/.env", "/runs/first/.git/secret.wav", "/runs/first/.hidden.wav"),
        *("/runs/first/wandb/wandb-metadata.json", "/runs-of-others/secret.wav", "/runs/../runs-of-others/secret.wav"),
        *("/etc/passwd", "//etc/passwd", "/runs//etc/passwd", "/etc/", "/runs-of-others/", "/runs/../runs-of-others/"),
        *("/runs/first/out", "/runs/first/out/", "/runs/first/.git", "/runs/first/.git/", "/runs/none/", "/archives/"),
        *("/runs/first/pipe.wav", "/runs/first/loop.wav", "/runs/first/\0.wav", "/tokens/a.wav"),
    ],
)
def test_files_that_are_not_served_are_not_found(tree: Path, path: str) -> None:
    assert ask(Application(folders_of(tree), None), path)[0] == 404


def test_a_symlinked_folder_is_served_as_its_target(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree / "output")
    server = FileServer("http://here", "http://here", "box", {"output": str((tmp_path / "link").resolve())})
    assert server.url_of(tmp_path / "link" / "index.html") == "http://here/output/index.html"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:4300", "[::1]:4300", "192.0.2.7:80", "localhost:4300", "LOCALHOST", "localhost."),
        *("box", "box:4300", "Box.local:4300", "music.example.org"),
    ],
)
def test_a_request_by_a_name_of_this_machine_is_answered(
    tree: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "Box")
    app = Application(folders_of(tree), None, names_of_machine("https://music.example.org/files"))
    assert ask(app, "/output/index.html", host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example.com", "evil.example.com:4300", "box.evil.example.com", "127.0.0.1.evil.example.com", "[", "a:b"],
)
def test_a_request_by_another_sites_name_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(platform, "node", lambda: "box")
    app = Application(folders_of(tree), None, names_of_machine("http://box:4300"))
    for path in ("/output/index.html", "/health"):
        status, body = ask(app, path, host)
        assert status == 421 and b"MUSICGEN_FILES_URL" in body


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


@pytest.fixture
def site(tree: Path) -> Iterator[str]:
    port = free_port()
    with listening(Application(folders_of(tree), None), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("path", ["/runs/..%2Fsecret.wav", "/runs/%2e%2e/secret.wav", "/runs/../secret.wav"])
def test_encoded_ways_out_are_closed_in_a_real_server(site: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=60)  # sends the path as it is
    connection.request("GET", path)
    assert connection.getresponse().status == 404


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


@contextmanager
def site_of(output: Path) -> Iterator[str]:
    folders, port = Folders(), free_port()
    folders.served = {"output": str(output)}
    with listening(Application(folders, None), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


def test_links_from_the_root_reach_every_served_file(site: str, tree: Path) -> None:
    seen, files = set(), set()
    waiting = [f"{site}/"]
    while waiting:
        if (url := waiting.pop()) in seen:
            continue
        seen.add(url)
        if url.endswith("/"):
            waiting += [urljoin(url, link) for link, _ in listing(site, url.removeprefix(site)).links]
        else:
            assert httpx.get(url).status_code == 200
            files.add(unquote(url.removeprefix(site)))
    expected = {
        f"/{name}/{file.relative_to(tree / name)}"
        for name in ("tokens", "runs", "output")
        for file in (tree / name).rglob("*")
        if not file.is_symlink() and file.is_file() and is_served(file, tree / name)
    }
    assert files == expected and "/output/a b#c%d?é.json" in files


def test_a_listing_shows_nothing_that_is_hidden_or_elsewhere(site: str) -> None:
    assert listing(site, "/runs/").names == ["first"]
    page = listing(site, "/runs/first/")
    assert set(page.names) == {"samples", "wandb"}
    assert listing(site, "/runs/first/wandb/").names == []
    assert [link for link, _ in listing(site, "/").links] == ["tokens/", "runs/", "output/"]


def test_a_listing_shows_size_and_time_newest_first(tmp_path: Path) -> None:
    for number, name in enumerate(("b.wav", "c.png", "a.wav", "x", "y")):
        file = tmp_path / name
        (file / "sub").mkdir(parents=True) if "." not in name else file.write_bytes(bytes(1500 * number))
        os.utime(file, (86_400 * 365 * (30 + number),) * 2)
    with site_of(tmp_path) as site:
        page = listing(site, "/output/")
    assert page.names == ["y", "x", "a.wav", "c.png", "b.wav"]
    assert "3.0 kB" in page.text and "0 bytes" in page.text and re.search(r"2003-12-\d\d \d\d:\d\d", page.text)


def test_pages_are_listed_first_in_their_folder_and_its_parent(tmp_path: Path) -> None:
    music = tmp_path / "first music"
    music.mkdir()
    for name in ("a.wav", "report.html", "index.html"):
        (music / name).write_bytes(b"x")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "index.html").symlink_to("/etc/passwd")
    with site_of(tmp_path) as site:
        inside, above = listing(site, "/output/first%20music/"), listing(site, "/output/")
    pages = [("index.html", "Listen to all of it"), ("report.html", "Read the report")]
    assert [link for link in inside.links if link[0][0] != "."] == pages
    assert inside.links.index(pages[0]) < inside.links.index(("./index.html", "index.html"))
    assert [link for link in above.links if link[1].startswith(("Listen", "Read"))] == [
        (f"./first%20music/{name}", text) for name, text in pages
    ]


def test_pages_of_a_run_are_listed_beside_its_name(tmp_path: Path) -> None:
    pages = {"samples/index.html": "Listen to its samples", "evaluation/report.html": "Read the report"}
    for name in pages:
        (tmp_path / "first" / name).parent.mkdir(parents=True)
        (tmp_path / "first" / name).write_bytes(b"x")
    (tmp_path / "second" / "samples").mkdir(parents=True)
    (tmp_path / "second" / "samples" / "index.html").symlink_to("/etc/passwd")
    with site_of(tmp_path) as site:
        above, inside = listing(site, "/output/"), listing(site, "/output/first/")
        for link, text in [
            ("samples/index.html", "Listen to its samples"),
            ("evaluation/report.html", "Read the report"),
        ]:
            assert above.links.count((f"./first/{link}", text)) == inside.links.count((link, text)) == 1
            assert httpx.get(f"{site}/output/first/{link}").content == b"x"
    assert not any(link.startswith("./second/") and link != "./second/" for link, _ in above.links)


def test_pages_of_many_runs_are_listed_for_those_that_are_shown(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"run-{number:05d}").mkdir()
    newest = tmp_path / "run-04321"
    (newest / "evaluation").mkdir()
    (newest / "evaluation" / "report.html").touch()
    os.utime(newest, (2e9, 2e9))
    with site_of(tmp_path) as site:
        page = listing(site, "/output/")
    assert len(page.names) == MOST_ROWS and page.names[0] == newest.name
    assert ("./run-04321/evaluation/report.html", "Read the report") in page.links


def as_in_a_browser(path: str, link: str) -> str:
    """Return the path that a relative link leads to. Unlike `urljoin`, browsers keep empty parts of a path."""
    parts = path.split("/")[1:-1]
    for part in link.split("/")[:-1]:
        if part == "..":
            parts.pop()  # fails above the root, where a proxy may have other pages
        elif part != ".":
            parts.append(part)
    return "".join(f"/{part}" for part in parts) + "/"


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("/runs/first/none.wav", "/runs/first/"),
        ("/runs/first/none/at/all/", "/runs/first/"),
        ("/runs/first/config.json", "/runs/first/"),
        ("/runs/first/.git/secret.wav", "/runs/first/"),
        ("/runs/first/out/secret.wav", "/runs/first/"),
        ("/runs/first%2Fnone.wav", "/runs/first/"),
        ("/runs//first//none", "/runs/first/"),
        ("/output/a%20b.wav", "/output/"),
        ("/archives/none.wav", None),
        ("/none", None),
        ("//etc/passwd", None),
        ("/runs/first/%00.wav", "/runs/first/"),
        ("/" + "a/" * 3000, None),
    ],
)
def test_a_path_to_nothing_names_it_and_links_to_what_there_is(site: str, path: str, above: str | None) -> None:
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=60)  # sends the path as it is
    connection.request("GET", path)
    answer = connection.getresponse()
    page, headers = Listing(answer.read().decode()), answer.headers
    assert (answer.status, headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert headers["content-security-policy"] == page_policy() and headers["x-content-type-options"] == "nosniff"
    assert printable(unquote(path))[:100] in page.text
    assert [as_in_a_browser(path, link) for link, _ in page.links] == [target for target in (above, "/") if target]
    for target in (above, "/"):
        assert target is None or httpx.get(f"{site}{target}").status_code == 200


def test_a_page_of_what_is_hidden_is_that_of_what_is_not_there(tree: Path) -> None:
    app = Application(folders_of(tree), None)
    for hidden, none in [("config.json", "confif.json"), (".git/secret.wav", ".gi_/secret.wav"), ("out/", "ouu/")]:
        (_, one), (_, other) = (ask(app, f"/runs/first/{name}") for name in (hidden, none))
        assert one.replace(hidden.encode(), b"") == other.replace(none.encode(), b"")


@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_hostile_paths_to_nothing_are_shown_as_text(tree: Path, text: str) -> None:
    status, body = ask(Application(folders_of(tree), None), f"/runs/first/none/{text}/x")
    page = Listing(body.decode())  # asserts that nothing was added
    assert status == 404 and len(body) < 10_000
    assert [shown for _, shown in page.links] == ["Open the folder runs/first", "Files of musicgen-flows"]


@pytest.mark.parametrize("as_folder", [True, False])
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=("Cs",)), max_size=30)))
def test_hostile_names_are_shown_as_text_and_can_be_opened(
    tmp_path_factory: pytest.TempPathFactory, as_folder: bool, text: str
) -> None:
    name = f"x{text}".replace("/", "").replace("\0", "").encode(errors="ignore")[:200].decode(errors="ignore")
    folder = tmp_path_factory.mktemp("names")
    app = Application(served := Folders(), None)
    served.served = {"output": str(folder)}
    if as_folder:
        (folder / name).mkdir()
    else:
        name += ".wav"
        (folder / name).write_bytes(b"x")
    status, body = ask(app, "/output/")
    assert status == 200
    [(link, shown)] = [link for link in Listing(body.decode()).links if link[0].startswith("./")]
    assert link == f"./{quote(name)}{'/' if as_folder else ''}"
    assert re.sub(r"\r\n?", "\n", shown) == re.sub(r"\r\n?", "\n", printable(name))
    assert urljoin("http://here/output/", link).startswith("http://here/output/x")
    status, body = ask(app, f"/output/{name}{'/' if as_folder else ''}")
    assert status == 200
    if as_folder:
        assert Listing(body.decode()).text.count(printable(name)) >= 2


def test_a_name_that_no_url_can_have_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.wav")).write_bytes(b"x")
    (tmp_path / "a.wav").write_bytes(b"x")
    with site_of(tmp_path) as site:
        assert listing(site, "/output/").names == ["a.wav"]


@pytest.mark.parametrize(
    "path", ["/runs", "/runs/first", "/runs/first/samples", "/runs/./first", "/runs/samples/../first"]
)
def test_a_folder_without_a_slash_is_redirected(site: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=60)  # sends the path as it is
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 307
    assert urljoin(f"{site}{path}", answer.headers["location"]) == f"{urljoin(site, path)}/"


def test_links_stay_below_what_a_proxy_has_before_the_path(site: str, tree: Path) -> None:
    for path in ("/", "/runs/", "/runs/first/", "/output/"):
        for link, _ in listing(site, path).links:
            assert urljoin(f"https://proxy/files{path}", link).startswith("https://proxy/files/")


def test_links_within_a_place_are_followed(tmp_path: Path) -> None:
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "a.wav").write_bytes(b"x")
    (tmp_path / "newest").symlink_to(tmp_path / "run-1")
    with site_of(tmp_path) as site:
        assert set(listing(site, "/output/").names) == {"run-1", "newest"}
        assert listing(site, "/output/newest/").names == ["a.wav"]


def test_large_folders_list_the_newest_and_count_the_rest(tmp_path: Path) -> None:
    for number in range(10_000):
        file = tmp_path / f"generated_{number:05d}.wav"
        file.touch()
        os.utime(file, (number, number))
    with site_of(tmp_path) as site:
        page = listing(site, "/output/")
    assert page.names == [f"generated_{number:05d}.wav" for number in range(9_999, 9_999 - MOST_ROWS, -1)]
    assert f"and {10_000 - MOST_ROWS:,} more files, older than these" in page.text


def test_a_place_that_is_empty_or_not_there_yet_says_so(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with site_of(place) as site:
            assert "nothing to open here yet" in listing(site, "/output/").text
    with site_of(tmp_path) as site:
        assert httpx.get(f"{site}/output/none/").status_code == 404


def test_without_local_places_the_root_says_why_it_is_empty() -> None:
    status, body = ask(Application(Folders(), None), "/")
    assert status == 200 and b"not in folders of this machine" in body


def test_listings_are_in_japanese_for_a_japanese_reader(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    assert '<html lang="ja">' in httpx.get(f"{site}/").text
    assert "フォルダ" in listing(site, "/runs/").text and "更新日時" in listing(site, "/output/").text
    assert "見つかりません" in httpx.get(f"{site}/runs/none").text


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


def test_without_the_password_only_health_is_served(tree: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    user, _, word = PASSWORD.partition(":")
    with listening(Application(folders_of(tree), PASSWORD), "127.0.0.1", port):
        assert httpx.get(f"{url}/health").text == GREETING
        for wrong in (None, (user, "other"), ("", ""), (user, word[:-1])):
            for path in ("/output/index.html", "/output/none.html", "/", "/output/", "/runs", "/health/"):
                answer = httpx.get(f"{url}{path}", auth=wrong)
                assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
        for header in ("Basic", "Basic !", "Bearer x", "basic \u00ff"):
            answer = httpx.get(f"{url}/output/index.html", headers={"Authorization": header.encode("latin-1")})
            assert answer.status_code == 401
        assert httpx.get(f"{url}/output/index.html", auth=(user, word)).status_code == 200


@pytest.mark.parametrize("name", ["PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"])
def test_the_password_is_that_of_the_prefect_server(name: str) -> None:
    assert password() is None
    with settings.temporary_settings({getattr(settings, name): "me:secret"}):
        assert password() == "me:secret"


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12))
def test_links_are_made_only_to_files_that_are_served(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    server = FileServer("http://here", "http://here", "box", {"runs": str(folder)})
    folders = Folders()
    folders.served = server.folders
    for ending in (".wav", ".json", ".yaml"):
        file = folder / f"{name}{ending}"
        file.write_bytes(b"x")
        url = server.url_of(file)
        path = unquote(url.removeprefix("http://here")) if url else f"/runs/{file.name}"
        assert ask(Application(folders, None), path)[0] == (200 if url else 404)
        assert (url is not None) == (ending != ".yaml" and not name.startswith("."))
        if url:
            assert links_in(markdown_link(str(file), url)) == [url]


def test_files_elsewhere_have_no_link(tree: Path) -> None:
    server = FileServer("http://here", "http://here", "box", {"runs": str(tree / "runs")})
    for location in (tree / "output" / "index.html", tree / "secret.wav", "gs://bucket/a.wav", tree / "output", tree):
        assert server.url_of(location) is None
    assert server.url_of(tree / "runs" / "first") == "http://here/runs/first/"
    assert server.url_of(tree / "runs") == "http://here/runs/"
    assert not is_served(tree / "secret.wav", tree / "runs")


@flow(name="links")
def links(*files: str) -> list[str]:
    return [file_link(file) for file in files]


@pytest.mark.usefixtures("prefect_server")
def test_runs_link_files_while_the_server_of_up_serves_them(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    local, page = f"http://127.0.0.1:{port}", str(tree / "output" / "index.html")
    hidden = str(tree / "secret.wav")
    places = {f"musicgen_{name}": str(tree / name) for name in ("archives", "tokens", "runs")}
    with serving("127.0.0.1", port, "http://box:4201", local) as server:
        for elsewhere in ("gs://bucket/music", "what://is/this", "music"):
            server.serve({**places, "musicgen_output": elsewhere})
            assert links(page) == [f"`{page}`"]
        server.serve({**places, "musicgen_output": str(tree / "output")})
        assert links(page, hidden) == [markdown_link(page, "http://box:4201/output/index.html"), f"`{hidden}`"]
        assert httpx.get(f"{local}/output/index.html").status_code == 200
        assert file_link(page) == f"`{page}`"  # outside of runs
        stored = Variable.get(VARIABLE)
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "another machine")
            assert links(page) == [f"`{page}`"]
    assert Variable.get(VARIABLE) is None
    Variable.set(VARIABLE, stored)  # as it stays where `up` is killed
    try:
        assert links(page) == [f"`{page}`"]
    finally:
        Variable.unset(VARIABLE)


def test_a_taken_port_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError), listening(Application(Folders(), None), "127.0.0.1", port):
            pass


@flow(name="summarized")
def summarized(text: str) -> None:
    artifacts = Artifacts()
    artifacts.markdown("summary", lambda: text, "What came of it")
    artifacts.close(120)


@pytest.mark.usefixtures("prefect_server")
def test_a_watched_run_ends_with_its_summary_and_browser_links() -> None:
    wavs = [f"http://127.0.0.1:4300/output/generated_{number:03d}.wav" for number in range(WAVS + 2)]
    report = "http://127.0.0.1:4300/runs/" + "long/" * 30 + "report.html"
    text = "\n\n".join(markdown_link(f"/data/{number}", url) for number, url in enumerate([*wavs, report]))
    state: Any = summarized(text, return_state=True)
    with get_client(sync_client=True) as client:
        summary, *links = _outcome(client, state.state_details.flow_run_id, state).made
    assert "/artifacts/artifact/" in summary.place
    assert [link.place for link in links] == [report, *wavs[:WAVS]]
