from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.generation.files import GeneratedSample, write_sample
from musicgen_core.generation.page import PICTURE_SIZE

Samples = NDArray[np.float32]
SIDECAR = {"prompt": "Blasmusik für Anfänger, 静か", "seed": 7, "adapter": None, "sampling": {"top_k": 250}}


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path) if request.param == "local" else bucket


def tone(hertz: float = 440.0, seconds: float = 1.0, level: float = 0.5, rate: int = SAMPLE_RATE) -> Samples:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, level: float = 0.9) -> Samples:
    return np.random.default_rng(0).uniform(-level, level, int(seconds * SAMPLE_RATE)).astype(np.float32)


def piece_of(audio: Samples, codes: NDArray[np.uint16] | None = None) -> GeneratedSample:
    return GeneratedSample("generated_000", audio, codes, dict(SIDECAR))


def codes_of(frames: int) -> NDArray[np.uint16]:
    return np.random.default_rng(1).integers(0, 2048, (4, frames)).astype(np.uint16)


def names_in(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def decode(path: UPath) -> Samples:
    samples, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")
    assert rate == SAMPLE_RATE and samples.ndim == 1
    return samples


# What stands in the files


@pytest.mark.parametrize("seconds", [1 / SAMPLE_RATE, 0.1, 3.3])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_wav_and_flac_hold_the_samples_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seconds: float, seed: int
) -> None:
    drawn = np.random.default_rng(seed).integers(-(2**15), 2**15, round(seconds * SAMPLE_RATE))
    audio = (drawn / 2**15).astype(np.float32)
    wav, flac, _ = write_sample(tmp_path_factory.mktemp("music"), piece_of(audio), ("flac",), spectrogram=False)
    for path in (wav, flac):
        assert np.array_equal(decode(path), audio)
        assert soundfile.info(str(path)).subtype == "PCM_16"


def test_full_scale_does_not_turn_over(tmp_path: Path) -> None:
    audio = np.array([1.0, -1.0, 0.0, 1.0, 0.99999], dtype=np.float32)
    wav, flac, *_ = write_sample(tmp_path, piece_of(audio), ("flac",), spectrogram=False)
    for path in (wav, flac):
        assert np.abs(decode(path) - audio).max() <= 2**-15


@pytest.mark.parametrize("seconds", [0.02, 0.5, 10.0])
def test_an_mp3_has_the_length_and_the_level_of_the_wav(tmp_path: Path, seconds: float) -> None:
    audio = tone(seconds=seconds)
    mp3 = write_sample(tmp_path, piece_of(audio), ("mp3",), spectrogram=False)[1]
    decoded = decode(mp3)
    assert abs(len(decoded) - len(audio)) < 0.05 * SAMPLE_RATE
    softer = 20 * np.log10(np.sqrt(np.mean(decoded**2)) / np.sqrt(np.mean(audio**2)))
    assert abs(softer) < 0.5


def test_an_mp3_has_about_192_kbit_a_second(tmp_path: Path) -> None:
    mp3 = write_sample(tmp_path, piece_of(noise(10.0, level=0.3)), ("mp3",), spectrogram=False)[1]
    assert 180_000 < mp3.stat().st_size * 8 / 10 < 205_000


def test_an_mp3_of_loud_music_does_not_clip_when_it_is_decoded(tmp_path: Path) -> None:
    loud = (0.98 * np.sign(tone(hertz=441.0, seconds=2.0))).astype(np.float32)
    careless = io.BytesIO()
    soundfile.write(careless, loud, SAMPLE_RATE, format="MP3")
    careless.seek(0)
    assert np.abs(soundfile.read(careless)[0]).max() > 1.01  # or else this shows nothing
    mp3 = write_sample(tmp_path, piece_of(loud), ("mp3",), spectrogram=False)[1]
    assert 0.9 < np.abs(decode(mp3)).max() <= 1


def test_codes_come_back_as_they_were(folder: UPath) -> None:
    codes = codes_of(50)
    write_sample(folder, piece_of(tone(), codes), spectrogram=False)
    read = np.load(io.BytesIO((folder / "generated_000.npy").read_bytes()))
    assert read.dtype == np.uint16 and np.array_equal(read, codes)


def test_every_requested_file_is_returned_with_the_sidecar_last(folder: UPath) -> None:
    written = write_sample(folder, piece_of(tone(), codes_of(50)), ("mp3", "flac"))
    assert sorted(path.name for path in written) == names_in(folder)
    assert {path.suffix for path in written} == {".wav", ".flac", ".mp3", ".png", ".npy", ".json"}
    assert (written[0].suffix, written[-1].suffix) == (".wav", ".json")
    assert json.loads(written[-1].read_text(encoding="utf-8")) == SIDECAR


