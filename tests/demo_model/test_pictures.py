"""Pictures of music show its notes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image

from demo_model.measure import SECONDS
from demo_model.pictures import draw, save
from musicgen_core.codes import SAMPLE_RATE


def test_each_clip_is_drawn_as_spectrogram_and_chromagram(tmp_path: Path) -> None:
    time = torch.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    a, c = (0.5 * torch.sin(2 * math.pi * hertz * time) for hertz in (440.0, 261.63))
    figure = draw({"original": torch.stack([a, c]), "decoded": torch.stack([a, a])}, ["an A", "a C"])
    chromagrams = [axes.images[0].get_array() for axes in figure.axes if len(axes.get_yticks()) == 12]
    loudest = [int(image.sum(1).argmax()) for image in chromagrams]
    assert loudest == [9, 9, 0, 9]  # A and A, C and A
    save(figure, tmp_path / "a" / "picture.png")
    with Image.open(tmp_path / "a" / "picture.png") as picture:
        assert picture.mode == "P" and picture.width > picture.height / 2
