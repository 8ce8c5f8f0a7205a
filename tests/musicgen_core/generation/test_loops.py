"""Loops: whole bars, whose end runs into the beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.codec import Codec
from musicgen_core.errors import ConfigError
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.loops import decode_circularly, loop_length, tempo_of
from musicgen_core.generation.loudness import normalize
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.seam_settings import SeamSettings
from musicgen_core.model.weights import BaseModel, find_model
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, names_in, sidecar_of

BEAT = "techno with drums, 120 bpm"


@given(st.integers(50, 180_000), st.floats(40, 240))
def test_a_loop_is_the_whole_bars_nearest_to_the_duration(wanted: int, tempo: float) -> None:
    length, bar = loop_length(wanted, tempo), 4 * 60 / tempo * 50
    assert length.bars and length.frames == round(length.bars * bar)
    assert length.bars == 1 or abs(length.frames - wanted) <= bar / 2 + 1
    assert length.tempo == pytest.approx(tempo, rel=0.5 / length.frames + 1e-9)
    assert 0 < length.ending <= min(bar + 0.5, length.frames / 2)


def test_a_loop_is_decoded_as_if_it_had_been_repeated(debug_model: BaseModel) -> None:
    codec = Codec(debug_model)
    codes = torch.randint(2048, (4, 130), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(codes.repeat(1, 9)[None])[0]
    middle = whole[:, 4 * 130 * 640 : 5 * 130 * 640]
    assert (decode_circularly(codec, codes) - middle).abs().max() < 1e-4 * middle.abs().max()


def flux(audio: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rise of the spectrum from each window of 16 ms to the next."""
    windows = audio[: len(audio) // 512 * 512].reshape(-1, 512) * np.hanning(512)
    spectra = np.log1p(100 * np.abs(np.fft.rfft(windows)))
    return np.maximum(np.diff(spectra, axis=0), 0).sum(axis=1)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A loop of the demo model."""
    from musicgen_core.config import SamplingSettings
    from musicgen_core.generation.request import RenderRequest

    (made,) = render(
        RenderRequest(
            out=str(tmp_path_factory.mktemp("loop")),
            prompts=[Prompt(prompt=BEAT, tempo=120)],
            model=str(find_model("demo").directory),
            settings=SamplingSettings(duration=3.7),
            seams=SeamSettings(loop=True, seam_candidates=3),
            spectrograms=False,
            save_codes=True,
            device="cpu",
        )
    )
    return made.wav


def test_the_seam_of_a_loop_is_no_rougher_than_the_music_itself(loop: str) -> None:
    audio, _ = soundfile.read(loop)
    twice = np.concatenate([audio, audio])
    seam = len(audio)
    assert abs(audio[0] - audio[-1]) <= np.abs(np.diff(audio)).max()
    assert flux(twice[seam - 4096 : seam + 4096]).max() <= flux(audio).max()
    plain = normalize(
        Codec(find_model("demo")).decode(torch.from_numpy(codes_of(loop).astype(np.int64))[None])[0, 0].numpy(), 32_000
    )
    inner = slice(64_000 // 2, -64_000 // 2)  # decoded alone, the loop differs at its ends only
    assert np.corrcoef(audio[inner], plain[inner])[0, 1] > 0.999


def test_a_loop_states_its_bars_and_tempo_and_is_the_best_candidate(loop: str) -> None:
    sidecar = sidecar_of(loop)
    described = sidecar["loop"]
    assert (described["bars"], described["tempo"], described["measured"]) == (2, 120, False)
    assert sidecar["duration"] == 2 * 4 * 60 / 120 == soundfile.info(loop).duration
    assert described["score"] == max(described["scores"]) and len(described["scores"]) == described["candidates"] == 3
    assert described["wanted_seconds"] == 3.7
    page = (Path(loop).parent / "index.html").read_text(encoding="utf-8")
    assert "loop of 2 bars, 120.0 bpm" in page


def test_without_a_tempo_that_of_the_music_counts_and_without_a_beat_the_duration(request_for: Any) -> None:
    seams = SeamSettings(loop=True, seam_candidates=2)
    (made,) = render(request_for(prompts=PROMPTS[:1], duration=1, seams=seams, save_codes=True))
    described = sidecar_of(made.wav)["loop"]
    assert described["measured"] and described["bars"] is described["tempo"] is None  # noise has no beat
    assert made.seconds == 1
    times = torch.arange(8 * 32_000) / 32_000
    clicks = torch.sin(2 * np.pi * 80 * times) * torch.exp(-30 * (times % 0.5))
    assert tempo_of(clicks[None]) == pytest.approx(120, rel=0.01)
    assert tempo_of(torch.zeros(1, 64_000)) is None


def test_loops_of_adapters_and_variations_differ_and_are_the_same_again(
    request_for: Any, adapter: Path, tmp_path: Path
) -> None:
    given = {"seams": SeamSettings(seam_candidates=2), "adapter": str(adapter), "compare": True, "variations": 2}
    prompts = [Prompt(prompt="a", tempo=240, loop=True), Prompt(prompt="b")]
    first, again = (render(request_for(prompts=prompts, save_codes=True, duration=0.9, **given)) for _ in range(2))
    assert first == again and len(names_in(tmp_path / "out")) == 8 * 3 + 1
    codes = [codes_of(made.wav) for made in first]
    assert [one.shape[1] for one in codes] == 4 * [50] + 4 * [45]
    assert len({one.tobytes() for one in codes}) == 8


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"melody": "tune.wav"}, "--loop can't follow a melody"),
        ({"continue_from": "take.wav"}, "--loop can't continue a recording: take.wav"),
        ({"control": ControlSettings(best_of=2)}, "--loop can't be the best of several"),
        ({"seams": SeamSettings(loop=True, redo="1-2")}, "--loop and --redo are given for one sample"),
    ],
)
def test_what_a_loop_cannot_be_is_refused(request_for: Any, given: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        render(request_for(**{"seams": SeamSettings(loop=True), **given}))


def test_a_lines_own_loop_or_stretch_comes_before_the_option() -> None:
    loop = Prompt(prompt="x", loop=True).with_seams(SeamSettings(redo="1-2"), "a.wav")
    redo = Prompt(prompt="x", redo="3-4").with_seams(SeamSettings(loop=True), "a.wav")
    both = Prompt(prompt="x").with_seams(SeamSettings(loop=True, redo="1-2"), None)
    assert [(one.loop, one.redo) for one in (loop, redo, both)] == [(True, None), (False, "3-4"), (True, "1-2")]
