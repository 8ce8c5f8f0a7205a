"""The page of a path to nothing, or to what is hidden."""

from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.file_server import Application, page_policy
from musicgen_core.escaping import printable
from tests.deployments.file_server.sites import Listing, ask, folders_of
from tests.hostile import TEXTS


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
