"""Plots of an evaluation."""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.text import Text

from musicgen_core import language
from musicgen_core.evaluation.report import plot_codebook_perplexities, plot_differences, plot_training
from musicgen_core.evaluation.request import Comparison

LOSS_AXIS = "loss with adapter − base (nats per code)"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list that receives the figures that are drawn."""
    figures: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(figure: Any, *given: Any, **more: Any) -> None:
        figures.append(figure)
        save(figure, *given, **more)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return figures


def texts_of(figure: Any) -> set[str]:
    """Return the words in a figure, without the numbers of its ticks."""
    found = {text.get_text() for text in figure.findobj(Text)}
    return {text for text in found if any(letter.isalpha() for letter in text)}


def draw_all() -> None:
    plot_codebook_perplexities([Comparison(6.0, 5.9, 400.0, 365.0, -0.1, 0.01)] * 4)
    plot_differences(np.zeros(9), np.linspace(-1, 1, 9))
    plot_training([{"step": 1.0, "train/loss": 2.0, "val/loss": 1.0}])


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("has_font", [True, False])
def test_plots_are_in_japanese_only_if_there_is_a_font_for_it(
    figures: list[Any], has_font: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    # Any font stands for one of Japanese, which this machine may lack.
    monkeypatch.setattr(language, "_FONTS", {"ja": ("none", "STIXGeneral" if has_font else "none")})
    draw_all()
    for figure in figures:
        texts = texts_of(figure)
        assert len(texts) >= 4 and all(text.isascii() == (not has_font) for text in texts - {LOSS_AXIS}), texts
        assert (LOSS_AXIS in texts) == (not has_font and figure is figures[1])
        if has_font:
            words = [text for text in figure.findobj(Text) if text.get_text() in texts]
            assert all("STIXGeneral" in text.get_fontfamily() for text in words)


def test_an_english_reader_gets_matplotlibs_own_font(figures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_FONTS", {"ja": ("STIXGeneral",)})
    draw_all()
    assert {"Perplexity of each codebook", "base model", "with adapter"} <= texts_of(figures[0])
    assert all(text.get_fontfamily() == ["sans-serif"] for text in figures[0].findobj(Text))


def test_a_japanese_font_of_this_machine_has_all_letters(figures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that is missing
        draw_all()


@pytest.mark.parametrize("picture", ["perplexities", "differences"])
def test_no_legend_covers_the_data(picture: str, figures: list[Any]) -> None:
    if picture == "perplexities":
        plot_codebook_perplexities([Comparison(6.0, 5.9, 400.0, 365.0, -0.1, 0.01)] * 4)
    else:
        base = np.zeros(500)
        plot_differences(base, base + np.random.default_rng(0).uniform(-1, 1, 500))  # bars over the whole width
    (legend,) = figures[-1].legends
    (axes,) = figures[-1].axes
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
