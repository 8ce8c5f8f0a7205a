"""Unusual environments of a command: proxies, empty variables, odd encodings, a deleted working directory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deployments import cli
from deployments.api import check_home, check_settings
from deployments.environment import LOCAL_API, prepare, print_in_any_encoding, use_local_server
from musicgen_core.errors import ConfigError


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(sys, "path", [*sys.path])


def run_python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "intern"}, {"no_proxy": " intern , ::1"}, {"NO_PROXY": "*"}])
def test_servers_of_this_machine_are_reached_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"http_proxy": "http://127.0.0.1:9", **given}.items():
        monkeypatch.setenv(name, value)
    prepare()
    for host in ("127.0.0.1", "localhost", *(["intern"] if given else [])):
        assert urllib.request.proxy_bypass(host)
    assert given == {"NO_PROXY": "*"} or not urllib.request.proxy_bypass("example.com")


def test_ups_server_is_used_unless_a_temporary_one_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.environment.is_healthy", lambda api: api == LOCAL_API)
    use_local_server()
    assert "PREFECT_API_URL" not in os.environ  # tests ask for it: whatever runs on the machine is not theirs
    monkeypatch.delenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE")
    use_local_server()
    assert os.environ["PREFECT_API_URL"] == LOCAL_API


def test_variables_set_to_nothing_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "WANDB_MODE", "HF_HUB_DOWNLOAD_TIMEOUT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, " ")
    prepare()
    assert not {"PREFECT_API_URL", "WANDB_MODE", "HF_HUB_DOWNLOAD_TIMEOUT"} & set(os.environ)
    assert "CUDA_VISIBLE_DEVICES" in os.environ  # to nothing: no GPU


def test_modules_of_the_working_directory_shadow_no_others(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for name in ("tokenize.py", "random.py", "flows.py", "tasks/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')")
    child = "import tokenize, random, flows.train_lora, tasks.training; print('fine')"
    ours = (
        "import sys, subprocess; from deployments.environment import prepare; prepare(); import random, tasks;"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True))"
    )
    done = run_python(f"import sys; sys.path.append({str(tmp_path)!r}); {ours}", tmp_path, PYTHONSAFEPATH="1")
    assert "fine" in done.stdout, done


def test_a_working_directory_that_is_gone_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.main(["tokenize", "a", "b"]) == 1
    assert capsys.readouterr().err.startswith("error: the working directory no longer exists. Go to one that does")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_help_is_printed_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert cli.main(["--help"]) == 0
    assert ("─ Commands ─" if encoding == "utf-8" else "- Commands -") in written.getvalue().decode(encoding)
    assert encoding == "utf-8" or os.environ["PYTHONIOENCODING"] == f"{encoding}:replace"


def test_characters_that_an_encoding_lacks_become_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1", write_through=True))
    print_in_any_encoding()
    print("é → 音 …")
    assert written.getvalue() == "é -> ? ...\n".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PREFECT_API_URL", "no address"), ("PREFECT_LOGGING_LEVEL", "LOUD"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")],
)
def test_a_wrong_setting_of_a_library_is_named(name: str, value: str, tmp_path: Path) -> None:
    code = "import sys; from deployments.cli import main; sys.exit(main(['run', 'finetune']))"
    done = run_python(code, tmp_path, **{name: value})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert name in done.stderr and value in done.stderr and "This is not a mistake" not in done.stderr


def test_settings_that_are_right_pass() -> None:
    check_settings()


def test_a_prefect_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_HOME, temporary_settings

    (tmp_path / "file").touch()
    with temporary_settings({PREFECT_HOME: tmp_path / "file" / "home"}), pytest.raises(ConfigError) as refused:
        check_home()
    assert str(tmp_path / "file" / "home") in refused.value.found and "PREFECT_HOME" in refused.value.next_step


@pytest.mark.parametrize("command", ["--help", "tokenize nothing tokens --model debug"])
def test_a_reader_that_leaves_ends_a_command_as_unix_tools_end(command: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; from deployments.cli import main; sys.exit(main({command.split()}))"
    environment = {**os.environ, "PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path)}
    with open(write, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (141, b"")
