"""Listings of the folders that the file server serves."""

from __future__ import annotations

import http.client
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.file_server import Application, Folders
from deployments.listing import MOST_ROWS
from musicgen_core.escaping import printable
from tasks.served import is_served
from tests.deployments.file_server.sites import Listing, ask, listing, site_of
from tests.hostile import TEXTS


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
