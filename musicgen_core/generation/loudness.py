"""Decoded audio as sound files have it, and its loudness normalisation to −14 LUFS without clipping."""

from __future__ import annotations

import warnings

import numpy as np
import pyloudnorm
from numpy.typing import NDArray
from torch import Tensor

Audio = NDArray[np.float32]
"""[samples], or [samples, 2] of stereo"""
TARGET_LUFS = -14.0  # the level of streaming services, and audiocraft's `loudness_headroom_db`
CEILING = 0.98  # of full scale
KNEE = 0.8  # samples below this are left alone


def sound_of(wav: Tensor) -> Audio:
    """Return audio as sound files have it, [samples] or [samples, 2], from decoded wav [channels, samples]."""
    return np.ascontiguousarray(wav.T.squeeze(-1).numpy())


def mono_of(sound: Audio) -> Audio:
    """Return the mean of the channels, [samples], of audio [samples] or [samples, 2]."""
    return sound if sound.ndim == 1 else sound.mean(axis=1)


def normalize(samples: Audio, rate: int) -> Audio:
    """Return audio [samples] or [samples, channels] at −14 LUFS (ITU-R BS.1770), with a soft limiter below full scale.

    The limiter reduces loudness, so the gain is found iteratively. Silence stays silent.
    """
    meter = pyloudnorm.Meter(rate, block_size=min(0.4, len(samples) / rate * 0.99))
    gain = 1.0
    for _ in range(6):
        with warnings.catch_warnings(), np.errstate(divide="ignore"):
            warnings.simplefilter("ignore")
            loudness = meter.integrated_loudness(limit(samples * gain))
        if not np.isfinite(loudness) or abs(loudness - TARGET_LUFS) < 0.05:
            break
        gain *= 10 ** ((TARGET_LUFS - loudness) / 20)
    return limit(samples * gain).astype(np.float32)


def limit(samples: Audio) -> Audio:
    """Apply a soft limiter: above the knee, a tanh curve towards the ceiling whose slope at the knee is 1."""
    size = np.abs(samples)
    headroom = CEILING - KNEE
    limited = KNEE + headroom * np.tanh((size - KNEE) / headroom)
    return np.where(size <= KNEE, samples, np.sign(samples) * limited)
