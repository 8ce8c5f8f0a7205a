"""`dataset.html`: its texts are escaped, its players are of the right clips, and it stays small."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile
from upath import UPath

from musicgen_core.config import ReadingSettings
from musicgen_core.overview.clips import clips_of_lines
from musicgen_core.overview.findings import SHOWN, duplicates_of, findings_of
from musicgen_core.overview.page import DATASET, write_page
from musicgen_core.overview.players import players_of
from tests.fixture_types import MakeWav, Pack

SETTINGS = ReadingSettings()
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>.wav"


def page_of(folder: Path, entries: list[dict[str, Any]], archives: dict[str, UPath] | None = None) -> str:
    keys = [(entry.get("archive", "a.zip"), entry["path"]) for entry in entries]
    findings = findings_of(clips_of_lines(keys, (json.dumps(entry).encode() for entry in entries)))
    findings.duplicates = duplicates_of([keys[:2]]) if len(keys) > 1 else None
    write_page(UPath(folder / "dataset.html"), findings, archives or {}, SETTINGS, "3 clips")
    return (folder / "dataset.html").read_text()


def test_texts_of_strangers_are_escaped_everywhere(tmp_path: Path) -> None:
    tags = {"tags": ["<b>rock</b>"], "key": "<i>A</i> minor", "confidence": {"tags": {"<b>rock</b>": 0.9}}}
    entry = {"archive": "<u>.zip", "path": HOSTILE, "description": "<svg onload=alert(3)>", "silence": 1, **tags}
    page = page_of(tmp_path, [entry, {**entry, "vocals": "<em>choir</em>"}])
    assert "&lt;script&gt;alert(1)" in page and "&lt;svg onload" in page and "&lt;em&gt;choir" in page
    for raw in ("<script>alert", "<img src=x", "<svg onload", "<b>", "<i>", "<u>", "<em>"):
        assert raw not in page
    assert "https:" not in page.replace("http-equiv", "") and DATASET.is_at(UPath(tmp_path / "dataset.html"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_players_are_of_the_middle_of_their_clips(tmp_path: Path, pack: Pack, make_wav: MakeWav, name: str) -> None:
    clips = [("x/long.wav", make_wav(440, 8.0)), ("x/short.wav", make_wav(220, 0.5)), ("x/broken.wav", b"RIFF")]
    archive = UPath(pack(tmp_path / name, clips, name[-3:]))
    wanted = [(name, path) for path, _ in clips] + [(name, "x/missing.wav"), ("other.zip", "y.wav")]
    found = players_of(wanted, {name: archive}, SETTINGS)
    assert set(found.urls) == {(name, "x/long.wav"), (name, "x/short.wav")} and not found.remote_tars
    seconds = []
    for url in found.urls.values():
        mp3 = base64.b64decode(url.removeprefix("data:audio/mpeg;base64,"))
        samples, rate = soundfile.read(io.BytesIO(mp3))
        seconds.append(len(samples) / rate)
        assert rate == 32_000 and samples.ndim == 1 and abs(samples).max() > 0.05
    assert seconds == pytest.approx([5.0, 0.5], abs=0.1)


def test_remote_zips_are_read_in_place_and_remote_tars_not(
    tmp_path: Path, pack: Pack, make_wav: MakeWav, bucket: UPath
) -> None:
    clips = [(f"{number}.wav", make_wav(440, 0.5)) for number in range(3)]
    for name in ("a.zip", "b.tar"):
        (bucket / name).write_bytes(pack(tmp_path / name, clips, name[-3:]).read_bytes())
    archives = {name: bucket / name for name in ("a.zip", "b.tar")}
    found = players_of([("a.zip", "1.wav"), ("b.tar", "1.wav")], archives, SETTINGS)
    assert set(found.urls) == {("a.zip", "1.wav")} and found.remote_tars == ["b.tar"]
    entries = [{"archive": name, "path": "1.wav", "silence": 1} for name in archives]
    page = page_of(tmp_path, entries, archives)
    assert "Clips in 1 archive have no player here" in page and page.count("<audio") == 2  # one is a twin, too


def test_unreadable_archives_and_spent_patience_leave_players_out(
    tmp_path: Path, pack: Pack, make_wav: MakeWav
) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 broken")
    whole = UPath(pack(tmp_path / "a.zip", [("1.wav", make_wav(440, 0.5))]))
    archives = {"a.zip": whole, "broken.zip": UPath(tmp_path / "broken.zip"), "gone.zip": UPath(tmp_path / "gone.zip")}
    wanted = [(name, "1.wav") for name in ("broken.zip", "gone.zip", "a.zip")]
    assert set(players_of(wanted, archives, SETTINGS).urls) == {("a.zip", "1.wav")}
    assert players_of(wanted, archives, SETTINGS, patience=-1.0).urls == {}


def test_the_page_stays_small_with_all_players(tmp_path: Path, pack: Pack, make_wav: MakeWav) -> None:
    archive = UPath(pack(tmp_path / "a.zip", [(f"{number}.wav", make_wav(440, 6.0)) for number in range(SHOWN)]))
    fields = {"silence": 1, "clipping": 1, "speech": 1, "vocals": "choir"}
    entries = [{"path": f"{number}.wav", "description": "x" * 5000, **fields} for number in range(SHOWN)]
    page = page_of(tmp_path, entries, {"a.zip": archive})
    assert page.count("<audio") == 4 * SHOWN + 2
    assert len(page) < 55_000 * page.count("<audio")  # 7 kinds with 8 players, and their twins: below 3 MB


def test_a_page_that_is_the_same_already_is_not_written_again(tmp_path: Path) -> None:
    entry = {"path": "1.wav", "silence": 1}
    page = page_of(tmp_path, [entry])
    before = (tmp_path / "dataset.html").stat().st_ino
    assert page_of(tmp_path, [entry]) == page and (tmp_path / "dataset.html").stat().st_ino == before
    assert page_of(tmp_path, [entry | {"silence": 0.95}]) != page


def test_a_page_of_clips_that_nothing_is_known_of_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, [{"path": "1.wav"}])
    assert "Nothing is known about these clips yet" in page and "None." in page and "<audio" not in page


def test_the_page_is_in_the_users_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    page = page_of(tmp_path, [{"path": "1.wav", "silence": 0.95, "tempo": 90, "tags": ["jazz"], "description": "x"}])
    assert '<html lang="ja">' in page and "時間の 95 % が無音" in page
    visible = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not {"Clips", "Tempo", "Labels", "Silent", "Without"} & set(re.findall(r"\w+", visible))
