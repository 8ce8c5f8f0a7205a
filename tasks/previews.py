"""Pictures and sounds small enough to embed in the text of an artifact."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO

import soundfile

from musicgen_core import storage
from musicgen_core.embedding import SMALL_MP3_LEVEL, data_url, encode_mp3

BYTES_PER_SECOND = 6000
PAGE_BYTES = 140_000
"""Sound per page, which base64 turns into 187 kB. The list of a run's artifacts loads all pages in full."""
LONGEST_SECONDS = 10.0
COLORS = 32
THUMBNAIL = (480, 213)
THUMBNAIL_QUALITY = 50
NO_PLAYER = "Prefect's V2 UI shows no players: press “Switch to V1 UI”, at the bottom left."
"""Fallback text inside the audio element: the V2 UI drops the element and shows its content."""


def picture(draw: Callable[[IO[bytes]], None], description: str) -> str:
    """Return the picture that `draw` writes, in Markdown, as a PNG with few colours, which lines and text need."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    draw(drawn)
    Image.open(drawn).convert("RGB").quantize(COLORS).save(small, "PNG", optimize=True)
    return f"![{description}]({data_url('image/png', small.getvalue())})"


def thumbnail(file: str, description: str) -> str:
    """Return a thumbnail of a picture file, in Markdown, as a JPEG, because spectrograms have many colours.

    Raises:
        OSError: the file can't be read.
    """
    from PIL import Image

    small = io.BytesIO()
    with storage.staged(storage.as_path(file)) as local:
        Image.open(local).convert("RGB").resize(THUMBNAIL).save(small, "JPEG", quality=THUMBNAIL_QUALITY)
    return f"![{description}]({data_url('image/jpeg', small.getvalue())})"


def player(file: str, seconds: float) -> str:
    """Return an audio player for the first seconds of a sound file, as a block; MP3, which every browser plays.

    Raises:
        OSError, soundfile.LibsndfileError: the file can't be read.
    """
    with storage.staged(storage.as_path(file)) as local, soundfile.SoundFile(local) as sound:
        samples, rate = sound.read(int(seconds * sound.samplerate), always_2d=True), sound.samplerate
    url = data_url("audio/mpeg", encode_mp3(samples.mean(axis=1), rate, SMALL_MP3_LEVEL))
    return f'<audio controls src="{url}">\n{NO_PLAYER}\n</audio>'


def longest_seconds(of: int, page_bytes: int = PAGE_BYTES) -> float:
    """Return the seconds of sound for each player, if a page has `of` of them."""
    return min(LONGEST_SECONDS, page_bytes / of / BYTES_PER_SECOND)
