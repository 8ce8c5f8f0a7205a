"""Spectral features of audio, and the comparison of clips by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from musicgen_core.codes import SAMPLE_RATE

HOP = 320  # samples: 10 ms
RATE = SAMPLE_RATE // HOP  # frames/s of log_mel and onsets
WINDOW = 1024
BANDS = 64
FLOOR_DB = -70.0
CLIPS_AT_ONCE = 64
PENALTY = 3.0  # of the classifier's ridge regression
LARGEST = 5.0  # standard deviations


def magnitudes(audio: Tensor, window: int, hop: int) -> Tensor:
    """Return the magnitude spectrogram [B, window / 2 + 1, frames]; a sine of full scale has 1."""
    hann = torch.hann_window(window, device=audio.device)
    return torch.stft(audio, window, hop, window=hann, return_complex=True).abs() * (2 / hann.sum())


def log_mel(audio: Tensor) -> Tensor:
    """Return the mel spectrogram in dB, [B, 64, frames] at 100 Hz, from -70 dB up."""
    bands = _mel_bands().to(audio.device)
    power = in_parts(lambda part: bands @ magnitudes(part, WINDOW, HOP).square(), audio)
    return 10 * torch.log10(power + 10 ** (FLOOR_DB / 10))


@cache
def _mel_bands() -> Tensor:
    banks: Tensor = melscale_fbanks(WINDOW // 2 + 1, 30.0, 16_000.0, BANDS, SAMPLE_RATE)
    return banks.T


def onsets(mel_db: Tensor) -> Tensor:
    """Return the onset strength of each band, its rise in dB within 10 ms, [B, bands, frames]."""
    return torch.nn.functional.pad(mel_db.diff(dim=-1).clamp(min=0), (1, 0))


def in_parts(measure: Callable[[Tensor], Tensor], audio: Tensor) -> Tensor:
    """Apply a function to a few clips at a time, so that large batches fit the memory."""
    return torch.cat([measure(part) for part in audio.split(CLIPS_AT_ONCE)])


def features(audio: Tensor) -> Tensor:
    """Return the level, variation and onset strength of each mel band, [B, 256]."""
    mel = log_mel(audio)
    rises = onsets(mel)
    return torch.cat([mel.mean(-1), mel.std(-1), rises.mean(-1), rises.std(-1)], dim=1)


class Classifier:
    """A linear classifier of clips: ridge regression of one-hot classes on standardized features.

    It distinguishes only the classes that it was fitted to. Fit it also to clips that went through the codec, so that
    it doesn't mistake codec artifacts for a difference between classes.
    """

    def __init__(self, reference: Tensor, labels: Sequence[str]) -> None:
        """Fit to the features [N, D] of clips with these labels [N]."""
        self.classes = sorted(set(labels))
        self._mean, self._deviation = reference.mean(0), reference.std(0) + 1e-3
        inputs = self._standardized(reference)
        one_hot = torch.tensor([[float(label == of) for of in self.classes] for label in labels]).to(inputs)
        penalty = PENALTY * torch.eye(inputs.shape[1]).to(inputs)
        self._weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ one_hot)

    def classify(self, given: Tensor) -> list[str]:
        """Return the class of each clip from its features, [N, D]."""
        scores = self._standardized(given) @ self._weights
        return [self.classes[index] for index in scores.argmax(1).tolist()]

    def _standardized(self, given: Tensor) -> Tensor:
        scaled = ((given - self._mean) / self._deviation).double().clamp(-LARGEST, LARGEST)
        return torch.nn.functional.pad(scaled, (0, 1), value=1.0)  # a constant


def frechet_distance_diagonal(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of Gaussians without correlations that are fitted to features [N, D] and [M, D].

    It is |μ₁ - μ₂|² + |σ₁ - σ₂|² divided by D, after scaling each feature to unit deviation over `first`. Unlike the
    distance with full covariances (`evaluation.clap`) it is meaningful for fewer clips than features.
    """
    unit = first.std(0) + 1e-3
    first, second = first / unit, second / unit
    means = (first.mean(0) - second.mean(0)).square().mean()
    return float(means + (first.std(0) - second.std(0)).square().mean())


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio in dB, [B] (Le Roux et al. 2019, equation 3)."""
    reference, estimate = (signal - signal.mean(-1, keepdim=True) for signal in (reference, estimate))
    scale = (reference * estimate).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True).clamp(min=1e-9)
    target = scale * reference
    distortion = (estimate - target).square().sum(-1)
    return 10 * (target.square().sum(-1).clamp(min=1e-9) / distortion.clamp(min=1e-9)).log10()
