"""The stages and progress that a working command shows."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from deployments import cli, console
from deployments.activity import Activity, working
from deployments.cli import main
from musicgen_core import stages
from musicgen_core.stages import Stage, advance, announce
from tasks.progress import Update


def test_slow_imports_are_announced_before_they_begin(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    module = ModuleType("slow_to_import")
    module.doctor = lambda parameters: 0  # type: ignore[attr-defined]

    def slow(name: str) -> Any:
        said.append(shown.getvalue())
        return module

    monkeypatch.setattr(cli.importlib, "import_module", slow)
    assert main(["doctor"]) == 0
    assert said == ["loading Prefect …\n"]


def test_a_stage_is_shown_when_it_begins_in_any_thread(shown: io.StringIO) -> None:
    with working("beginning"):
        thread = threading.Thread(target=announce, args=("reading the model",))
        thread.start()
        thread.join()
        assert shown.getvalue().splitlines() == ["beginning …", "reading the model …"]
        announce("reading the model")  # a second one, as of another process
    assert shown.getvalue().count("reading the model") == 1
    announce("nobody listens")
    assert "nobody" not in shown.getvalue()


def frame(activity: Activity) -> str:
    terminal = console.Terminal()
    terminal._width = 80
    with terminal.capture() as captured:
        terminal.print(activity)
    return captured.get()


def test_a_terminal_shows_the_stage_until_progress_is_made() -> None:
    activity = Activity()
    activity.say("reading the model")
    assert "reading the model …" in frame(activity)
    activity(Update("generate", "music", 0, 10))
    assert "reading the model …" in frame(activity) and "0/10" in frame(activity)
    activity(Update("generate", "music", 1, 10, "sample 1 of 2"))
    assert "reading the model" not in frame(activity) and "sample 1 of 2" in frame(activity)
    activity.hear(Stage("validating", 3, 40))
    assert "validating, 3 of 40 …" in frame(activity)
    activity.say("")
    assert "…" not in frame(activity)


def screen(written: str) -> list[str]:
    """Return the lines that a terminal shows after these characters, as far as rich's live display uses them."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d+)A", piece):
            row -= int(up[1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith(("\x1b", "\r")):
            lines[row] += piece  # the display writes at the beginning of an erased line
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_an_interrupted_command_leaves_no_bars_and_no_spinner(
    error: type[BaseException] | None, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.output, "_force_terminal", True)
    monkeypatch.setattr(console.output, "_width", 80)
    with contextlib.suppress(KeyboardInterrupt, ValueError), working("loading the flow") as activity:
        console.print_line("before")
        activity(Update("train", "run", 3, 10, "epoch 1"))
        activity.say("reading the model")
        console.output.print("kept")
        if error is not None:
            raise error
    console.print_line("Interrupted.")
    lines = screen(shown.getvalue())
    assert [line for line in lines if "Training steps" not in line] == ["before", "kept", "Interrupted."]
    assert any("Training steps" in line for line in lines) == (error is not KeyboardInterrupt)


def test_a_long_stage_takes_one_line_of_a_narrow_terminal() -> None:
    activity = Activity()
    activity.say("reading " + "a long name " * 20)
    assert len(frame(activity).rstrip("\n").splitlines()) == 1


def test_long_names_leave_the_bars_as_they_are() -> None:
    activity = Activity()
    activity(Update("tokenize", "a", 40, 100, "of a long name " * 20))
    activity(Update("a-key-of-a-run-that-is-very-long", "a", 40, 100, "a long name " * 20))
    first, second = frame(activity).splitlines()
    assert "━" * 4 in first and " 40/100 " in first and "-:--:--" in first and "of a long" in first
    assert "━" * 4 in second and " 40/100 " in second


def test_a_pipe_gets_fewer_lines_the_longer_the_work_takes(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("deployments.activity.time.monotonic", lambda: now[0])
    activity = Activity()
    hours = 8
    for second in range(hours * 3600):
        now[0] += 1
        activity(Update("train", "run", second, hours * 3600, f"step {second}"))
    lines = shown.getvalue().splitlines()
    assert lines[1].startswith("Training steps: 5 of 28,800, step 5")
    assert len(lines) < 150


def test_a_pipe_gets_repeated_lines_at_growing_intervals(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("deployments.activity.time.monotonic", lambda: now[0])
    activity = Activity()

    def lines_of(seconds: int) -> list[str]:
        before = len(shown.getvalue().splitlines())
        for _ in range(seconds):
            now[0] += 1
            activity.repeat()
        return shown.getvalue().splitlines()[before:]

    activity.say("reading the model")
    assert lines_of(11) == ["reading the model … 5 s", "reading the model … 10 s"]
    activity(Update("train", "run", 3, 10, "slow"))
    assert lines_of(6) == ["Training steps: 3 of 10, slow"]
    assert 20 < len(lines_of(8 * 3600)) < 150


def test_progress_with_a_known_total_is_shown_but_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Stage] = []
    with stages.heard_by(heard.append), caplog.at_level("INFO", "musicgen_core.stages"):
        announce("reading")
        advance("validating", 1, 2)
    assert [str(stage) for stage in heard] == ["reading", "validating, 1 of 2"]
    assert [record.getMessage() for record in caplog.records] == ["reading"]


def test_the_import_of_torch_is_announced_unless_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Stage] = []
    with stages.heard_by(heard.append):
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
        stages.announce_import("torch", "PyTorch")
        assert heard == []
        monkeypatch.delitem(sys.modules, "torch")
        stages.announce_import("torch", "PyTorch")
    assert heard == [Stage("loading PyTorch")]
