"""Spectra of batches, in parts that fit caches and GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SAMPLES_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}


def power_spectra(audio: Tensor, window: int, hop: int) -> Tensor:
    """Return the power spectra [B, window / 2 + 1, frames] of [B, samples]; 0 beyond its ends."""
    hann = torch.hann_window(window, device=audio.device)
    spectra = torch.stft(audio, window, hop, window=hann, pad_mode="constant", return_complex=True)
    return spectra.real.square() + spectra.imag.square()


def in_parts(measure: Callable[[Tensor], Tensor], audio: Tensor) -> Tensor:
    """Apply a function of clips to a batch, some clips at a time."""
    at_once = SAMPLES_AT_ONCE["cuda" if audio.is_cuda else "cpu"]
    return torch.cat([measure(part) for part in audio.split(max(1, at_once // max(1, audio.shape[-1])))])
