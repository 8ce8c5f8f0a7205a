"""Paired statistics over the same clips under both models, so that the difficulty of each clip cancels out."""

from __future__ import annotations

import warnings
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
    differences, clips = adapter - base, len(base)
    base_loss, adapter_loss = float(base.mean()), float(adapter.mean())
    return Comparison(
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        base_perplexity=perplexity(base_loss),
        adapter_perplexity=perplexity(adapter_loss),
        difference=float(differences.mean()),
        standard_error=float(differences.std(ddof=1) / np.sqrt(clips)) if clips > 1 else None,
    )


def confidence_interval(base: Losses, adapter: Losses) -> tuple[float, float] | None:
    """Return Student's t interval of the mean difference adapter − base; None with fewer than two clips.

    Clips are assumed to be independent. The interval is slightly too narrow if several are of the same track.
    """
    from scipy.stats import ttest_rel

    if len(base) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of losses that are equal: their interval is exact
        low, high = ttest_rel(adapter, base).confidence_interval(CONFIDENCE)
    return float(low), float(high)


def verdict_of(interval: tuple[float, float] | None) -> Verdict:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if interval[1] < 0 else "worse"
