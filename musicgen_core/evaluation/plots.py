"""Plots of an evaluation, as PNGs, in the user's language if there is a font for it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from musicgen_core import tracking
from musicgen_core.evaluation.comparison import Losses
from musicgen_core.evaluation.request import Comparison
from musicgen_core.language import message
from musicgen_core.lettering import plot_text, set_fonts

_WIDE = 100
"""Ratio of perplexities from which small bars would be invisible on a linear axis."""


def plot_codebook_perplexities(codebooks: Sequence[Comparison]) -> bytes:
    """Plot the perplexity of each codebook as bars of both models, side by side."""
    title, x, y = message("Perplexity of each codebook"), message("codebook"), message("perplexity")
    with _picture(title, x, y) as (axes, target):
        places = np.arange(len(codebooks))
        for shift, name, values in (
            (-0.2, plot_text(message("base model")), [one.base_perplexity for one in codebooks]),
            (0.2, plot_text(message("with adapter")), [one.adapter_perplexity for one in codebooks]),
        ):
            bars = axes.bar(places + shift, values, width=0.38, label=name)
            axes.bar_label(bars, fmt="%.4g", padding=2)
        perplexities = [value for one in codebooks for value in (one.base_perplexity, one.adapter_perplexity)]
        if max(perplexities) > _WIDE * min(perplexities):
            axes.set_yscale("log")
        axes.set_xticks(places)
        axes.margins(y=0.12)
        axes.figure.legend(loc="outside upper right", ncols=2)
    return target.getvalue()


def plot_differences(base: Losses, adapter: Losses) -> bytes:
    """Plot a histogram of the loss differences, [clips] each."""
    differences = adapter - base
    title, x = message("What the adapter changes, clip by clip"), message("loss with adapter − base (nats per code)")
    with _picture(title, x, message("clips")) as (axes, target):
        axes.hist(differences, bins=min(40, max(5, len(differences) // 5)))
        axes.axvline(0, color="tab:gray", linewidth=1)
        mean = plot_text(message("mean {value:+.4f}", value=differences.mean()))
        axes.axvline(differences.mean(), color="tab:orange", label=mean)
        axes.figure.legend(loc="outside upper right")
    return target.getvalue()


def plot_training(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Plot the losses in metrics.jsonl."""
    target = io.BytesIO()
    tracking.plot_losses(rows, target, plot_text)
    return target.getvalue()


@contextmanager
def _picture(title: str, x: str, y: str) -> Iterator[tuple[Any, io.BytesIO]]:
    from matplotlib.figure import Figure

    figure, target = Figure(figsize=(8, 4.5), layout="constrained"), io.BytesIO()
    axes = figure.subplots()
    axes.set(title=plot_text(title), xlabel=plot_text(x), ylabel=plot_text(y))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    yield axes, target
    set_fonts(figure)
    figure.savefig(target, dpi=120, format="png")
