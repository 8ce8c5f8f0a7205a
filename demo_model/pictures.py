"""Draw spectrograms and chromagrams of the model's music.

    uv run python -m demo_model.pictures FILE.png --model demo [--styles piano techno folk hymn]

For each style an unseen clip is drawn as synthesized, through the codec, and as generated from its caption.
A chromagram shows which of the twelve pitch classes sound, and so chords and keys.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from demo_model.measure import PROMPT_SEED, SECONDS, compose_each, generate, load_engine, render, through
from demo_model.training import device_with_tf32
from musicgen_core.analysis.harmony import chromagram
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.files import FLOOR_DB, levels
from musicgen_core.model.weights import find_model
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import STYLES

PITCH_NAMES = ("C", "", "D", "", "E", "F", "", "G", "", "A", "", "B")
COLOURS = 64  # of the PNG
INCHES = (4.2, 2.6)  # of a clip


def draw(audio: dict[str, Tensor], captions: list[str]) -> Figure:
    """Draw clips [B, samples] by column name, with a row of spectrograms and one of chromagrams per caption."""
    rows = 2 * len(captions)
    figure = Figure(figsize=(INCHES[0] * len(audio), INCHES[1] * len(captions)), dpi=80, layout="constrained")
    axes = figure.subplots(rows, len(audio), squeeze=False, height_ratios=[2, 1] * len(captions))
    for column, (name, clips) in enumerate(audio.items()):
        chroma = chromagram(clips).cpu().numpy()
        for index, (clip, caption) in enumerate(zip(clips.cpu().numpy(), captions, strict=True)):
            above, below = axes[2 * index : 2 * index + 2, column]
            _draw_spectrogram(above, clip)
            above.set_title(f"{caption}\n{name}" if column == 0 else name, fontsize=8, loc="left")
            below.imshow(chroma[index], origin="lower", aspect="auto", cmap="Greys", extent=(0, SECONDS, -0.5, 11.5))
            below.set_yticks(range(len(PITCH_NAMES)), labels=PITCH_NAMES, fontsize=6)
            below.tick_params(axis="x", labelsize=7)
    return figure


def _draw_spectrogram(axes: Any, clip: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    shown, middles = levels(clip, SAMPLE_RATE, rows=120)
    extent = (0, SECONDS, *np.log10(middles[[0, -1]]))
    axes.imshow(shown, origin="lower", aspect="auto", cmap="magma", vmin=FLOOR_DB, vmax=0, extent=extent)
    axes.set_yticks([2, 3, 4], labels=["100 Hz", "1 kHz", "10 kHz"], fontsize=7)
    axes.set_xticks([])


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a small palette, at a third of the size."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(COLOURS).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--styles", nargs="+", default=["piano", "techno", "folk", "hymn"], choices=list(STYLES))
    given = parser.parse_args()
    torch.manual_seed(0)
    device, model = device_with_tf32(), find_model(given.model)
    codec = Codec(model, device)
    asked = compose_each(given.styles, 1, PROMPT_SEED, full_caption=True)
    captions = [clip.caption for clip in asked]
    original = render(SoundBank(device), asked)
    audio = {
        "synthesized": original,
        "through the codec": through(codec, original),
        "generated from the caption": generate(
            load_engine(model, device), codec, captions, SamplingSettings(duration=SECONDS)
        ),
    }
    save(draw(audio, captions), given.picture)
    print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
