"""Share of speech in clips; speech.ogg is a sentence spoken by the synthesizer espeak-ng."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor

from musicgen_core.captioning.speech import RATE, WINDOW, SileroVad, load_vad, measure_speech
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import STYLES


@pytest.fixture(scope="module")
def vad() -> SileroVad:
    return load_vad()


@pytest.fixture(scope="module")
def speech() -> Tensor:
    samples, rate = soundfile.read(Path(__file__).with_name("speech.ogg"), dtype="float32")
    assert rate == RATE
    return torch.from_numpy(samples)[None]


@pytest.fixture(scope="module")
def music() -> Tensor:
    clips = [clip for style in STYLES for clip in compose_many(1, 800, style)]
    return torchaudio.functional.resample(SoundBank().render(clips, 300), 32_000, RATE)


def test_probabilities_are_those_of_the_original(vad: SileroVad, speech: Tensor, music: Tensor) -> None:
    package = find_spec("silero_vad")
    assert package and package.origin
    original = torch.jit.load(str(Path(package.origin).parent / "data" / "silero_vad.jit"))
    batch = torch.cat([speech[:, : 5 * RATE], music[:2, : 5 * RATE]])
    windows = F.pad(batch, (0, -batch.shape[1] % WINDOW)).split(WINDOW, dim=1)
    with torch.no_grad():
        expected = torch.cat([original(window, RATE) for window in windows], dim=1)
    torch.testing.assert_close(vad(batch), expected, rtol=0, atol=1e-4)


def test_a_spoken_sentence_is_speech(vad: SileroVad, speech: Tensor) -> None:
    found = measure_speech(vad, torch.cat([speech, 0.05 * speech, -speech]))
    assert (found.share > 0.8).all() and (found.confidence > 0.9).all()


def test_speech_over_music_is_speech(vad: SileroVad, speech: Tensor, music: Tensor) -> None:
    backing = music[:1, : speech.shape[1]]
    mixed = speech[:, : backing.shape[1]] / speech.std() + 0.3 * backing / backing.std()
    assert measure_speech(vad, 0.1 * mixed).share.item() > 0.7


def test_half_of_a_clip_with_speech_counts_half(vad: SileroVad, speech: Tensor) -> None:
    whole = measure_speech(vad, speech).share.item()
    half = measure_speech(vad, torch.cat([speech, torch.zeros_like(speech)], dim=1)).share.item()
    assert half == pytest.approx(whole / 2, abs=0.03)


def test_instruments_noise_and_silence_are_not_speech(vad: SileroVad, music: Tensor) -> None:
    noise = 0.1 * torch.randn(1, music.shape[1], generator=torch.Generator().manual_seed(3))
    found = measure_speech(vad, torch.cat([music, noise, torch.zeros(1, music.shape[1])]))
    assert found.share.max().item() < 0.05 and found.share.mean().item() < 0.01


def test_clips_shorter_than_a_word_are_measured(vad: SileroVad) -> None:
    assert measure_speech(vad, torch.zeros(2, 100)).share.tolist() == [0, 0]


def test_loading_leaves_the_number_of_threads(speech: Tensor) -> None:
    before = torch.get_num_threads()
    load_vad()
    assert torch.get_num_threads() == before
