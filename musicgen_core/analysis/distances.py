"""Distances between signals, and between sets of clips."""

from __future__ import annotations

from torch import Tensor


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio in dB, [B] (Le Roux et al. 2019, equation 3)."""
    reference, estimate = (signal - signal.mean(-1, keepdim=True) for signal in (reference, estimate))
    scale = (reference * estimate).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True).clamp(min=1e-9)
    target = scale * reference
    distortion = (estimate - target).square().sum(-1)
    return 10 * (target.square().sum(-1).clamp(min=1e-9) / distortion.clamp(min=1e-9)).log10()


def frechet_distance_diagonal(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of Gaussians without correlations that are fitted to features [N, D] and [M, D].

    It is |μ₁ - μ₂|² + |σ₁ - σ₂|² divided by D, after scaling each feature to unit deviation over `first`. Unlike the
    distance with full covariances (`evaluation.clap`) it is meaningful for fewer clips than features.
    """
    unit = first.std(0) + 1e-3
    first, second = first / unit, second / unit
    means = (first.mean(0) - second.mean(0)).square().mean()
    return float(means + (first.std(0) - second.std(0)).square().mean())
