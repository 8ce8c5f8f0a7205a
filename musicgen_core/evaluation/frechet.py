"""Fréchet distance between two sets of embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float64]
"""[N, D]"""


def frechet_distance(first: Embeddings, second: Embeddings) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), the distance of the Gaussians that fit two sets (Dowson, Landau 1982).

    Over audio embeddings it is the Fréchet audio distance (Kilgour et al. 2019). Few points make it too large, the
    more so the more dimensions there are (Gui et al. 2024): compare only distances over equally many.

    The last trace is the sum of the singular values of A Bᵀ where Σ₁ = AᵀA and Σ₂ = BᵀB. So no root of a product is
    taken, which is singular wherever there are fewer points than dimensions.

    Args:
        first, second: [N, D] and [M, D], at least two points each.
    """
    centred = [points - points.mean(axis=0) for points in (first, second)]
    roots = [points / np.sqrt(len(points) - 1) for points in centred]
    between = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    within = sum((root**2).sum() for root in roots)
    shared = np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return max(0.0, float(between + within - 2 * shared))
