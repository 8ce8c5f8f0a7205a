"""CLAP scores, and the Fréchet distance of sets of embeddings."""

from __future__ import annotations

import numpy as np

from musicgen_core.model.clap import Embeddings


def clap_score(texts: Embeddings, sounds: Embeddings) -> float:
    """Return the mean cosine similarity of each text and its sound, from −1 to 1.

    It measures how well music follows texts as far as CLAP understands them, not how good it sounds. The score of real
    clips with their own descriptions is about the best to be expected.
    """
    lengths = np.linalg.norm(texts, axis=1) * np.linalg.norm(sounds, axis=1)
    return float(((texts * sounds).sum(axis=1) / lengths).mean())


def frechet_distance(first: Embeddings, second: Embeddings) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets of embeddings (Dowson, Landau 1982).

    It is |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½). Over audio embeddings it is the Fréchet audio distance (Kilgour et
    al. 2019). It is biased upwards for few points, the more so the more dimensions there are (Gui et al. 2024):
    compare only distances over equally many points.

    The last trace is the sum of the singular values of A Bᵀ where Σ₁ = AᵀA and Σ₂ = BᵀB. This avoids the root of a
    product that is singular if there are fewer points than dimensions.

    Args:
        first: embeddings [N, D], at least two.
        second: embeddings [M, D], at least two.
    """
    centred = [points - points.mean(axis=0) for points in (first, second)]
    roots = [points / np.sqrt(len(points) - 1) for points in centred]
    between = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    within = sum((root**2).sum() for root in roots)
    shared = np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return max(0.0, float(between + within - 2 * shared))
