"""Fréchet distance between sets of sounds in the feature space of musicnn, whose weights are installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.captioning.tagger_features import WINDOW_SECONDS, window_features
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.evaluation.clap import frechet_distance
from musicgen_core.evaluation.originality import FeatureDistances
from musicgen_core.generation.loudness import Audio, mono_of

FEWEST_WINDOWS = 16
"""With 16 windows, distances of clips of one style are 13 ± 2, and of different styles 179 ± 20 (bench/RESULTS.md)"""


def count_windows(seconds: Iterable[float]) -> int:
    """Return how many windows there are in sounds of these lengths. They don't overlap; a remainder is not used."""
    return sum(int(length // WINDOW_SECONDS) for length in seconds)


def feature_distances(
    held_out: Sequence[Audio],
    base: Sequence[Audio],
    adapter: Sequence[Audio],
    others: Sequence[Audio],
    device: torch.device,
) -> FeatureDistances | None:
    """Return the distances of sets of sounds to the held-out clips; None if one has fewer than `FEWEST_WINDOWS`.

    The covariance of few windows in 400 dimensions is singular, but its distance is defined, and computed without a
    matrix root (`frechet_distance`).

    Args:
        others: as many other held-out clips; without enough windows, the distance of held-out clips is None.
    """
    if min(map(_windows_in, (held_out, base, adapter))) < FEWEST_WINDOWS:
        return None
    tagger = Musicnn(device)
    real = _features(tagger, held_out)

    def distance(sounds: Sequence[Audio]) -> float:
        return frechet_distance(real, _features(tagger, sounds))

    return FeatureDistances(
        windows=len(real),
        base=distance(base),
        adapter=distance(adapter),
        held_out=distance(others) if _windows_in(others) >= FEWEST_WINDOWS else None,
    )


def _windows_in(sounds: Sequence[Audio]) -> int:
    return count_windows(len(sound) / SAMPLE_RATE for sound in sounds)


def _features(tagger: Musicnn, sounds: Sequence[Audio]) -> NDArray[np.float64]:
    """Return the features of each window, [windows, 400]."""
    return window_features(tagger, list(map(mono_of, sounds)))
