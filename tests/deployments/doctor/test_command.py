"""`musicgen-flows doctor` as a person meets it: a table, what to fix, an exit code, and no files left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.checks.finding import Finding
from deployments.cli import COMMANDS, main
from deployments.environment import ROOT
from musicgen_core.language import VARIABLE
from tests.deployments.doctor.printed import DEBUG, fixes, rows, run_doctor


@pytest.mark.usefixtures("without_server")
class TestCommand:
    def test_a_machine_that_is_fine_for_the_debug_model(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, printed = run_doctor(capsys, *DEBUG, "--clips", "100", str(tmp_path))
        assert code == 0, printed
        assert "There is nothing to fix." in printed
        table = rows(printed)
        assert {level for level, _ in table.values()} <= {"ok", "warning"}
        for check in ("Python", "packages", "GPU", "C compiler", "memory", "disk", "HF_TOKEN", "storage"):
            assert check in table
        assert table["Prefect API"][0] == "warning" and "temporary" in table["Prefect API"][1]
        assert "uv run musicgen-flows up" in printed

    def test_a_problem_makes_it_fail_and_says_what_to_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("not a folder")
        code, printed = run_doctor(capsys, *DEBUG, f"--runs={tmp_path / 'file' / 'runs'}")
        assert code == 1
        level, found = rows(printed)["storage: runs"]
        assert level == "problem" and f"{tmp_path}/file/runs: can't write there" in found
        [fix] = fixes(printed)
        assert "ls -ld" in fix

    def test_an_error_in_one_check_is_that_checks_problem(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_device: str) -> list[Finding]:
            raise SystemExit("the driver took the process with it")

        monkeypatch.setattr("deployments.checks.machine.check_machine", broken)
        code, printed = run_doctor(capsys, *DEBUG, str(tmp_path))
        assert code == 1
        level, found = rows(printed)["GPU"]
        assert level == "problem" and "SystemExit: the driver took the process with it" in found
        assert rows(printed)["storage"][0] == "ok"

    def test_a_directory_that_is_no_model_is_reported_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, printed = run_doctor(capsys, "--model", str(tmp_path), "--device", "cpu", str(tmp_path))
        assert code == 1
        assert "has no state_dict.bin" in rows(printed)["model"][1]
        assert len(fixes(printed)) == 1

    def test_findings_and_advice_are_in_the_users_language(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, "ja")
        (tmp_path / "file").write_text("not a folder")
        _, printed = run_doctor(capsys, *DEBUG, f"--runs={tmp_path / 'file' / 'runs'}", "ftp://127.0.0.1:9/folder")
        lines = [line for line in printed.splitlines() if "Python" not in line and "musicgen-flows doctor" not in line]
        english = [line for line in lines if not re.search("[ぁ-んァ-ン一-龥]", line)]
        assert english == [] and "ストレージ: runs" in printed, english

    def test_wrong_usage_lists_every_problem_at_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--device", "tpu", "--clips", "0", "--tokens", "", "--colour"]) == 2
        printed = capsys.readouterr().err
        expected = ("not 'tpu'", "--clips: input should be greater than", "--tokens is empty", "no option --colour")
        assert all(text in printed for text in expected)
        assert main(["doctor", "--clips", "many"]) == 2
        assert "--clips" in capsys.readouterr().err

    def test_help_explains_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--help"]) == 0
        assert "--model" in capsys.readouterr().out and "not there" not in COMMANDS["doctor"].summary


def test_a_check_that_never_returns_does_not_abort_the_process(tmp_path: Path) -> None:
    code = f"""
import atexit, os, sys, threading
from deployments import cli, doctor
from deployments.checks import machine
machine.check_machine = lambda device: threading.Event().wait()
doctor.SECONDS = 1.0
atexit.register(os.abort)  # stands for native code that aborts when the interpreter is finalized
sys.argv = ["musicgen-flows", "doctor", *{DEBUG}, {str(tmp_path)!r}]
cli.run()
"""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "400"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert rows(done.stdout)["GPU"] == ("problem", "no answer within 1 seconds")
    assert "To fix:" in done.stdout
