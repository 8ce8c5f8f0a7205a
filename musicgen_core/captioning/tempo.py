"""Tempo from the autocorrelation of onset strength, for any kind of music.

Onset strength is the spectral flux of log-compressed mel bands (Müller 2015, "Fundamentals of Music Processing",
section 6.1), kept apart in eight groups of bands so that a hi-hat doesn't drown a bass line. A tempo's score is the
mean autocorrelation at half a beat and at one to four beats, weighted by a log-normal prior around 125 bpm: listeners
prefer moderate tempos to twice or half of them (Ellis 2007, "Beat tracking by dynamic programming", section 3.2).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from musicgen_core.captioning.spectra import in_parts, power_spectra
from musicgen_core.codes import SAMPLE_RATE

WINDOW, HOP = 1024, 320  # samples at 32 kHz: 32 ms every 10 ms
RATE = SAMPLE_RATE // HOP  # frames/s
BANDS, GROUPS = 40, 8
COMPRESSION = 100.0  # of power relative to the clip's mean
RISE = 2  # frames over which the flux is taken
FAINT = 0.005  # mean square of an onset strength that means nothing: music with a beat has 0.2 to 12, held tones 0.0005
FLOOR = 0.05  # of the mean energy of the groups: quieter groups are not lifted to the level of the others

SLOWEST_BPM, FASTEST_BPM, TEMPOS = 40.0, 240.0, 400
COMB = {0.5: 0.4, 1.0: 1.0, 2.0: 0.5, 3.0: 1.2, 4.0: 0.5}
"""Lags in beats and their weights"""
LONGEST_LAG = 0.75  # of the clip; a longer lag has too few frames to compare
PRIOR_BPM, PRIOR_OCTAVES = 125.0, 0.9  # centre and standard deviation

NOISE, CERTAIN = 0.1, 0.5  # mean autocorrelation without a beat, at most, and with a beat that nobody would miss
LEAST_CONFIDENCE = 0.25

PART_SECONDS = 8.0  # parts overlap by half
DRIFTS = 0.1  # tempos in parts are searched within ±10 %
STEADY = 0.03
STEADY_SHARE = 0.75  # of the parts


class Tempo(NamedTuple):
    """Tempo of each clip.

    Attributes:
        bpm: beats a minute, [B]; NaN where the confidence is below 0.25. It may be half or twice what a listener taps.
        confidence: that there is a regular beat, from 0 to 1, [B].
        steady: whether three quarters of the parts of 8 s have the clip's tempo within 3 %, [B]; False without a tempo.
    """

    bpm: Tensor
    confidence: Tensor
    steady: Tensor


def measure_tempo(audio: Tensor) -> Tempo:
    """Measure the tempo of mono audio at 32 kHz, [B, samples]."""
    onsets = in_parts(_onsets, audio)
    frames = onsets.shape[-1]
    tempos = torch.logspace(math.log10(SLOWEST_BPM), math.log10(FASTEST_BPM), TEMPOS, device=audio.device)
    scores = _comb(_autocorrelation(onsets), (60 * RATE / tempos).expand(len(audio), -1), frames)
    prior = torch.exp(-0.5 * ((tempos / PRIOR_BPM).log2() / PRIOR_OCTAVES) ** 2)
    best = (scores.clamp(min=0) * prior).argmax(1, keepdim=True)
    confidence = ((scores.gather(1, best)[:, 0] - NOISE) / (CERTAIN - NOISE)).clamp(0, 1)
    step = math.log(FASTEST_BPM / SLOWEST_BPM) / (TEMPOS - 1)
    bpm = SLOWEST_BPM * torch.exp((best + _peak_offset(scores, best))[:, 0] * step)
    has_tempo = confidence >= LEAST_CONFIDENCE
    steady = has_tempo & (_agreeing_share(onsets, bpm) >= STEADY_SHARE)
    return Tempo(bpm=torch.where(has_tempo, bpm, torch.nan), confidence=confidence, steady=steady)


def _onsets(audio: Tensor) -> Tensor:
    """Return the onset strength of each group of bands, [B, 8, frames], its mean over a second subtracted."""
    power = _mel_bands().to(audio.device) @ power_spectra(audio, WINDOW, HOP)
    loudness = (COMPRESSION * power / power.mean((1, 2), keepdim=True).clamp(min=1e-20)).log1p()
    rises = F.pad((loudness[..., RISE:] - loudness[..., :-RISE]).clamp(min=0), (RISE, 0))
    strength = rises.unflatten(1, (GROUPS, -1)).sum(2)
    smooth = torch.hann_window(7, periodic=False, device=audio.device)[1:-1]
    strength = F.conv1d(strength.flatten(0, 1)[:, None], (smooth / smooth.sum())[None, None], padding=2)
    mean = F.avg_pool1d(strength, RATE + 1, 1, RATE // 2, count_include_pad=False)
    return (strength - mean).view(len(audio), GROUPS, -1)


@lru_cache(maxsize=1)
def _mel_bands() -> Tensor:
    banks: Tensor = melscale_fbanks(WINDOW // 2 + 1, 30.0, 15_000.0, BANDS, SAMPLE_RATE)
    return banks.T


def _autocorrelation(onsets: Tensor) -> Tensor:
    """Return the autocorrelation [B, lags] of onset strength [B, groups, frames], summed over groups; 1 at
    lag 0 unless the onsets are faint.

    Groups are scaled by their standard deviation to the power -1, halfway between equal and their own weights.
    """
    frames = onsets.shape[-1]
    lags = min(frames, math.ceil(max(COMB) * 60 * RATE / SLOWEST_BPM * (1 + DRIFTS)) + 2)
    energy = onsets.square().mean(-1)
    weights = (energy + FLOOR * energy.mean(1, keepdim=True)).clamp(min=1e-12).rsqrt()
    products = torch.fft.irfft(torch.fft.rfft(onsets, 2 * frames).abs().square())[..., :lags]
    summed = (weights[..., None] * products).sum(1) / torch.arange(frames, frames - lags, -1, device=onsets.device)
    return summed / (weights * energy.clamp(min=FAINT)).sum(1, keepdim=True)


def _comb(repeats: Tensor, beats: Tensor, frames: int) -> Tensor:
    """Return the weighted mean of the autocorrelation [B, lags] at multiples of beats, [B, N], in frames."""
    scores, weights = torch.zeros_like(beats), torch.full_like(beats, 1e-9)
    last = repeats.shape[-1] - 1
    for multiple, weight in COMB.items():
        lags = multiple * beats
        below = lags.long().clamp(max=last - 1)
        values = torch.lerp(repeats.gather(1, below), repeats.gather(1, below + 1), (lags - below).clamp(0, 1))
        known = (lags <= LONGEST_LAG * frames) * weight
        scores, weights = scores + known * values, weights + known
    return scores / weights


def _peak_offset(scores: Tensor, peak: Tensor) -> Tensor:
    """Return by how much the vertex of a parabola through a peak [B, 1] and its neighbours lies beside it, [B, 1]."""
    a, b, c = (scores.gather(1, (peak + shift).clamp(0, scores.shape[1] - 1)) for shift in (-1, 0, 1))
    return (0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-9)).clamp(-0.5, 0.5)


def _agreeing_share(onsets: Tensor, bpm: Tensor) -> Tensor:
    """Return the share of parts with a beat of the given tempo [B] within 3 %, [B], among the parts with onsets."""
    length = max(2, min(round(PART_SECONDS * RATE), onsets.shape[-1] // 2))
    pieces = onsets.unfold(-1, length, length // 2).transpose(1, 2)  # [B, parts, groups, length]
    ratios = torch.linspace(1 - DRIFTS, 1 + DRIFTS, 41, device=onsets.device)
    beats = (60 * RATE / (bpm[:, None] * ratios)).repeat_interleave(pieces.shape[1], 0)
    scores = _comb(_autocorrelation(pieces.flatten(0, 1)), beats, length).view(*pieces.shape[:2], -1)
    best, index = scores.max(-1)
    agrees = (best > NOISE) & ((ratios[index] - 1).abs() <= STEADY)
    energy = pieces.square().sum((2, 3))
    counts = energy >= FLOOR * energy.mean(1, keepdim=True)
    return (agrees & counts).sum(1) / counts.sum(1).clamp(min=1)
