"""Sounds and pictures as data URLs, for pages that need no other files."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE

MP3_LEVEL = 0.75
"""libsndfile's compression level for 96 kbit/s at a constant rate, 12 kB a second"""
SMALL_MP3_LEVEL = 0.95
"""The level for 48 kbit/s, 6 kB a second: of MP3's rates (320 - 288 × level), rounded"""


def encode_mp3(audio: NDArray[np.floating], rate: int = SAMPLE_RATE, level: float = MP3_LEVEL) -> bytes:
    """Return mono audio, [samples], as an MP3, which every browser plays."""
    encoded = io.BytesIO()
    soundfile.write(
        encoded,
        audio,
        rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=level,
    )
    return encoded.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """Return content of a MIME type, such as `image/png`, as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
