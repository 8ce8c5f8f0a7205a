from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musicgen_core import storage
from musicgen_core.analysis.harmony import slides
from musicgen_core.data.archive import find_archives, open_archive
from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.data.captions import load_captions
from musicgen_core.demo_data import KNOWN_STYLES, NEW_STYLE, make_demo_archives
from musicgen_core.errors import ClipRejected, ConfigError
from musicgen_core.synthesis import styles

ARCHIVES, CLIPS, SECONDS = 2, 8, 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "archives"
    make_demo_archives(folder, ARCHIVES, CLIPS, SECONDS)
    return folder


def clips_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    for archive in find_archives(folder):
        with open_archive(Path(str(archive))) as opened:
            for member in opened.clips():
                with member.open() as file:
                    yield member.name, file.read()


def decoded(data: bytes) -> DecodedClip:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return decode(file)


def style_of(name: str) -> str:
    return name.removeprefix("audio/").split("_")[0]


def test_the_files_are_laid_out_as_users_have_them(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "archive_batch_0001.zip",
        "archive_batch_0002.zip",
        "metadata.jsonl",
    ]
    names = [name for name, _ in clips_in(folder)]
    assert len(names) == len(set(names)) == ARCHIVES * CLIPS + 1
    assert all(name.startswith("audio/") and name.endswith(".wav") for name in names)


def test_the_same_arguments_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_demo_archives(tmp_path, ARCHIVES, CLIPS, SECONDS)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_the_last_clip_is_broken_and_no_other(folder: Path) -> None:
    *clips, (last, broken) = clips_in(folder)
    assert last == "audio/broken.wav"
    with pytest.raises(ClipRejected, match="not decodable"):
        decoded(broken)
    for _, data in clips:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert (file.samplerate, file.channels, file.subtype) == (44_100, 2, "PCM_16")
        clip = decoded(data)
        assert clip.seconds == SECONDS
        assert 0.05 < np.abs(clip.samples).max() < 1.0


def test_every_clip_but_the_broken_one_has_a_description(folder: Path) -> None:
    captions = load_captions(storage.as_path(folder / "metadata.jsonl"))
    assert (captions.entries, captions.broken_lines) == (ARCHIVES * CLIPS, ())
    described = {name: captions.find(name) for name, _ in clips_in(folder)}
    assert described.pop("audio/broken.wav") is None
    assert all(texts and texts.description for texts in described.values())


def test_the_trigger_word_is_in_all_captions_of_only_the_new_style(folder: Path) -> None:
    captions = load_captions(storage.as_path(folder / "metadata.jsonl"))
    for name, _ in list(clips_in(folder))[:-1]:
        description = captions.by_path[name].description
        assert description is not None and (NEW_STYLE in description) == (style_of(name) == NEW_STYLE)


def test_the_base_model_knows_all_styles_but_the_new_one() -> None:
    assert styles.STYLES.keys() > set(KNOWN_STYLES) and NEW_STYLE in styles.HELD_OUT


def test_metadata_have_the_users_fields(folder: Path) -> None:
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert set(entry) == {"path", "duration", "sample_rate", "description"}
        assert (entry["duration"], entry["sample_rate"]) == (SECONDS, 44_100)


def test_no_two_clips_sound_the_same(folder: Path) -> None:
    *clips, _ = (data for _, data in clips_in(folder))
    sounds = [decoded(data).samples for data in clips]
    for sound, other in combinations(sounds, 2):
        assert np.abs(sound - other).max() > 0.01


def test_only_the_new_style_slides_from_note_to_note(folder: Path) -> None:
    sliding: dict[bool, list[float]] = {True: [], False: []}
    for name, data in list(clips_in(folder))[:-1]:
        samples = torch.from_numpy(decoded(data).samples)
        sliding[style_of(name) == NEW_STYLE].append(slides(samples[None]).item())
    assert min(sliding[True]) > 2 * max(sliding[False])


@pytest.mark.parametrize("name", ["archive_batch_0001.zip", "metadata.jsonl"])
def test_a_pipe_of_the_user_is_refused_not_awaited(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name} is not the demo's"):
        make_demo_archives(tmp_path, archives=1, clips=2, seconds=0.1)


@pytest.mark.parametrize("name", ["archive_batch_0001.zip", "metadata.jsonl"])
@pytest.mark.parametrize("kind", ["alike", "foreign"])
def test_files_of_the_user_are_not_written_over(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "foreign":
        path.write_bytes(b"something else")
    elif name == "metadata.jsonl":
        path.write_text('{"path": "audio/my_song.wav", "description": "mine"}\n')
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("audio/my_song.wav", b"mine")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"{name} is not the demo's"):
        make_demo_archives(tmp_path, 1, 1, 0.1)
    assert [file.name for file in tmp_path.iterdir()] == [name] and path.read_bytes() == before


def test_the_demo_writes_its_own_files_again(tmp_path: Path) -> None:
    make_demo_archives(tmp_path, 1, 2, 0.1)
    make_demo_archives(tmp_path, 1, 2, 0.1)
