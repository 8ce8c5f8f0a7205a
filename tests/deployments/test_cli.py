"""The command line as a person meets it: help, exit codes and one-line errors."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import cli
from deployments.api import explain_lost
from deployments.cli import COMMANDS, main
from flows.tokenize_archives import TokenizeResult
from tests.deployments.error_line import error_of


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n│ {name} " in printed and command.summary[:40] in printed for name, command in COMMANDS.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"uv run musicgen-flows {command}" in capsys.readouterr().out


def test_a_notebooks_backend_of_matplotlib_is_left_behind() -> None:
    """As ipykernel exports it to what a cell starts; the module is not among this project's packages."""
    after = "from deployments.cli import main; main(['export', '--help']); import matplotlib; print(matplotlib)"
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    without = subprocess.run([sys.executable, "-c", "import matplotlib"], env=environment, capture_output=True)
    assert without.returncode != 0, "the module is there: this test can't fail"
    done = subprocess.run([sys.executable, "-c", after], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_named_with_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(arguments: object) -> int:
        raise OSError(28, "No space left on device", "/music/generated_000.wav")

    monkeypatch.setattr("deployments.commands.export", full)
    assert main(["export", "runs/first", "shared", "--format", "peft"]) == 1
    assert error_of(capsys).startswith("error: no space left on device: /music/generated_000.wav. Make room")


REQUEST = httpx.Request("GET", "http://127.0.0.1:4200/api")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "stopped answering (ConnectError: Connection refused)"),
        (httpx.ConnectTimeout(""), "stopped answering (ConnectTimeout)"),
        (httpx.ReadTimeout(""), "stopped answering (ReadTimeout)"),
        (httpx.RemoteProtocolError("Server disconnected"), "stopped answering (RemoteProtocolError: Server disc"),
        (PrefectHTTPStatusError("x", request=REQUEST, response=httpx.Response(503)), "fails (HTTP 503)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_server_that_stops_is_named_with_what_to_do(
    error: Exception, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_server(arguments: object) -> int:
        raise error

    monkeypatch.setattr("deployments.commands.export", lose_server)
    with temporary_settings({PREFECT_API_URL: "http://user:secret@host:4200/api"}):
        assert main(["export", "runs/first", "shared", "--format", "peft"]) == 1
    line = error_of(capsys)
    assert line.startswith(f"error: the Prefect server at http://…@host:4200/api {reason}")
    assert "uv run musicgen-flows " in line and line.endswith(
        "Run the same command again: it continues where it stopped"
    )


def test_a_refused_request_is_no_stopped_server() -> None:
    assert explain_lost(PrefectHTTPStatusError("x", request=REQUEST, response=httpx.Response(404))) is None


def test_a_stopped_server_is_not_reported_by_prefects_threads(tmp_path: Path) -> None:
    code = """
from deployments.environment import prepare
prepare(quiet=True)
from prefect._internal.concurrency import logger
from prefect.logging.handlers import APILogWorker
logger.error("Service 'EventsWorker' failed to process item Event(…)")
APILogWorker.instance().send({"name": "x", "level": 20, "message": "m", "timestamp": "2026-01-01T00:00:00Z"})
APILogWorker.drain_all()
"""
    address = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), **address}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--resume", "never"], []),
        (["--resume=never"], []),
        (["--resume", "never-ending.pt", "--epochs", "2"], ["--resume", "never-ending.pt", "--epochs", "2"]),
        (["--resume", "never", "--sample-prompt", "never"], ["--sample-prompt", "never"]),
    ],
)
def test_an_interrupted_command_ends_with_the_one_that_continues_it(
    given: list[str], kept: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupt)
    assert main(["train", "tokens", "run", *given]) == 130
    assert shlex.split(capsys.readouterr().err.splitlines()[-1])[-3 - len(kept) :] == ["train", "tokens", "run", *kept]


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    code = 'import sys; sys.modules["httpx"] = None; from deployments import cli; sys.exit(cli.main(["doctor"]))'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "httpx" in done.stderr and "uv sync" in done.stderr


@pytest.mark.parametrize("is_announced", [True, False])
def test_the_notice_on_descriptions_is_shown_once(
    is_announced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = TokenizeResult("/tokens", [], {}, [], "None of the 8 clips has a description", is_announced)
    monkeypatch.setattr("deployments.commands.run_flow", lambda *_: result)
    assert main(["tokenize", "archives", "/tokens"]) == 0
    assert capsys.readouterr().out.count(result.notice) == (not is_announced)


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenise"]) == 2
    assert "there is no command 'tokenise'; did you mean tokenize?" in error_of(capsys)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("musicgen-flows")


def test_wrong_usage_lists_every_problem_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tokens", "--lora-r", "none", "--epochs", "0", "--colour=red"]) == 2
    printed = capsys.readouterr().err
    for problem in ("RUN_DIR is missing", "--lora-r: ", "--epochs: ", "no option --colour"):
        assert problem in printed


def test_errors_are_in_the_language_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "en")  # put back at the end
    none = str(tmp_path / "none")
    assert main(["estimate", none, "--language", "ja"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"エラー: {none} にアーカイブが見つかりません。ファイル、") and error.count("\n") == 1
    assert main(["--language=en", "estimate", none]) == 1
    assert capsys.readouterr().err.startswith(f"error: no archives found at {none}. Give a file")


@pytest.mark.parametrize("given", [["--language", "fr"], ["--language=fr"], ["estimate", "--language=fr", "x"]])
def test_another_language_is_wrong_usage(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert "--language: expected en, ja, not 'fr'" in capsys.readouterr().err
