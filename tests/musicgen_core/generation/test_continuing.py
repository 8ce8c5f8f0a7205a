"""Recordings that music continues from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicgen_core.errors import ConfigError
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, sidecar_of


def test_a_wav_of_any_sample_rate_is_continued_and_recorded(request_for: Any, tmp_path: Path) -> None:
    wav = tmp_path / "given.wav"
    soundfile.write(wav, 0.5 * np.sin(np.arange(22_050) / 10), 44_100)  # 0.5 s
    (piece,) = render(request_for(prompts=PROMPTS[:1], continue_from=str(wav), save_codes=True, duration=0.8))
    (again,) = render(request_for("again", prompts=PROMPTS[:1], save_codes=True, duration=0.8))
    assert (piece.seconds, sidecar_of(piece.wav)["continued_from"]) == (0.8, str(wav))
    assert sidecar_of(again.wav)["continued_from"] is None
    assert not np.array_equal(codes_of(piece.wav), codes_of(again.wav))
    samples, _ = soundfile.read(piece.wav)
    assert soundfile.info(piece.wav).frames == 25_600 and np.isfinite(samples).all()


def test_what_cannot_be_continued_is_named(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "long.wav", 0.1 * np.ones(32_000), 32_000)
    for name, found in (("gone.wav", "can't be continued"), ("text.wav", "not decodable"), ("long.wav", "lasts 1 s")):
        with pytest.raises(ConfigError, match=found) as refused:
            render(request_for(continue_from=str(tmp_path / name)))
        assert name in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_recording_is_named_with_its_content_and_may_be_long(request_for: Any, tmp_path: Path) -> None:
    wav = tmp_path / "minutes.wav"
    soundfile.write(wav, 0.3 * np.sin(np.arange(70 * 32_000) / 20), 32_000)
    prompts = [Prompt(prompt=PROMPTS[0], duration=70.2, continue_from=str(wav))]
    (piece,) = render(request_for(prompts=prompts, settings={"overlap": 1.0}))
    sidecar = sidecar_of(piece.wav)
    assert sidecar["continued_from_sha256"] == hashlib.sha256(wav.read_bytes()).hexdigest()
    assert soundfile.info(piece.wav).frames == round(70.2 * 32_000)


def test_a_pipe_is_not_waited_for_as_a_recording(request_for: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(ConfigError, match="it is not a file"):
        render(request_for(continue_from=str(tmp_path / "pipe.wav")))
