from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure
from PIL import Image

from musicgen_core.generation.files import draw_spectrogram
from tasks.previews import PAGE_BYTES, THUMBNAIL, longest_seconds, picture, player, thumbnail


def sound_in(page: str) -> tuple[bytes, np.ndarray, int]:
    found = re.search(r'<audio controls src="data:audio/mpeg;base64,([^"]+)">\n[^<]+\n</audio>', page)
    assert found is not None
    data = base64.b64decode(found[1])
    samples, rate = soundfile.read(io.BytesIO(data))
    return data, samples, rate


@pytest.mark.parametrize(("of", "seconds"), [(1, 10.0), (2, 10.0), (4, 5.8)])
def test_a_page_of_previews_stays_under_200_kb(tmp_path: Path, of: int, seconds: float) -> None:
    rng = np.random.default_rng(0)
    noise = 0.2 * rng.standard_normal((30 * 32_000, 2))  # nothing is harder to compress
    soundfile.write(tmp_path / "a.wav", noise, 32_000)
    page = player(str(tmp_path / "a.wav"), longest_seconds(of))
    data, samples, rate = sound_in(page)
    assert rate == 32_000 and samples.ndim == 1
    assert len(samples) / rate == pytest.approx(seconds, abs=0.1)
    assert of * len(data) < PAGE_BYTES * 1.05 and of * len(page) < 200_000


def test_a_preview_sounds_as_its_file_does(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(64_000) / 32_000)
    soundfile.write(tmp_path / "a.wav", tone, 32_000)
    _, samples, rate = sound_in(player(str(tmp_path / "a.wav"), 10.0))
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * rate / len(samples) == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_a_picture_keeps_its_size_and_nearly_its_colours() -> None:
    drawn = io.BytesIO()

    def draw(target: IO[bytes]) -> None:
        figure = Figure(figsize=(8, 4.5))
        figure.subplots().plot(np.random.default_rng(0).standard_normal(40_000).cumsum(), alpha=0.3)
        figure.savefig(drawn, dpi=120, format="png")
        target.write(drawn.getvalue())

    found = re.fullmatch(r"!\[a curve\]\(data:image/png;base64,(.*)\)", picture(draw, "a curve"))
    assert found is not None and len(found[1]) < 40_000
    small, large = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)
        for data in (base64.b64decode(found[1]), drawn.getvalue())
    )
    assert small.shape == large.shape == (540, 960, 3)
    assert np.abs(small - large).mean() < 3


def test_a_thumbnail_of_a_spectrogram_takes_little_room(tmp_path: Path) -> None:
    noise = 0.2 * np.random.default_rng(0).standard_normal(10 * 32_000).astype(np.float32)
    (tmp_path / "a.png").write_bytes(draw_spectrogram(noise, 32_000, "a"))
    page = thumbnail(str(tmp_path / "a.png"), "Spectrogram of a")
    found = re.fullmatch(r"!\[Spectrogram of a\]\(data:image/jpeg;base64,(.*)\)", page)
    assert found is not None and len(page) < 40_000
    assert Image.open(io.BytesIO(base64.b64decode(found[1]))).size == THUMBNAIL
