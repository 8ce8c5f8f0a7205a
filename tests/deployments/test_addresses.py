"""Addresses of the server of `up` and its UI, and who can reach them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefect.server.api.server import create_ui_app
from prefect.settings import PREFECT_SERVER_UI_V2_ENABLED, PREFECT_UI_STATIC_DIRECTORY, temporary_settings
from starlette.testclient import TestClient

from deployments.addresses import addresses, files_addresses, warn_of_others
from deployments.environment import DEFAULTS
from deployments.up import show


@pytest.mark.parametrize(("host", "ours"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_a_server_for_all_addresses_is_called_by_ones_that_exist(
    host: str, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: "box")
    monkeypatch.setenv("PREFECT_UI_API_URL", "")  # put back at the end
    monkeypatch.delenv("PREFECT_UI_API_URL")
    assert addresses(host, 4300) == (f"http://{ours}:4300/api", "http://box:4300")
    assert os.environ["PREFECT_UI_API_URL"] == "http://box:4300/api"  # what the UI of any browser calls
    monkeypatch.setenv("PREFECT_UI_API_URL", "https://music.example.org/api")
    assert addresses(host, 4300)[1] == "https://music.example.org"


def test_a_server_for_one_address_is_called_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_UI_API_URL", "")
    monkeypatch.delenv("PREFECT_UI_API_URL")
    assert addresses("127.0.0.1", 4200) == ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200")
    assert addresses("fd00::5", 4200) == ("http://[fd00::5]:4200/api", "http://[fd00::5]:4200")
    assert "PREFECT_UI_API_URL" not in os.environ


@pytest.mark.parametrize(
    ("ui", "files"),
    [
        ("http://127.0.0.1:4200", "http://127.0.0.1:4201"),
        ("http://box:4200", "http://box:4201"),
        ("http://[fd00::5]:4200", "http://[fd00::5]:4201"),
        ("https://music.example.org", "http://music.example.org:4201"),
    ],
)
def test_files_have_the_host_name_of_the_ui(ui: str, files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSICGEN_FILES_URL", raising=False)
    assert files_addresses("http://127.0.0.1:4200/api", ui, 4201) == ("http://127.0.0.1:4201", files)
    monkeypatch.setenv("MUSICGEN_FILES_URL", "https://music.example.org/files/")
    local, proxied = files_addresses("http://127.0.0.1:4200/api", ui, 4201)
    assert (local, proxied) == ("http://127.0.0.1:4201", "https://music.example.org/files")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "box"])
def test_a_server_that_others_reach_comes_with_a_warning(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    for has_password in (False, True):
        warn_of_others(host, 4300, 4301, has_password)
        printed = capsys.readouterr().out
        assert ("Without a password" in printed) == ("can run programs" in printed) == (not has_password)
        assert ("ask for the password, but over HTTP" in printed) == has_password
        assert "ssh -L 4300:127.0.0.1:4300 -L 4301:127.0.0.1:4301" in printed and "deployments/team" in printed


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_server_for_this_machine_alone_comes_without_a_warning(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_others(host, 4300, 4301, has_password=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("api", ["http://127.0.0.1:4200/api", "http://127.0.0.1:4300/api"])
def test_the_address_is_printed_if_commands_cannot_find_it(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(api, {})
    assert (f"export PREFECT_API_URL={api}" in capsys.readouterr().out) == ("4300" in api)


def test_the_root_address_has_the_ui_that_plays_music(tmp_path: Path) -> None:
    for chosen, status in ((DEFAULTS["PREFECT_SERVER_UI_V2_ENABLED"], 200), (True, 307)):
        with temporary_settings({PREFECT_SERVER_UI_V2_ENABLED: chosen, PREFECT_UI_STATIC_DIRECTORY: str(tmp_path)}):
            browser = TestClient(create_ui_app(ephemeral=False), follow_redirects=False)
            assert browser.get("/", headers={"accept": "text/html"}).status_code == status