def test_by_default_only_the_wav_and_the_sidecar_are_written(folder: UPath) -> None:
    write_sample(folder, piece_of(tone()), spectrogram=False)
    assert names_in(folder) == ["generated_000.json", "generated_000.wav"]


# Whole or not there


def test_files_of_an_earlier_rendering_are_deleted(folder: UPath) -> None:
    write_sample(folder, piece_of(tone(), codes_of(50)), ("mp3", "flac"))
    (folder / "generated_0001.flac").write_bytes(b"another piece's")
    write_sample(folder, piece_of(tone(880.0)), spectrogram=False)
    assert names_in(folder) == ["generated_000.json", "generated_000.wav", "generated_0001.flac"]


def test_the_old_sidecar_goes_first_and_the_new_one_comes_last(folder: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(folder, piece_of(tone(), codes_of(50)), ("mp3",))
    before = names_in(folder)
    seen: list[tuple[str, bool]] = []
    publish = storage.publish

    @contextmanager
    def spy(target: UPath) -> Iterator[Path]:
        seen.append((target.suffix, "generated_000.json" in names_in(folder)))
        with publish(target) as path:
            yield path

    def unlink(path: UPath, missing_ok: bool = False) -> None:
        if path.suffix != ".json":
            assert "generated_000.json" not in names_in(folder)
        original(path, missing_ok=missing_ok)

    original = type(folder).unlink
    monkeypatch.setattr(type(folder), "unlink", unlink)
    monkeypatch.setattr(storage, "publish", spy)
    write_sample(folder, piece_of(tone(880.0)), ("flac", "mp3"))
    assert "generated_000.json" in before
    assert seen == [(ending, False) for ending in (".wav", ".flac", ".mp3", ".png", ".json")]


def test_a_failing_storage_leaves_no_sidecar_and_no_partial_file(tmp_path: Path) -> None:
    write_sample(tmp_path, piece_of(tone()), spectrogram=False)
    (tmp_path / "generated_000.flac").mkdir()  # where a file can't be
    with pytest.raises(OSError):
        write_sample(tmp_path, piece_of(tone(880.0)), ("flac", "mp3"))
    assert names_in(storage.as_path(tmp_path)) == ["generated_000.flac", "generated_000.wav"]
    assert soundfile.read(tmp_path / "generated_000.wav")[0].shape == (SAMPLE_RATE,)


@pytest.mark.parametrize(
    "audio",
    [[], [0.0, 1.01], [0.0, -1.01], [0.0, np.nan], [0.0, np.inf], [[0.0, 0.1, 0.2]]],
    ids=["nothing", "loud", "deep", "nan", "inf", "three channels"],
)
def test_invalid_audio_leaves_the_older_sample_unchanged(tmp_path: Path, audio: list[Any]) -> None:
    write_sample(tmp_path, piece_of(tone()), spectrogram=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="generated_000"):
        write_sample(tmp_path, piece_of(np.array(audio, dtype=np.float32)), ("flac",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_invalid_sidecar_leaves_the_older_sample_unchanged(tmp_path: Path) -> None:
    write_sample(tmp_path, piece_of(tone()), spectrogram=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        write_sample(tmp_path, GeneratedSample("generated_000", tone(880.0), None, {"prompt": object()}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def brightest_row(png: bytes) -> int:
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(float)
    return int(picture[40:260, 150:550].mean(axis=1).argmax())


def test_frequency_is_drawn_upwards_on_a_logarithmic_scale(tmp_path: Path) -> None:
    rows = []
    for hertz in (100.0, 1000.0, 10_000.0):
        write_sample(tmp_path, piece_of(tone(hertz, 2.0)))
        rows.append(brightest_row((tmp_path / "generated_000.png").read_bytes()))
    assert rows[0] > rows[1] > rows[2] and rows[0] - rows[2] > 150
    assert abs((rows[0] - rows[1]) - (rows[1] - rows[2])) <= 3


@pytest.mark.parametrize("seconds", [1 / SAMPLE_RATE, 0.1, 30.0])
def test_a_picture_is_small_and_of_one_size_even_of_noise(tmp_path: Path, seconds: float) -> None:
    write_sample(tmp_path, piece_of(noise(seconds)))
    picture = tmp_path / "generated_000.png"
    assert picture.stat().st_size < 150_000
    assert Image.open(picture).size == PICTURE_SIZE


def test_pictures_drawn_at_the_same_time_are_those_drawn_one_by_one(tmp_path: Path) -> None:
    pieces = [GeneratedSample(f"piece_{number}", tone(100.0 * 2**number, 2.0), None, {}) for number in range(6)]
    for piece in pieces:
        write_sample(tmp_path / "one by one", piece)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda piece: write_sample(tmp_path / "together", piece), pieces))
    for piece in pieces:
        one, other = (tmp_path / name / f"{piece.stem}.png" for name in ("one by one", "together"))
        assert one.read_bytes() == other.read_bytes()
