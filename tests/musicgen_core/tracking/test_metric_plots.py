from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import matplotlib.figure
import pytest

from musicgen_core.tracking import pictures_of, plot_learning_rate, plot_losses, plot_perplexities

Lines = dict[str, tuple[list[float], list[float]]]
ROWS: list[dict[str, float]] = [
    {"step": 1, "train/loss": 2.0, "train/lr": 1e-4},
    {"step": 2, "train/lr": 2e-4},  # skipped
    {"step": 3, "train/loss": 1.2, "train/lr": 1e-4, "val/loss": 1.4, "val/perplexity": 4.0}
    | {f"val/perplexity_codebook_{k}": 100.0 * (k + 1) for k in range(4)},
    {"step": 6, "train/loss": 1.1, "train/lr": 5e-5, "val/loss": 1.3, "val/perplexity": 3.7}
    | {f"val/perplexity_codebook_{k}": 90.0 * (k + 1) for k in range(4)},
]


@pytest.fixture
def figures() -> list[Any]:
    """Return the figures that were drawn."""
    return []


@pytest.fixture
def drawn(
    monkeypatch: pytest.MonkeyPatch, figures: list[Any]
) -> Callable[[Callable[..., None]], dict[str, tuple[list[float], list[float]]]]:
    """Return the lines of the plot of a function, by label."""
    save = matplotlib.figure.Figure.savefig

    def savefig(figure: Any, target: Path | IO[bytes], **given: Any) -> None:
        figures.append(figure)
        save(figure, target, **given)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)

    def draw(plot: Callable[..., None]) -> Lines:
        picture = BytesIO()
        plot(ROWS, picture)
        assert picture.getvalue().startswith(b"\x89PNG")
        (axes,) = figures[-1].axes
        return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}

    return draw


def test_losses_are_drawn_with_validation_but_no_skipped_steps(drawn: Callable[..., Any]) -> None:
    lines = drawn(plot_losses)
    assert lines["training, each step"] == ([1, 3, 6], [2.0, 1.2, 1.1])
    assert lines["validation"] == ([3, 6], [1.4, 1.3])
    assert lines["training, running mean"][1][0] == 2.0


def test_the_perplexity_of_each_codebook_is_drawn(drawn: Callable[..., Any]) -> None:
    assert drawn(plot_perplexities) == {str(k): ([3, 6], [100.0 * (k + 1), 90.0 * (k + 1)]) for k in range(4)}


def test_the_legend_of_the_codebooks_covers_no_curve(drawn: Callable[..., Any], figures: list[Any]) -> None:
    drawn(plot_perplexities)
    (legend,) = figures[-1].legends
    (axes,) = figures[-1].axes
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_the_learning_rate_of_each_step_is_drawn(drawn: Callable[..., Any]) -> None:
    ((steps, rates),) = drawn(plot_learning_rate).values()
    assert (steps, rates) == ([1, 2, 3, 6], [1e-4, 2e-4, 1e-4, 5e-5])


def test_without_validation_there_is_no_picture_of_it(tmp_path: Path) -> None:
    assert set(pictures_of(ROWS)) == {"loss.png", "perplexity.png", "learning_rate.png"}
    assert set(pictures_of(ROWS[:2])) == {"loss.png", "learning_rate.png"}
    for name, plot in pictures_of(ROWS[:2]).items():
        plot(ROWS[:2], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
