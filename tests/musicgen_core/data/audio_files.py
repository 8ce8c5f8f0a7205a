"""Audio files as bytes: written by libsndfile, decoded or rejected."""

from __future__ import annotations

import io
import tempfile
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.errors import ClipRejected

Array = NDArray[Any]
SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"]
RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]
OTHERS = [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("W64", "PCM_16"),
          ("CAF", "PCM_16"), ("AU", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM")]  # fmt: skip


def decoded(data: bytes, **limits: Any) -> DecodedClip:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return decode(file, **limits)


def rejection(data: bytes, **limits: Any) -> str:
    with pytest.raises(ClipRejected) as rejected:
        decoded(data, **limits)
    reason = str(rejected.value)
    assert reason and reason.isprintable() and "opening" not in reason and "object" not in reason
    return reason


def written(samples: Array, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str = "FLOAT", **how: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype, **how)
    return buffer.getvalue()


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(-0.9, 0.9, shape)
