"""The command line as a person meets it: exit codes, one-line errors, and what a command leaves behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
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
from tasks.next_steps import command_line

DEBUG_CPU = ["--model", "debug", "--device", "cpu"]
ON = {"model": "debug", "device": "cpu"}
QUICK = ["--batch-size", "4", "--gradient-accumulation-steps", "1", "--segment-seconds", "1", "--epochs", "1"]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return this project's only line on stderr, and expect no traceback."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


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

    monkeypatch.setattr("deployments.export.export", full)
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

    monkeypatch.setattr("deployments.export.export", lose_server)
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


@pytest.mark.usefixtures("prefect_server")
class TestCommonMistakes:
    def test_no_archives(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["tokenize", str(tmp_path / "none"), str(tmp_path / "tokens"), *DEBUG_CPU]) == 1
        assert "no archives found at" in error_of(capsys)

    def test_a_foreign_file_in_place_of_a_shard_gets_fitting_advice(
        self, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "tokens").mkdir()
        mine = tmp_path / "tokens" / "archive_batch_0001.json"
        mine.write_text('{"mine": true}')
        archive = str(demo_archives / "archive_batch_0001.zip")
        assert main(["tokenize", archive, str(mine.parent), *DEBUG_CPU]) == 1
        error = error_of(capsys)
        assert f"would replace {mine}, which is no report of a shard. Give another directory" in error
        again = command_line("tokenize", {"archives": archive, "tokens": str(mine.parent), **ON})
        assert error.endswith(
            "move that file away if it isn't needed. Do what each reason says, then run it again, which keeps what is "
            f"finished: {again}"
        )
        assert mine.read_text() == '{"mine": true}'

    @pytest.mark.parametrize("command", ["tokenize", "finetune"])
    def test_archives_that_fail_or_are_left_out_are_named(
        self, command: str, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
        (archives / "archive_batch_0002.zip").write_bytes(b"not an archive")
        (archives / "more.7z").touch()
        places = {
            "tokenize": [str(tmp_path / "tokens")],
            "finetune": [f"--{name}={tmp_path / name}" for name in ("tokens", "run-dir", "output")],
        }
        assert main([command, str(archives), *places[command], *DEBUG_CPU]) == 1
        printed = capsys.readouterr()
        assert "more.7z not read" in printed.out
        failed = str(archives / "archive_batch_0002.zip")
        assert f"error: 1 of 2 archives failed: {failed} can't be read" in printed.err
        assert (printed.out + printed.err).count(failed) == 1
        if command == "tokenize":
            again = command_line("tokenize", {"archives": str(archives), "tokens": places["tokenize"][0], **ON})
            assert printed.err.endswith(f"{again}\n")

    def test_metadata_that_match_nothing(
        self, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        metadata = tmp_path / "metadata.jsonl"
        metadata.write_text('{"path": "nothing.wav"}\n')
        arguments = ["tokenize", str(demo_archives), str(tmp_path / "tokens"), "--metadata", str(metadata), *DEBUG_CPU]
        assert main(arguments) == 1
        assert "matches none of the 17 clips" in error_of(capsys)

    def test_tokens_that_are_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", str(tmp_path / "none"), str(tmp_path / "run"), *DEBUG_CPU]) == 1
        assert "no tokenized clips" in error_of(capsys)

    def test_cuda_where_there_is_no_gpu(
        self, demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        out = str(tmp_path / "out")
        assert main(["generate", out, "--prompt", "jazz", "--model", "debug", "--device", "cuda"]) == 1
        assert "finds no GPU on this machine" in error_of(capsys)

    def test_a_model_that_is_not_supported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [
            "generate",
            str(tmp_path),
            "--prompt",
            "x",
            "--model",
            "facebook/musicgen-melody",
            "--device",
            "cpu",
        ]
        assert main(arguments) == 1
        assert "melody" in error_of(capsys)


@pytest.mark.usefixtures("prefect_server")
def test_tokenize_train_and_generate_one_after_the_other(
    demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, run, out = (str(tmp_path / name) for name in ("tokens", "run", "music"))
    settings = tmp_path / "settings.yaml"
    settings.write_text("learning_rate: 0.002\nlora_r: 4\nseed: 3\n")
    assert main(["tokenize", str(demo_archives), tokens, *DEBUG_CPU]) == 0
    assert main(["train", tokens, run, "--config", str(settings), "--lora-r", "2", *QUICK, *DEBUG_CPU]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["lora_r"], config["learning_rate"], config["seed"]) == (2, 0.002, 3)
    assert config["base_model"].startswith("debug@sha256:")
    generate = [
        "generate",
        out,
        "--prompt",
        "jazz",
        "--prompt",
        "rock",
        "--adapter",
        run,
        "--duration",
        "0.5",
        *DEBUG_CPU,
    ]
    assert main(generate) == 0
    assert len(list((tmp_path / "music").glob("generated_*.wav"))) == 2
    capsys.readouterr()

    assert main(["train", tokens, run, "--config", str(settings), "--lora-r", "4", *QUICK, *DEBUG_CPU]) == 1
    assert "is of another training: lora_r is 2 there and 4 here" in error_of(capsys)


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
