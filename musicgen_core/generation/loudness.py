"""Loudness: −14 LUFS without clipping."""

from __future__ import annotations

import warnings

import numpy as np
import pyloudnorm
from numpy.typing import NDArray

TARGET_LUFS = -14.0  # what streaming services play at, and audiocraft's `loudness_headroom_db`
CEILING = 0.98  # of full scale
KNEE = 0.8  # samples below this are left alone


def normalize(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Bring mono audio [samples] to −14 LUFS (ITU-R BS.1770), peaks bent smoothly under the ceiling.

    Bending peaks takes some loudness away, so the gain is found in a few rounds. Silence stays silence.
    """
    meter = pyloudnorm.Meter(rate, block_size=min(0.4, len(samples) / rate * 0.99))
    gain = 1.0
    for _ in range(6):
        with warnings.catch_warnings(), np.errstate(divide="ignore"):
            warnings.simplefilter("ignore")
            loudness = meter.integrated_loudness(_limit(samples * gain))
        if not np.isfinite(loudness) or abs(loudness - TARGET_LUFS) < 0.05:
            break
        gain *= 10 ** ((TARGET_LUFS - loudness) / 20)
    return _limit(samples * gain).astype(np.float32)


def _limit(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Above the knee, a tanh curve towards the ceiling, with the slope of a straight line where they meet."""
    size = np.abs(samples)
    room = CEILING - KNEE
    bent = KNEE + room * np.tanh((size - KNEE) / room)
    return np.where(size <= KNEE, samples, np.sign(samples) * bent)
