"""Who reaches the studio, and what of the machine: a password, own pages only, files of the folder only."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from bench.servers import free_port
from deployments.file_server import listening
from deployments.hosts import names_of_machine
from deployments.studio import access, command, server
from deployments.studio.command import studio
from deployments.studio.server import make_app
from musicgen_core.errors import ConfigError
from tests.studio_site import Site, open_studio

HEADERS = {"content-type": "application/json"}
PASSWORD = "an open sésame"
PATHS = ("/api/state", "/api/pieces", "/api/adapters", "/api/flow", "/files/generated_000.wav", "/api/jobs/0/sound")


@pytest.fixture(scope="module")
def locked(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_studio(tmp_path_factory.mktemp("locked"), runs, PASSWORD) as site:
        yield site


def test_nothing_is_served_without_the_password(locked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_WRONG_PASSWORD_SECONDS", 0.01)
    for path in PATHS:
        assert httpx.get(locked.url + path).status_code == 401
    for path in ("/api/jobs", "/api/uploads", "/api/flow"):
        assert httpx.post(locked.url + path, json={"prompt": "x"}).status_code == 401
    assert httpx.delete(locked.url + "/api/jobs/0").status_code == 401
    assert locked.served.studio.jobs() == []
    page = httpx.get(locked.url, follow_redirects=True)
    assert 'type="password"' in page.text and "prompt" not in page.text
    wrong = httpx.post(f"{locked.url}/login", data={"password": "sesame"})
    assert wrong.status_code == 403 and "That is not the password" in wrong.text and "set-cookie" not in wrong.headers


def test_the_password_opens_a_session_with_a_signed_cookie(locked: Site) -> None:
    right = httpx.post(f"{locked.url}/login", data={"password": PASSWORD})
    cookie = right.headers["set-cookie"]
    assert right.status_code == 303 and {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    session = cookie.partition(";")[0]
    assert httpx.get(f"{locked.url}/api/state", headers={"cookie": session}).status_code == 200
    expires, _, signature = session.partition("=")[2].partition(".")
    for forged in (f"{int(expires) + 1}.{signature}", f"{expires}.", f"{expires}.{'0' * 64}", "", "é.x"):
        answer = httpx.get(f"{locked.url}/api/state", headers={"cookie": f"{access.COOKIE}={forged}".encode()})
        assert answer.status_code == 401


def test_a_right_password_waits_behind_wrong_ones_and_many_are_refused(
    locked: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_WRONG_PASSWORD_SECONDS", 0.05)
    sessions, answers = access.Sessions(PASSWORD), []

    async def guess(password: str) -> None:
        answers.append(await sessions.is_right(password))

    async def guess_all() -> None:
        waiting = [
            asyncio.create_task(guess(password)) for password in (*["wrong"] * (access.MOST_GUESSES - 1), PASSWORD)
        ]
        await asyncio.sleep(0)
        assert sessions.is_busy
        await asyncio.gather(*waiting)

    asyncio.run(guess_all())
    assert answers == [False] * (access.MOST_GUESSES - 1) + [True] and not sessions.is_busy
    monkeypatch.setattr(access, "MOST_GUESSES", 0)
    assert httpx.post(f"{locked.url}/login", data={"password": PASSWORD}).status_code == 429


def test_a_session_is_found_beside_unusual_cookies() -> None:
    sessions = access.Sessions("x")
    session = sessions.cookie(is_secure=False).partition(";")[0]
    for other in ("a[b]=1", "x", 'json={"y": 1}', "é=1"):
        assert sessions.knows(f"{other}; {session}") and sessions.knows(f"{session}; {other}")
        assert not sessions.knows(other)


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = access.Sessions("x")
    cookie = sessions.cookie(is_secure=True)
    assert sessions.knows(cookie.partition(";")[0]) and "; Secure" in cookie
    later = access.time.time() + 31 * 24 * 3600
    monkeypatch.setattr(access.time, "time", lambda: later)
    assert not sessions.knows(cookie.partition(";")[0])


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example"])
def test_other_sites_names_for_this_machine_are_refused(site: Site, host: str) -> None:
    assert httpx.get(f"{site.url}/api/pieces", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_pages_can_ask_for_nothing(site: Site, headers: dict[str, str]) -> None:
    before = len(site.served.studio.jobs())
    for method, path in (
        ("POST", "/api/jobs"),
        ("POST", "/api/uploads"),
        ("DELETE", "/api/jobs/0"),
        ("POST", "/login"),
    ):
        answer = httpx.request(method, site.url + path, headers=HEADERS | headers, content=b'{"prompt": "x"}')
        assert answer.status_code == 403
    assert len(site.served.studio.jobs()) == before


def test_the_own_page_may_ask(site: Site) -> None:
    headers = HEADERS | {"origin": site.url, "sec-fetch-site": "same-origin"}
    answer = httpx.post(f"{site.url}/api/jobs", headers=headers, content=b'{"prompt": "x", "duration": 0.1}')
    assert answer.status_code == 202


@pytest.mark.parametrize(
    "name",
    [
        "../secret.wav",
        "..%2fsecret.wav",
        "generated_000.pt",
        "sources",
        "generated_000.wav/..",
        "generated_777.wav",
        "%00",
        "generated_000.claim",
    ],
)
def test_only_files_of_samples_are_read(site: Site, name: str, tmp_path: Path) -> None:
    folder = site.served.folder.path
    (folder.parent / "secret.wav").write_text("secret")
    link = folder / "generated_777.wav"
    if not link.is_symlink():
        link.symlink_to(folder.parent / "secret.wav")
    answer = httpx.get(f"{site.url}/files/{name}")
    assert answer.status_code == 404 and "secret" not in answer.text
    link.unlink()


def test_a_page_of_another_program_is_not_served(runs: Path, tmp_path: Path) -> None:
    with open_studio(tmp_path / "music", runs) as site:
        (tmp_path / "music" / "index.html").write_text("<script>alert(1)</script>")
        assert site.client.get("/files/index.html").status_code == 404


def test_a_link_out_of_the_folder_is_neither_read_nor_written(runs: Path, tmp_path: Path) -> None:
    outside, sound = tmp_path / "outside", io.BytesIO()
    outside.mkdir()
    soundfile.write(sound, np.sin(np.arange(3200)), 32_000, format="WAV")
    secret = outside / f"upload_{'0' * 16}.wav"
    secret.write_bytes(sound.getvalue())
    with open_studio(tmp_path / "music", runs) as site:
        (tmp_path / "music" / "sources").symlink_to(outside)
        answers = [
            site.client.post("/api/uploads", content=sound.getvalue()),
            site.client.post("/api/jobs", json={"prompt": "x", "source": secret.name}),
        ]
        assert [answer.status_code for answer in answers] == [422, 422]
        assert all("sources is a link" in answer.json()["error"] for answer in answers), [one.text for one in answers]
        (tmp_path / "music" / "sources").unlink()
        (tmp_path / "music" / "sources").mkdir()
        (tmp_path / "music" / "sources" / secret.name).symlink_to(secret)
        answer = site.client.post("/api/jobs", json={"prompt": "x", "source": secret.name})
        assert answer.status_code == 422 and answer.json()["error"].startswith("there is no sample")
    assert list(outside.iterdir()) == [secret]


@pytest.mark.parametrize("source", ["../secret", "/etc/passwd", "generated_999", "upload_0.wav", "generated_000.wav"])
def test_only_recordings_of_the_folder_are_continued(site: Site, source: str) -> None:
    answer = site.client.post("/api/jobs", json={"prompt": "x", "source": source})
    assert answer.status_code == 422 and answer.json()["error"].startswith(f"there is no sample {source} in the folder")


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"strengths": {"/etc/passwd": 1}}, "1 of the adapters are gone. Reload the page"),
        ({"duration": 1e9}, "duration"),
        ({"key": "H sharp"}, "key"),
        ({"out": "/tmp/x"}, "out"),
        ({"prompt": "x" * 3000}, "prompt"),
        ({"variations": 9}, "variations"),
    ],
)
def test_wrong_forms_are_refused_with_a_reason(site: Site, form: dict[str, object], named: str) -> None:
    answer = site.client.post("/api/jobs", json=form)
    assert answer.status_code == 422 and named in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_broken_forms_are_refused(site: Site, body: bytes) -> None:
    answer = site.client.post("/api/jobs", content=body, headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]) == (422, "the form isn't JSON")


def test_uploads_are_limited_and_must_be_sound(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = site.client.post("/api/uploads", content=b"<script>alert(1)</script>" * 10)
    assert answer.status_code == 422 and "can't be continued" in answer.json()["error"]
    monkeypatch.setattr(server, "MOST_UPLOAD_BYTES", 1 << 20)
    answer = site.client.post("/api/uploads", content=bytes(3 << 20))
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        "what was sent has more than 1 MiB. Send a shorter recording",
    )
    assert not list(site.served.folder.path.glob("sources/upload_*"))


def test_pages_run_only_scripts_of_the_studio_and_hold_no_markup_of_others(site: Site) -> None:
    answer = site.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", answer.text)
    for script in ("studio.js", "form.js", "live.js"):
        text = site.client.get(f"/static/{script}").text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert site.client.get("/static/server.py").status_code == 404


def test_the_name_of_a_proxy_is_allowed_once_it_is_given(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"host": "music.example.com"}
    refused = httpx.get(site.url, headers=headers)
    assert refused.status_code == 421 and "MUSICGEN_STUDIO_URL" in refused.text
    monkeypatch.setenv("MUSICGEN_STUDIO_URL", "https://music.example.com")
    url, local = command._addresses("127.0.0.1", 7860)
    assert (url, local) == ("https://music.example.com/", "http://127.0.0.1:7860")
    app = make_app(site.served, access.Sessions(None), names_of_machine(url))
    port = free_port()
    with listening(app, "127.0.0.1", port):
        assert httpx.get(f"http://127.0.0.1:{port}/", headers=headers).status_code == 200
        own = HEADERS | headers | {"origin": "https://music.example.com", "sec-fetch-site": "same-origin"}
        answer = httpx.post(f"http://127.0.0.1:{port}/api/votes", headers=own, content=b"{}")
        assert answer.status_code == 422  # not refused as another site's


def test_another_host_needs_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSICGEN_STUDIO_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"other machines reach 0\.0\.0\.0, and there is no password"):
        studio({"host": "0.0.0.0", "output": str(tmp_path)})
