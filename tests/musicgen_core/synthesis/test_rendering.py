from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from musicgen_core.codes import SAMPLES_PER_FRAME
from musicgen_core.synthesis.composing import Clip, compose
from musicgen_core.synthesis.instruments import DRUMS, INDEX, INSTRUMENTS, NOTES, note_frames
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import ALL_STYLES

FRAMES = 200


@pytest.fixture(scope="module")
def bank() -> SoundBank:
    return SoundBank()


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [compose(seed, style, FRAMES) for seed, style in enumerate(ALL_STYLES)]


def test_a_clip_sounds_the_same_alone_and_in_a_batch(bank: SoundBank, clips: list[Clip]) -> None:
    batch = bank.render(clips, FRAMES)
    assert batch.shape == (len(clips), FRAMES * SAMPLES_PER_FRAME) and batch.dtype == torch.float32
    for index, clip in enumerate(clips):
        torch.testing.assert_close(bank.render([clip], FRAMES)[0], batch[index], rtol=0, atol=1e-5)


def test_the_order_in_which_notes_are_loaded_is_not_heard(bank: SoundBank, clips: list[Clip]) -> None:
    backwards = torch.cat([fresh.render([clip], FRAMES) for fresh in [SoundBank()] for clip in clips[::-1]])
    torch.testing.assert_close(backwards.flip(0), bank.render(clips, FRAMES), rtol=0, atol=1e-5)


def test_clips_are_audible_and_never_exceed_full_scale(bank: SoundBank, clips: list[Clip]) -> None:
    audio = bank.render(clips, FRAMES)
    assert audio.abs().max() < 1
    levels = audio.square().mean(1).sqrt()
    assert levels.min() > 0.05 and levels.max() < 0.4


def test_a_shorter_rendering_is_the_beginning_of_the_longer_one(bank: SoundBank, clips: list[Clip]) -> None:
    long, short = (bank.render(clips, frames) for frames in (FRAMES, FRAMES // 2))
    torch.testing.assert_close(long[:, : short.shape[1]], short, rtol=0, atol=1e-4)


def test_a_note_sounds_from_its_onset_with_its_velocity(bank: SoundBank) -> None:
    note = INDEX["sub bass", 40, 0]
    loud, soft = (
        bank.render([Clip(np.array([[note, 20, 10, 4, velocity]], np.float32), 0.0, "", compose(0).truth)], 50)[0]
        for velocity in (0.02, 0.01)
    )
    heard = loud.view(50, -1).abs().amax(1) > 1e-5
    assert heard.nonzero()[:, 0].tolist() == list(range(20, 34))
    torch.testing.assert_close(loud, 2 * soft, rtol=1e-2, atol=1e-5)


def test_there_are_a_dozen_instruments_and_nine_drums_or_more() -> None:
    assert len(INSTRUMENTS) >= 13 and len(DRUMS) >= 9  # one of them is held out


@pytest.mark.parametrize("name", [*INSTRUMENTS, *DRUMS])
def test_notes_are_loud_in_tune_and_do_not_alias(name: str) -> None:
    indices = [index for index, note in enumerate(NOTES) if note[0] == name and note[2] == 0]
    for index in {indices[0], indices[len(indices) // 2], indices[-1]}:
        audio = note_frames(NOTES[index]).reshape(-1).astype(float)
        assert 0.1 < np.abs(audio).max() < 1.5 and np.abs(audio[-1]) < 1e-3
        if name in INSTRUMENTS:
            spectrum = np.abs(np.fft.rfft(audio[640:24_640] * np.hanning(24_000), 96_000))  # 1/3 Hz
            fundamental = 440 * 2 ** ((NOTES[index][1] - 69) / 12)
            around = slice(round(3 * 0.97 * fundamental), round(3 * 1.03 * fundamental) + 2)
            assert spectrum[around].max() > 0.2 * spectrum.max()
            assert np.argmax(spectrum[around]) + around.start == pytest.approx(3 * fundamental, rel=0.01, abs=1.5)
            assert spectrum[3 * 15_000 :].max() < 1e-3 * spectrum.max()


def test_composing_needs_no_torch() -> None:
    code = "import sys, musicgen_core.synthesis.composing as c; c.compose(1); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
