from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import Captioner, load_captions
from musicgen_core.data.match_report import undescribed_clips


def make_zip(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("_", "."), text)
    return path


def found(*archives: Path, captioner: Captioner | None = None) -> str | None:
    return undescribed_clips([storage.as_path(path) for path in archives], captioner or Captioner())


def test_clips_without_descriptions_are_reported_by_archive(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", x_wav="", y_wav="")
    assert found(archive) == "none of the 2 clips in a.zip"


@pytest.mark.parametrize("settings", [{"caption": "lofi"}, {"caption_prefix": "mystyle"}])
def test_a_caption_of_the_settings_describes_them_all(tmp_path: Path, settings: dict[str, str]) -> None:
    captioner = Captioner(TokenizeSettings(**settings))
    assert found(make_zip(tmp_path / "a.zip", x_wav=""), captioner=captioner) is None


def test_one_described_clip_is_enough(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", x_wav="", y_wav="", y_txt="calm piano")
    assert found(archive) is None
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"path": "z.wav", "description": "calm piano"}\n')
    captioner = Captioner(metadata=load_captions(storage.as_path(metadata)))
    assert found(make_zip(tmp_path / "b.zip", z_wav=""), captioner=captioner) is None


def test_tars_and_unreadable_or_empty_zips_are_skipped(tmp_path: Path) -> None:
    broken = tmp_path / "a.zip"
    broken.write_bytes(b"not an archive")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(broken, "x.wav")
    empty = make_zip(tmp_path / "c.zip", readme_txt="no clips")
    others = (broken, tmp_path / "b.tar", empty, tmp_path / "missing.zip")
    assert found(*others) is None
    assert found(*others, make_zip(tmp_path / "d.zip", x_wav="")) == "none of the 1 clip in d.zip"
