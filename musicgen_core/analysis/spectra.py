"""Spectrograms and features per frame."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from musicgen_core.codes import SAMPLE_RATE

HOP = 320  # samples: 10 ms
RATE = SAMPLE_RATE // HOP  # frames/s of all features here
WINDOW = 1024
BANDS = 64
FLOOR_DB = -70.0
CLIPS_AT_ONCE = 64


def magnitudes(audio: Tensor, window: int, hop: int) -> Tensor:
    """Return the magnitude spectrogram [B, window / 2 + 1, frames]; a sine of full scale has 1."""
    hann = torch.hann_window(window, device=audio.device)
    return torch.stft(audio, window, hop, window=hann, return_complex=True).abs() * (2 / hann.sum())


def log_mel(audio: Tensor) -> Tensor:
    """Return the mel spectrogram in dB, [B, 64, frames] at 100 Hz, from -70 dB up."""
    bands = _mel_bands().to(audio.device)
    power = in_parts(lambda part: bands @ magnitudes(part, WINDOW, HOP).square(), audio)
    return 10 * torch.log10(power + 10 ** (FLOOR_DB / 10))


def onsets(mel_db: Tensor) -> Tensor:
    """Return the onset strength of each band, its rise in dB within 10 ms, [B, bands, frames]."""
    rises = mel_db.diff(dim=-1).clamp(min=0)
    return torch.nn.functional.pad(rises, (1, 0))


def spectral_centroid(audio: Tensor) -> Tensor:
    """Return the centre of gravity of the mean spectrum in Hz, [B]."""
    spectrum = in_parts(lambda part: magnitudes(part, 2048, 1024).mean(-1), audio)
    hertz = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1], device=audio.device)
    return (spectrum * hertz).sum(1) / (spectrum.sum(1) + 1e-9)


def in_parts(measure: Callable[[Tensor], Tensor], audio: Tensor) -> Tensor:
    """Apply a function to a few clips at a time, so that large batches fit the memory."""
    return torch.cat([measure(part) for part in audio.split(CLIPS_AT_ONCE)])


@cache
def _mel_bands() -> Tensor:
    bins = WINDOW // 2 + 1
    banks: Tensor = melscale_fbanks(bins, 30.0, 16_000.0, BANDS, SAMPLE_RATE)
    return banks.T
