"""Histograms as bars of an SVG that the page's template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 640, 200
"""Size of the area of bars, in the SVG's units"""
MOST_BINS = 48
MOST_TICKS = 7
_NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Bar:
    """A bar: its place in the SVG, and what it counts."""

    x: float
    width: float
    height: float
    label: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """A histogram. `ticks` are texts of the axis by place; `most` is the count of the highest bar."""

    bars: list[Bar]
    ticks: list[tuple[float, str]]
    most: int
    count: int
    lowest: float
    highest: float
    middle: float


def histogram(values: Sequence[float], step: float) -> Histogram | None:
    """Return the histogram of values, or None without any.

    Args:
        step: the width of a bin if there are few; it is doubled until at most `MOST_BINS` hold all values.
    """
    if not len(values):
        return None
    data = np.asarray(values, dtype=np.float64)
    lowest, highest = float(data.min()), float(data.max())
    while math.floor(highest / step) - math.floor(lowest / step) + 1 > MOST_BINS:
        step *= 2
    first = math.floor(lowest / step)
    bins = max(math.floor(highest / step) - first + 1, 4)
    counts = np.bincount(np.clip(np.floor(data / step).astype(int) - first, 0, bins - 1), minlength=bins)
    most, width = int(counts.max()), WIDTH / bins
    bars = [
        Bar(
            x=round(number * width, 2),
            width=round(width * 0.92, 2),
            height=round(max(1.0, HEIGHT * count / most), 2),
            label=f"{(first + number) * step:g}–{(first + number + 1) * step:g}",
            count=int(count),
        )
        for number, count in enumerate(counts)
        if count
    ]
    every = _nice(bins * step / MOST_TICKS)
    start = math.ceil(first * step / every - 1e-9)
    ticks = [
        (round((number * every - first * step) / step * width, 2), f"{number * every:g}")
        for number in range(start, math.floor((first + bins) * step / every + 1e-9) + 1)
    ]
    return Histogram(bars, ticks, most, len(data), lowest, highest, float(np.median(data)))


def _nice(least: float) -> float:
    """Return the smallest nice number, such as 2 or 50, that is at least `least`."""
    magnitude = 10.0 ** math.floor(math.log10(least))
    return next((nice * magnitude for nice in _NICE if nice * magnitude >= least * (1 - 1e-9)), 10 * magnitude)
