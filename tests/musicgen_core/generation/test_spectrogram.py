from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.generation.files import draw_spectrogram, levels
from musicgen_core.generation.page import PICTURE_SIZE


def tone(
    hertz: float = 440.0, seconds: float = 1.0, level: float = 0.5, rate: int = SAMPLE_RATE
) -> NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("hertz", "rate"), [(55.0, 32_000), (1000.0, 32_000), (7900.0, 32_000), (1000.0, 44_100)])
@pytest.mark.parametrize("level", [1.0, 0.05])
def test_a_tone_shows_its_frequency_and_its_level(hertz: float, rate: int, level: float) -> None:
    shown, middles = levels(tone(hertz, 2.0, level, rate), rate, rows=200)
    loudest = shown[:, shown.shape[1] // 2].argmax()
    assert abs(middles[loudest] / hertz - 1) < 0.1
    assert -6 < shown[loudest, shown.shape[1] // 2] - 20 * np.log10(level) < 0.1


@pytest.mark.parametrize("seconds", [0.01, 1.0, 120.0])
def test_a_click_is_seen_wherever_it_is(seconds: float) -> None:
    for place in (0.0, 0.37, 0.999):
        audio = np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)
        audio[int(place * len(audio))] = 1.0
        shown, _ = levels(audio, SAMPLE_RATE, rows=50)
        assert shown.max() > -70
        assert abs(shown.max(axis=0).argmax() / shown.shape[1] - place) < 0.01 or seconds < 1


@pytest.mark.parametrize("title", ["slow piano", "costs $5 or $x^{", "", "تيتل\nof two lines"])
def test_a_spectrogram_is_drawn_under_any_title(title: str) -> None:
    assert Image.open(io.BytesIO(draw_spectrogram(tone(), SAMPLE_RATE, title))).size == PICTURE_SIZE
