"""Pictures and sounds small enough to stand in an artifact, whose text holds them whole."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import IO

import soundfile

from musicgen_core import storage

MP3_LEVEL = 0.95
"""libsndfile's compression level for 48 kbit/s at a constant rate: of MP3's rates (320 - 288 × level), rounded."""
BYTES_PER_SECOND = 6000
PAGE_BYTES = 140_000
"""Sound a page, before base64 makes 187 kB of it. The Artifacts page loads what it lists whole."""
LONGEST_SECONDS = 10.0
COLORS = 32


def picture(draw: Callable[[IO[bytes]], None], description: str) -> str:
    """What `draw` writes as a PNG, in Markdown; lines and letters need no more than a few colours."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    draw(drawn)
    Image.open(drawn).convert("RGB").quantize(COLORS).save(small, "PNG", optimize=True)
    return f"![{description}](data:image/png;base64,{base64.b64encode(small.getvalue()).decode()})"


def player(file: str, of: int = 1) -> str:
    """The first seconds of a sound file, to play in a page that has `of` of them; as MP3, which every browser plays.

    Raises:
        OSError, soundfile.LibsndfileError: it can't be read.
    """
    seconds = longest_seconds(of)
    with storage.staged(storage.as_path(file)) as local, soundfile.SoundFile(local) as sound:
        samples, rate = sound.read(int(seconds * sound.samplerate), always_2d=True), sound.samplerate
    encoded = io.BytesIO()
    soundfile.write(
        encoded,
        samples.mean(axis=1),
        rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=MP3_LEVEL,
        bitrate_mode="CONSTANT",
    )
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<audio controls src="data:audio/mpeg;base64,{data}"></audio>'


def longest_seconds(of: int) -> float:
    """Of each of so many players on a page."""
    return min(LONGEST_SECONDS, PAGE_BYTES / of / BYTES_PER_SECOND)
