"""From the bytes of a `.wav` to what the codec takes: mono, 32 kHz, fp32."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.errors import ClipRejected


@dataclass(frozen=True)
class Clip:
    """Decoded audio.

    Attributes:
        samples: [samples], fp32, mono, 32 kHz.
        seconds: the duration at the file's own rate.
    """

    samples: NDArray[np.float32]
    seconds: float


def decode_wav(data: bytes) -> Clip:
    """Decode, mix down by the mean and resample.

    Raises:
        ClipRejected: not decodable, empty, shorter than one frame of codes, silent, or not finite.
    """
    try:
        audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)  # [samples, channels]
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        reason = str(error).removeprefix("Error opening <_io.BytesIO object at ").split(">: ")[-1]
        raise ClipRejected(f"not decodable as audio ({reason.strip()} {len(data):,} bytes)") from error
    if not np.isfinite(audio).all():
        raise ClipRejected(f"{np.count_nonzero(~np.isfinite(audio))} of its samples are not finite")
    if not audio.any():
        raise ClipRejected("all its samples are zero" if audio.size else "it holds no samples")
    seconds = len(audio) / rate
    mono = audio.mean(axis=1)
    if not mono.any():
        raise ClipRejected("its channels cancel each other out")
    samples = mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)
    if len(samples) < SAMPLES_PER_FRAME:
        raise ClipRejected(f"it lasts {seconds:.4f} s, less than one frame of codes (0.02 s)")
    return Clip(np.ascontiguousarray(samples, dtype=np.float32), seconds)
