"""Spectrograms: time in s, frequency in Hz on a logarithmic scale, level in dB."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

PICTURE_SIZE = (720, 320)  # pixels; it can still be read at half the size
WINDOW = 4096  # samples of a spectrum: 128 ms at 32 kHz, two pixels of 30 s; 8 Hz apart
LOWEST_HZ = 40.0
FLOOR_DB = -90.0
MAP_COLOURS = 64
TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)
PAPER, INK = (12, 10, 20), (214, 211, 224)  # the paper is as dark as silence: for light and dark pages


def draw_spectrogram(audio: NDArray[np.float32], rate: int, title: str) -> bytes:
    """Return the spectrogram of audio [samples] as a PNG."""
    from matplotlib import colormaps  # here: a third of a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = PICTURE_SIZE
    ink = _css(INK)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=_css(PAPER))
    # Fixed positions: a layout that measures its texts takes as long as all the rest.
    axes = figure.add_axes((0.105, 0.175, 0.755, 0.735))
    shown, middles = levels(audio, rate, rows=round(0.735 * height))
    bottom, top = np.log10(middles[[0, -1]])
    image = axes.imshow(
        shown,
        origin="lower",
        aspect="auto",
        interpolation_stage="data",  # levels are averaged, not colours
        cmap=colormaps["magma"].resampled(MAP_COLOURS),
        vmin=FLOOR_DB,
        vmax=0,
        extent=(0, len(audio) / rate, bottom, top),
    )
    ticks = [hertz for hertz in TICKS_HZ if hertz <= rate / 2]
    axes.set_yticks(np.log10(ticks), labels=[f"{hertz // 1000}k" if hertz >= 1000 else str(hertz) for hertz in ticks])
    # Units alone: they are read in every language, for some of which Matplotlib has no glyphs.
    axes.set_xlabel("s", color=ink, fontsize=12)
    axes.set_ylabel("Hz", color=ink, fontsize=12)
    axes.set_title(title, color=ink, fontsize=12, loc="left", parse_math=False)
    scale = figure.colorbar(image, cax=figure.add_axes((0.88, 0.175, 0.015, 0.735)))
    scale.set_label("dB", color=ink, fontsize=12)
    for drawn in (axes, scale.ax):
        drawn.tick_params(colors=ink, labelsize=11)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _pack(np.asarray(canvas.buffer_rgba()))


def levels(audio: NDArray[np.float32], rate: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the level of audio [samples] over frequency and time [rows, columns] in dB, and the rows' Hz.

    The rows are triangular bands, evenly spaced on a logarithmic scale from 40 Hz to half the rate, each reaching to
    the centres of its neighbours. A full-scale sine has 0 dB, or down to -3.5 dB between two bands.
    """
    hop = int(
        np.clip(len(audio) // PICTURE_SIZE[0], 1, WINDOW // 2)
    )  # at most half a window, so that every audio sample counts
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, WINDOW // 2), WINDOW)[::hop]
    window = np.hanning(WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window)) ** 2 * 4 / (WINDOW * np.sum(window**2))  # [columns, bins]
    bins = np.fft.rfftfreq(WINDOW, 1 / rate)
    middles = np.geomspace(LOWEST_HZ, rate / 2, rows)
    reach = np.maximum(middles * np.log(middles[1] / middles[0]), bins[1])
    bands = np.maximum(0, 1 - np.abs(bins - middles[:, None]) / reach[:, None]).astype(np.float32)  # [rows, bins]
    return 10 * np.log10(bands @ power.T + 1e-12), middles


def _css(colour: tuple[int, int, int]) -> str:
    return f"#{bytes(colour).hex()}"


def _pack(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels [height, width, 4] as a PNG with a palette of 64 colours and 16 shades for text: half the size."""
    from matplotlib import colormaps
    from PIL import Image

    map_colours = colormaps["magma"](np.linspace(0, 1, MAP_COLOURS), bytes=True)[:, :3]
    writing = np.linspace(PAPER, INK, 16).astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([map_colours, writing]).tobytes())
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).convert("RGB")
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG")
    return buffer.getvalue()
