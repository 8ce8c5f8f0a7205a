"""Untrusted names and texts in the terminal, and the wrapping of its lines."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from rich.cells import cell_len

from deployments import console
from deployments.activity import working
from deployments.cli import main
from deployments.commands import tokenized_rows
from flows.tokenize_archives import TokenizeResult
from musicgen_core.data.shards import Rejected, ShardReport
from musicgen_core.generation.request import Rendered
from musicgen_core.language import message
from musicgen_core.tracking import sync_command
from musicgen_core.wording import counted
from tasks.next_steps import Made, Outcome, Step, as_comment, from_comment
from tasks.outcomes import DESCRIBE, rendered
from tasks.progress import Update
from tests.hostile import ALL, ESCAPES, LONG, TEXTS, is_inert_terminal_text


def test_results_and_next_steps_are_translated_into_japanese(
    shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "damaged in the archive (its CRC-32 is not the one of the directory)"
    report = ShardReport("a", 1, "f", "c", 7, 180.0, [Rejected("b.wav", reason)])
    outcome = rendered([Rendered("/music/generated_000.wav", "calm piano", 0, 0, 2.0, True)], {})
    stored = from_comment(as_comment(outcome))
    assert stored is not None
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    console.print_rows(
        message("Tokenized"),
        tokenized_rows(TokenizeResult("/tokens", [report], {"c": "c.zip can't be opened (Input/output error)"}, [])),
    )
    console.print_outcome(outcome)
    console.print_outcome(stored)
    lines = shown.getvalue().splitlines()
    assert lines[:3] == ["トークナイズの結果", "  シャード            1", "  クリップ            7 個、音声 3.0 分"]
    assert (
        "    a                 b.wav: アーカイブの中で壊れています（CRC-32 がディレクトリのものと一致しません）"
        in lines
    )
    assert "  失敗したアーカイブ  1" in lines
    assert "    c                 c.zip を開けません（Input/output error）" in lines
    assert "2 秒、アダプタあり: calm piano:" in lines and lines.count("次の一歩: 同じプロンプトで別の曲を作る") == 2
    assert lines.count("すべての音楽（聴けるページ）:") == 2  # also from the page of a run that another process wrote


def test_progress_and_logs_are_translated_into_japanese(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    with working() as activity:
        activity(Update("generate", "/music", 2, 2, message("sample {number} of {total}", number=1, total=1)))
        activity(Update("rendering", "", 100, 100))
        packing = ("packing %s of %s into %s", counted(3, "shard"), "/tokens", "/cache")
        logging.getLogger("musicgen_core.test").info(*packing)
    assert shown.getvalue().splitlines() == [
        "音楽: 2 / 2、1 曲目 / 全 1 曲",
        "生成（%）: 100 / 100",
        "3 個のシャード（/tokens）を /cache にまとめています",
    ]


@pytest.mark.parametrize("text", [*TEXTS, "[red]x[/red] :smile:"])
def test_a_list_shows_hostile_names_as_text(text: str, shown: io.StringIO) -> None:
    report = ShardReport(text, 1, "f", "c", 7, 180.0, [Rejected(text, text)])
    result = TokenizeResult("/tokens", [report], {text: text}, [text])
    pieces = [Rendered(f"/a/{text}/x.wav", text + LONG, 0, 0, 1.0, True)]
    console.print_rows(text, tokenized_rows(result))
    console.print_outcome(rendered(pieces, {}))
    assert is_inert_terminal_text(shown.getvalue()) and "3.0 minutes" in shown.getvalue()
    assert len(shown.getvalue()) < 12_000  # of a prompt of 15,000 characters the beginning


def test_lines_bars_and_log_messages_show_hostile_names_as_text(shown: io.StringIO) -> None:
    console.output.print(f"In {ALL} [bold]all[/bold]", soft_wrap=True)
    with working("reading " + ESCAPES) as activity:
        activity(Update("generate", ALL, 1, 2, f"{ESCAPES} [bold]of[/bold]"))
        logging.getLogger("musicgen_core.test").warning("%s", ALL)
    assert is_inert_terminal_text(shown.getvalue())
    assert "[bold]all[/bold]" in shown.getvalue() and r"\x1b[31mred" in shown.getvalue()


def test_a_command_in_a_log_message_stays_on_its_line(shown: io.StringIO) -> None:
    command = sync_command(f"/{'folder/' * 20}wandb")
    with working():
        logging.getLogger("musicgen_core.test").info("WandB runs offline. To upload it later:\n%s", command)
    assert command in shown.getvalue().splitlines()


def test_paths_and_commands_have_own_lines_in_narrow_terminals(
    shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.output, "_width", 80)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    folder = f"/home/{'somebody/' * 12}a b"
    step = Step("Train on them", "train", {"tokens": folder, "model": "demo"}, {"run_dir": f"{folder}/run"})
    console.print_outcome(Outcome((Made("tokens", folder),), (step,), "Look at this first " * 8))
    notice, thing, place, text, command = shown.getvalue().splitlines()
    assert notice.startswith("Look at this first") and thing == "tokens:" and place == folder
    assert text == "Next: Train on them"
    assert command == f"musicgen-flows train '{folder}' '{folder}/run' --model demo"
    console.print_rows("Title", [("a name", f"{folder} and {command}")])
    assert shown.getvalue().splitlines()[-1] == f"  a name  {folder} and {command}"


def test_prose_is_wrapped_without_breaking_paths_commands_or_urls(
    shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, url = f"/data/{'folder/' * 8}music", f"http://127.0.0.1:4200/{'page/' * 8}"
    command = "musicgen-flows train tokens/ runs/first --epochs 3 --lora-r 16 --model facebook/musicgen-small"
    prose = f"What was made lies in {path} and can be opened at {url} by everybody. To make more of it: {command}; "
    prose += "that takes about as long as the first time, and what is there already is kept."
    monkeypatch.setattr(console.output, "_width", 40)
    console.print_text(prose)
    assert shown.getvalue() == f"{prose}\n"  # in a pipe a line is a line
    monkeypatch.setattr(console.output, "_force_terminal", True)
    console.print_text(prose)
    console.print_rows("Title", [("a name", prose)])
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown.getvalue()).splitlines()[1:]
    for whole in (path, url, f"{command};"):
        assert lines.count(whole) == 1 and lines.count(f"    {whole}") == 1
    others = [line for line in lines if line.strip() not in (path, url, f"{command};")]
    assert all(len(line) <= 40 for line in others) and len(others) > 8
    assert set(" ".join(lines).split()) == {"Title", "a", "name", *prose.split()}


def wrapped(text: str, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of an error in a terminal of this width."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes anything for a terminal
    monkeypatch.setenv("COLUMNS", str(width))
    console.print_error(text)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80])
def test_errors_are_wrapped_without_breaking_json(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = wrapped(f"error: none of the clips has a description. {DESCRIBE}.", width, monkeypatch)
    json = '{"path": "track1.wav", "description": "calm piano, 80 bpm"}'
    assert sum(json in line for line in lines) == 1
    assert all(cell_len(line) <= max(width, cell_len(json)) for line in lines)
    assert " ".join(lines) == f"error: none of the clips has a description. {DESCRIBE}."


@pytest.mark.parametrize("width", [20, 40, 60])
@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("The model may be too large: look whether another one fits: {command}", "{command}"),
        ("Look first whether another model fits ({command}), or whether there is a GPU at all", "({command}),"),
        ("ほかのモデルが収まるか {command} で調べてください。収まらなければ、別のマシンを使います。", "{command}"),
        ("ほかのモデルが収まるか調べるか（{command}）、別のマシンで実行してください。", "（{command}）、"),
    ],
)
def test_a_command_is_one_unbroken_line_within_prose(
    text: str, command: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "uv run musicgen-flows doctor --model facebook/musicgen-small"
    lines = wrapped(text.format(command=shown), width, monkeypatch)
    [whole] = [line for line in lines if shown in line]
    assert all(cell_len(line) <= width for line in lines if line != whole)
    assert cell_len(whole) <= max(width, cell_len(command.format(command=shown)) + 4)


@pytest.mark.parametrize("width", range(12, 60, 3))
def test_japanese_is_wrapped_by_the_rules_of_kinsoku(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/data/音楽/archive_batch_0007.zip"
    text = f"エラー: {path} の「曲」を（何度か）読めませんでした。ディスクを確認し、ファイルをコピーしてください。"
    lines = wrapped(text * 3, width, monkeypatch)
    assert sum(path in line for line in lines) == 3
    for line in lines:
        assert line[0] not in "、。」）ァィゥェォッャュョー" and line[-1] not in "「（"
        assert cell_len(line) <= width or path in line
    assert "".join(lines).replace(" ", "") == (text * 3).replace(" ", "")


@pytest.mark.parametrize("arguments", [[ESCAPES + LONG], ["export", ESCAPES, "--format", "peft"], ["train", ESCAPES]])
def test_errors_show_hostile_arguments_as_text(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert "error: " in error and is_inert_terminal_text(error) and len(error) < 2000
