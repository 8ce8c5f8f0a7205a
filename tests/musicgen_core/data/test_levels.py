"""Versions of the same music at another level are recognised by what their codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from numpy.typing import NDArray

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.levels import LAGS, SHORTEST, CodeVectors, is_same_music, profile
from musicgen_core.data.shards import Row, read_report
from musicgen_core.model.compression import code_vectors, load_codec
from musicgen_core.model.weights import find_codec
from musicgen_core.synthesis.composing import compose
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.tokenizing import exclude_duplicates
from tests.fixture_types import WriteShard

Audio = NDArray[np.float32]
Codes = NDArray[np.uint16]
FRAMES = 300
CUT = 15 * SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(find_codec("demo"))


@pytest.fixture(scope="module")
def vectors() -> CodeVectors:
    return code_vectors(find_codec("demo"))


@pytest.fixture(scope="module")
def songs() -> Audio:
    """Three songs of different styles, with 0.3 s after their end."""
    frames = FRAMES + 15
    composed = [compose(number, style, frames) for number, style in enumerate(("lofi", "techno", "folk"))]
    return SoundBank().render(composed, frames).numpy()


@pytest.fixture(scope="module")
def versions(songs: Audio, codec: Codec) -> dict[str, list[Codes]]:
    """The codes of the songs and of their versions."""
    clips, later = songs[:, :-CUT], songs[:, CUT:]
    thin = soxr.resample(soxr.resample(clips.T, SAMPLE_RATE, 22_050), 22_050, SAMPLE_RATE).T[:, : clips.shape[1]]
    made = {"original": clips, "-3 dB": clips * 0.71, "-6 dB": clips * 0.5, "cut, -6 dB": later * 0.5, "22 kHz": thin}
    return {
        name: codec.start(list(map(np.ascontiguousarray, audio)), SAMPLE_RATE).codes() for name, audio in made.items()
    }


@pytest.fixture
def load(versions: dict[str, list[Codes]], write_shard: WriteShard, tmp_path: Path) -> Callable[..., Clips]:
    def write_and_load(*names: str, vectors: Callable[[], CodeVectors] | None) -> Clips:
        tokens = storage.as_path(tmp_path / "-".join(names))
        for number, name in enumerate(names):
            rows = [Row(f"{song}.wav", None, 6.0, codes) for song, codes in enumerate(versions[name])]
            write_shard(tokens, f"{number}", rows)
        return load_clips(tokens, "sha256:codec", tmp_path / "cache", vectors=vectors)

    return write_and_load


@pytest.mark.parametrize("version", ["-3 dB", "-6 dB", "cut, -6 dB", "22 kHz"])
def test_versions_are_in_the_cluster_of_their_original(
    version: str, load: Callable[..., Clips], vectors: CodeVectors
) -> None:
    assert load("original", version, vectors=lambda: vectors).near_duplicates.tolist() == [0, 1, 2, 0, 1, 2]


def test_runs_that_began_without_levels_keep_their_split(load: Callable[..., Clips], vectors: CodeVectors) -> None:
    names = "original", "-6 dB"
    clips, before = load(*names, vectors=lambda: vectors), load(*names, vectors=None)
    assert before.near_duplicates.tolist() == [*range(6)]
    assert clips.split_keys("near_duplicates").tolist() == before.split_keys("near_duplicates").tolist()
    keys = clips.split_keys("any_level")
    assert keys[3:].tolist() == keys[:3].tolist() == before.split_keys("any_level")[:3].tolist()
    assert clips.split_keys("any_level", among=np.array([1, 4])).tolist() == [keys[1], keys[1]]


def test_a_quieter_copy_is_excluded_as_a_duplicate(
    load: Callable[..., Clips], vectors: CodeVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_TOKENS_CACHE", str(tmp_path / "cache"))
    load("original", "-3 dB", "-6 dB", vectors=None)
    tokens = storage.as_path(tmp_path / "original--3 dB--6 dB")
    exclude_duplicates(tokens, "sha256:codec", lambda: vectors)
    reports = [read_report(tokens, stem) for stem in ("0", "1", "2")]
    assert [report and report.clips for report in reports] == [3, 0, 0]
    assert reports[2] is not None and reports[2].rejected[1].reason == "near duplicate of 0: 1.wav"


def test_clips_that_are_appended_leave_the_clusters_of_others(load: Callable[..., Clips], vectors: CodeVectors) -> None:
    few = load("original", "-6 dB", vectors=lambda: vectors)
    more = load("original", "-6 dB", "22 kHz", "-3 dB", vectors=lambda: vectors)
    assert more.near_duplicates[:6].tolist() == few.near_duplicates.tolist()


def test_other_music_is_no_version(versions: dict[str, list[Codes]], vectors: CodeVectors) -> None:
    one, *others = versions["original"]
    assert not any(is_same_music(one, other, vectors) for other in others)
    assert is_same_music(one, one[:, 100:], vectors) and not is_same_music(one[:, :100], one[:, 160:260], vectors)


def test_clips_that_are_short_or_have_no_structure_have_no_profile(vectors: CodeVectors, codec: Codec) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(codec.shape.cardinality, size=(4, 4 * SHORTEST), dtype=np.uint16)
    tone = np.tile(noise[:, :1], 300)
    found = [profile(codes, vectors) for codes in (noise[:, : SHORTEST - 1], tone, np.tile(noise[:, :20], 20))]
    assert [each.any() for each in found] == [False, False, True] and found[2].shape == (LAGS,)


def test_stereo_counts_by_its_left_channel(versions: dict[str, list[Codes]], vectors: CodeVectors) -> None:
    left, right, _ = versions["original"]
    stereo = np.stack([left, right], axis=1).reshape(8, -1)
    assert np.array_equal(profile(stereo, vectors), profile(left, vectors))


def test_vectors_of_codes_are_those_that_the_codec_decodes(
    versions: dict[str, list[Codes]], vectors: CodeVectors
) -> None:
    codes = versions["original"][0][:, :50]
    codec = load_codec(find_codec("demo"), torch.device("cpu"))
    with torch.inference_mode():
        frames = codec.decode_latent(torch.from_numpy(codes.astype(np.int64))[None])[0].T.numpy()
    own = sum(vectors[book][code] for book, code in enumerate(codes))
    distances = [np.linalg.norm(each[:, None] - each, axis=2).ravel() for each in (frames, own)]
    np.testing.assert_allclose(*distances, atol=1e-3)
