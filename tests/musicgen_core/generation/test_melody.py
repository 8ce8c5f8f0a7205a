"""Recordings whose melody music follows: any sound file, and the part of it at a window's position."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.errors import ConfigError
from musicgen_core.generation.engine import WINDOW_FRAMES
from musicgen_core.generation.melody import read_melody, window_chroma
from tests.musicgen_core.melodies import condition_of, make_conditioner, music


def audiocrafts_windows(conditioner: Any, wav: Tensor, seconds: float, stride: float) -> list[Tensor]:
    """Return the chroma of each window as audiocraft's `MusicGen` passes it to its language model."""
    musicgen = import_audiocraft("audiocraft.models.musicgen").MusicGen
    seen = []

    def generate(prompt: Tensor, attributes: list[Any], max_gen_len: int, **_: Any) -> Tensor:
        seen.append(conditioner._get_wav_embedding(attributes[0].wav["self_wav"])[0].argmax(-1))
        return torch.zeros(1, 4, max_gen_len)

    model = object.__new__(musicgen)
    vars(model).update(
        duration=seconds,
        max_duration=30.0,
        extend_stride=stride,
        device="cpu",
        autocast=nullcontext(),
        generation_params={},
        _progress_callback=None,
        compression_model=SimpleNamespace(frame_rate=50, sample_rate=SAMPLE_RATE, channels=1),
        lm=SimpleNamespace(generate=generate),
    )
    model._generate_tokens([SimpleNamespace(wav={"self_wav": condition_of(wav)})], None)
    return seen


def test_each_window_follows_the_part_that_audiocraft_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    conditioner = make_conditioner(monkeypatch)
    for recording, seconds, stride in ((7.3, 20.0, 18.0), (7.3, 40.0, 4.02), (40.0, 65.0, 18.0)):
        wav = music()[: int(recording * SAMPLE_RATE)]
        theirs = audiocrafts_windows(conditioner, wav, seconds, stride)
        for number, chroma in enumerate(theirs):
            window = None if len(theirs) == 1 else (number * int(50 * stride), WINDOW_FRAMES)
            ours = window_chroma(wav, 235, window)
            assert ours.dtype == torch.int64 and torch.equal(ours, chroma)


def test_a_recording_of_any_rate_and_channels_is_read_as_32_khz_mono(tmp_path: Path) -> None:
    file, wav = tmp_path / "tune.flac", music()[: 4 * SAMPLE_RATE].numpy()
    soundfile.write(file, np.stack([wav, 0.5 * wav], axis=1), 44_100)
    melody = read_melody(str(file))
    assert (melody.path, len(melody.sha256)) == (str(file), 64)
    assert melody.wav.dtype == torch.float32 and melody.wav.shape == (round(len(wav) / 44_100 * SAMPLE_RATE),)


def test_what_is_no_melody_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "silent.wav", np.zeros(32_000), 32_000)
    for name, found in (("gone.wav", "can't be used as a melody"), ("text.wav", "decodable"), ("silent.wav", "zero")):
        with pytest.raises(ConfigError, match=found) as refused:
            read_melody(str(tmp_path / name))
        assert name in str(refused.value)
