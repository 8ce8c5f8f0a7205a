"""The files of a generated sample: wav, FLAC, MP3, spectrogram, codes, and a sidecar that marks it as complete."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import Format
from musicgen_core.generation.loudness import mono_of
from musicgen_core.generation.page import PICTURE_SIZE
from musicgen_core.strict_json import strict_json

COMPANIONS = ("flac", "mp3", "png", "npy")
"""Endings of the optional files beside STEM.wav and STEM.json."""
MP3_COMPRESSION = 0.4  # of libsndfile's 0 to 1: LAME's constant 192 kbit/s at 32 kHz
FULL_SCALE = 1 << 15  # of 16 bits
WINDOW = 4096  # samples of a spectrum: 128 ms at 32 kHz, two pixels of 30 s; 8 Hz apart
LOWEST_HZ = 40.0
FLOOR_DB = -90.0
MAP_COLOURS = 64
TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)
PAPER, INK = (12, 10, 20), (214, 211, 224)  # the paper is as dark as silence: for light and dark pages


@dataclass(frozen=True)
class GeneratedSample:
    """One generated sample of music.

    Attributes:
        stem: name of its files without the ending, such as `generated_000`.
        audio: float32 [samples], or [samples, 2] of stereo, 32 kHz, loudness-normalised, within [-1, 1].
        codes: uint16 [K, frames] to save as `.npy`, or None.
        sidecar: JSON values.
    """

    stem: str
    audio: NDArray[np.float32]
    codes: NDArray[np.uint16] | None
    sidecar: dict[str, Any]


def write_sample(
    out: storage.Location,
    sample: GeneratedSample,
    formats: Sequence[Format] = (),
    spectrogram: bool = True,
    copy_to: storage.Location | None = None,
) -> list[UPath]:
    """Write a sample's files, and a copy if `copy_to` is given, and return their paths, the sidecar's last.

    The sidecar of an older sample of this name is deleted before anything else changes, so that the files beside a
    sidecar always belong together, even if a writer was killed. Each file is written atomically.

    Args:
        out: the directory.
        sample: the sample.
        formats: formats beside wav.
        spectrogram: whether to draw a spectrogram, as `.png`.
        copy_to: a second directory, or None.

    Raises:
        ValueError: the audio is empty, leaves [-1, 1] or isn't finite.
    """
    peak = float(np.abs(sample.audio).max(initial=0.0))
    if sample.audio.shape[1:] not in ((), (2,)) or not len(sample.audio) or not peak <= 1:  # a peak of NaN isn't
        raise ValueError(f"{sample.stem} is no audio within [-1, 1]: shape {sample.audio.shape}, peak {peak}")
    sidecar = strict_json(sample.sidecar, indent=1, ensure_ascii=False)
    contents = {"wav": _encode(sample.audio, "WAV")}
    for format in formats:
        contents[format] = _encode_mp3(sample.audio) if format == "mp3" else _encode(sample.audio, format.upper())
    if spectrogram:
        contents["png"] = draw_spectrogram(mono_of(sample.audio), SAMPLE_RATE, sample.stem)
    if sample.codes is not None:
        codes = io.BytesIO()
        np.save(codes, sample.codes)
        contents["npy"] = codes.getvalue()
    written = _publish(storage.as_path(out) / sample.stem, contents, sidecar)
    if copy_to is not None:
        _publish(storage.as_path(copy_to) / sample.stem, contents, sidecar)
    return written


def _publish(base: UPath, contents: Mapping[str, bytes], sidecar: str) -> list[UPath]:
    _beside(base, "json").unlink(missing_ok=True)
    for stale in set(COMPANIONS) - set(contents):
        _beside(base, stale).unlink(missing_ok=True)
    for ending, content in contents.items():
        with storage.publish(_beside(base, ending)) as path:
            path.write_bytes(content)
    storage.write_text(_beside(base, "json"), sidecar)
    return [_beside(base, ending) for ending in (*contents, "json")]


def _beside(base: UPath, ending: str) -> UPath:
    return base.with_name(f"{base.name}.{ending}")


def _encode(audio: NDArray[np.float32], format: str) -> bytes:
    """Encode audio in 16 bits, rounded here: from floats, libsndfile writes wav and FLAC that differ by one."""
    pcm = np.clip(np.round(audio * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, subtype="PCM_16", format=format)
    return buffer.getvalue()


def _encode_mp3(audio: NDArray[np.float32]) -> bytes:
    """Encode audio at about 192 kbit/s, attenuated until the decoded audio, which differs, doesn't clip."""
    level = 1.0
    while True:
        buffer = io.BytesIO()
        soundfile.write(
            buffer,
            audio * np.float32(level),
            SAMPLE_RATE,
            format="MP3",
            subtype="MPEG_LAYER_III",
            bitrate_mode="CONSTANT",
            compression_level=MP3_COMPRESSION,
        )
        encoded = buffer.getvalue()
        decoded, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
        peak = np.abs(decoded).max(initial=0.0)
        if peak <= 1:
            return encoded
        level *= 0.99 / peak


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
    hop = min(max(len(audio) // PICTURE_SIZE[0], 1), WINDOW // 2)  # so that every audio sample counts
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
