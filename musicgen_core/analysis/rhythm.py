"""Tempo and metre from the periodicity of onsets.

The onset strength of music with a beat repeats after a beat, its halves and multiples, and after a bar, so its
autocorrelation has peaks there (Ellis 2007, "Beat tracking by dynamic programming", section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from musicgen_core.analysis.features import RATE, log_mel, onsets

SLOWEST_BPM, FASTEST_BPM = 55.0, 200.0
HARMONICS = {0.25: 0.5, 0.5: 1.0, 1.0: 1.0, 2.0: 1.0, 3.0: 1.0, 4.0: 1.0}
"""Lags in beats at which onsets repeat, and their weights"""
LONGEST_SECONDS = 5.0
THIRDS = ((0, 6), (6, 32), (32, 64))  # mel bands: to 250 Hz (kick, bass), to 2 kHz (chords, snare), above (hats)
TOLERANCE = 0.05
OCTAVES = (1.0, 2.0, 0.5)


def tempos(audio: Tensor) -> Tensor:
    """Return the tempo of each clip in bpm, [B]; it may be half or twice what a listener would tap."""
    return _tempos(onsets(log_mel(audio)))


def tempo_matches(measured_bpm: float, true_bpm: float) -> bool:
    """Return whether two tempos differ by at most 5 %, or are that close to an octave apart."""
    return any(abs(measured_bpm / (true_bpm * octave) - 1) <= TOLERANCE for octave in OCTAVES)


def meters(audio: Tensor) -> Tensor:
    """Return the beats per bar of each clip, [B]: 3 or 4, whichever period has the higher autocorrelation."""
    strength = onsets(log_mel(audio))
    beat = 60 * RATE / _tempos(strength)
    three, four = torch.zeros_like(beat), torch.zeros_like(beat)
    for low, high in THIRDS:
        repeats = _autocorrelation(strength[:, low:high].mean(1))
        three += _at(repeats, 3 * beat[:, None])[:, 0]
        four += _at(repeats, 4 * beat[:, None])[:, 0]
    return torch.where(three > four, 3, 4)


def _tempos(strength: Tensor) -> Tensor:
    """Return the bpm whose beat, halves and multiples repeat best, [B], from onset strength [B, bands, frames]."""
    repeats = _autocorrelation(strength.mean(1))
    bpm = torch.arange(SLOWEST_BPM, FASTEST_BPM, 0.5, device=strength.device)
    beats = (60 * RATE / bpm).expand(len(repeats), -1)
    scores = torch.stack([weight * _at(repeats, number * beats) for number, weight in HARMONICS.items()]).sum(0)
    return bpm[scores.argmax(1)]


def _autocorrelation(strength: Tensor) -> Tensor:
    """Return the autocorrelation [B, lags] of [B, frames] up to 5 s or the clip's end; 1 at lag 0."""
    centred = torch.nn.functional.avg_pool1d(strength[:, None], 3, 1, 1)[:, 0]
    centred = centred - centred.mean(-1, keepdim=True)
    length = centred.shape[-1]
    lags = min(round(LONGEST_SECONDS * RATE), length - 1)
    power = torch.fft.rfft(centred, 2 * length).abs().square()
    products = torch.fft.irfft(power)[:, :lags] / torch.arange(length, length - lags, -1, device=strength.device)
    return products / products[:, :1].clamp(min=1e-9)


def _at(repeats: Tensor, lags: Tensor) -> Tensor:
    """Return the autocorrelation [B, lags] at fractional lags [B, N], maximum within a frame; 0 beyond its end."""
    nearest = lags.round().long()
    last = repeats.shape[-1] - 1
    around = torch.stack([repeats.gather(1, (nearest + shift).clamp(0, last)) for shift in (-1, 0, 1)])
    return torch.where(nearest < last, around.amax(0), 0.0)
