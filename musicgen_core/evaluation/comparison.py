"""Paired statistics over the same clips under both models, so that the difficulty of each clip cancels out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from musicgen_core.evaluation.request import Comparison
from musicgen_core.training.compute.loss import perplexity

CONFIDENCE = 0.95

Losses = NDArray[np.float64]
Verdict = Literal["better", "worse", "undecided"]


def compare(base: Losses, adapter: Losses) -> Comparison:
    """Compare losses of the same clips, [clips] each: means and paired difference."""
    differences = adapter - base
    base_loss, adapter_loss = float(base.mean()), float(adapter.mean())
    return Comparison(
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        base_perplexity=perplexity(base_loss),
        adapter_perplexity=perplexity(adapter_loss),
        difference=float(differences.mean()),
        standard_error=_standard_error(differences),
    )


def confidence_interval(base: Losses, adapter: Losses) -> tuple[float, float] | None:
    """Return Student's t interval of the mean difference adapter − base; None with fewer than two clips.

    Clips are assumed to be independent. The interval is slightly too narrow if several are of the same track.
    """
    from scipy.stats import t

    differences = adapter - base
    error = _standard_error(differences)
    if error is None:
        return None
    mean, half = float(differences.mean()), error * float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return mean - half, mean + half


def verdict_of(interval: tuple[float, float] | None) -> Verdict:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if interval[1] < 0 else "worse"


def _standard_error(differences: Losses) -> float | None:
    count = len(differences)
    return float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else None
