"""Distances between sets of embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.evaluation.clap import frechet_distance

RNG = np.random.default_rng(0)


@given(st.integers(2, 40), st.integers(1, 12))
@settings(max_examples=30)
def test_the_distance_of_a_shifted_set_is_the_squared_shift(n: int, d: int) -> None:
    points, way = RNG.normal(size=(n, d)), RNG.normal(size=d)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, points + way) == pytest.approx(way @ way, rel=1e-9)


def test_the_distance_of_scaled_points_is_that_of_the_gaussians() -> None:
    points = RNG.normal(size=(500, 6))
    points -= points.mean(axis=0)
    # Σ₂ = 9 Σ₁ commutes with Σ₁: tr Σ₁ (1 + 9 − 2 · 3).
    assert frechet_distance(points, 3 * points) == pytest.approx(4 * np.trace(np.cov(points.T)), rel=1e-9)


def test_the_distance_is_that_of_the_formula_with_a_matrix_root() -> None:
    first = RNG.normal(size=(300, 8)) @ RNG.normal(size=(8, 8))
    second = RNG.normal(size=(120, 8)) @ RNG.normal(size=(8, 8)) + 1
    cov = [np.cov(points.T) for points in (first, second)]
    root = scipy.linalg.sqrtm(cov[0] @ cov[1])
    expected = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum() + np.trace(cov[0] + cov[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(float(expected.real), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(float(expected.real), rel=1e-9)


def test_fewer_points_than_dimensions_are_measured_too() -> None:
    first, second = RNG.normal(size=(5, 64)), RNG.normal(size=(7, 64))
    assert 0 < frechet_distance(first, second) < ((first.mean(0) - second.mean(0)) ** 2).sum() + 64 * 3
