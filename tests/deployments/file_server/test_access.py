"""Access to the file server: nothing is read outside of its folders, without the password or by another site."""

from __future__ import annotations

import http.client
import platform
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import settings

from bench.servers import free_port
from deployments.file_server import Application, listening, password
from deployments.hosts import names_of_machine
from tasks.served import GREETING
from tests.deployments.file_server.sites import SECRET, ask, folders_of

PASSWORD = "me:se:cret ü"

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


@pytest.mark.parametrize("path", ["/runs/..%2Fsecret.wav", "/runs/%2e%2e/secret.wav", "/runs/../secret.wav"])
def test_encoded_ways_out_are_closed_in_a_real_server(site: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(site).netloc, timeout=60)  # sends the path as it is
    connection.request("GET", path)
    assert connection.getresponse().status == 404


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
