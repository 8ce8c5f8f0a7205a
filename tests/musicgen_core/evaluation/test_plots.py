"""Plots of an evaluation."""

from __future__ import annotations

from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from musicgen_core.evaluation.plots import plot_codebook_perplexities, plot_differences
from musicgen_core.evaluation.request import Comparison


@pytest.mark.parametrize("picture", ["perplexities", "differences"])
def test_no_legend_covers_the_data(picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(figure: Any, *given: Any, **more: Any) -> None:
        figures.append(figure)
        save(figure, *given, **more)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    if picture == "perplexities":
        plot_codebook_perplexities([Comparison(6.0, 5.9, 400.0, 365.0, -0.1, 0.01)] * 4)
    else:
        base = np.zeros(500)
        plot_differences(base, base + np.random.default_rng(0).uniform(-1, 1, 500))  # bars over the whole width
    (legend,) = figures[-1].legends
    (axes,) = figures[-1].axes
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
