"""Plots of `metrics.jsonl`, for users without WandB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from musicgen_core.codes import CODEBOOKS
from musicgen_core.language import as_message, message
from musicgen_core.lettering import set_fonts
from musicgen_core.run_layout import LEARNING_RATE_PLOT, LOSS_PLOT, PERPLEXITY_PLOT

Rows = Sequence[Mapping[str, float]]


def plot_losses(rows: Rows, target: Path | IO[bytes], text: Callable[[str], str] = str) -> None:
    """Draw `loss.png`: training loss per step, its running mean, and validation loss per epoch.

    Args:
        text: returns a message as it is to be drawn; by default in English.
    """
    taken = [row for row in rows if "train/loss" in row]  # skipped steps have no loss
    steps, losses = [row["step"] for row in taken], [row["train/loss"] for row in taken]
    title, unit = text(message("MusicGen LoRA training")), text(message("cross-entropy (nats per code)"))
    with _picture(target, title, unit, step=text(message("step"))) as axes:
        each, mean = text(message("training, each step")), text(message("training, running mean"))
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label=each)
        axes.plot(steps, _running_mean(losses), color="tab:blue", label=mean)
        validated = [row for row in rows if "val/loss" in row]
        if validated:
            x, y = [row["step"] for row in validated], [row["val/loss"] for row in validated]
            validation = text(as_message("validation", message("validation loss"), {}))
            axes.plot(x, y, color="tab:orange", marker="o", label=validation)
        axes.legend()


def plot_learning_rate(rows: Rows, target: Path | IO[bytes]) -> None:
    """Draw `learning_rate.png`: the learning rate per step."""
    drawn = [row for row in rows if "train/lr" in row]
    with _picture(target, "Learning rate", "learning rate") as axes:
        axes.plot([row["step"] for row in drawn], [row["train/lr"] for row in drawn])
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 2))  # plain numbers are wider than the margin


def plot_perplexities(rows: Rows, target: Path | IO[bytes]) -> None:
    """Draw `perplexity.png`: perplexity of each codebook at each validation. Uniform guessing has 2,048."""
    validated = [row for row in rows if "val/perplexity" in row]
    steps = [row["step"] for row in validated]
    with _picture(target, "Validation perplexity of each codebook", "perplexity (codes)", "constrained") as axes:
        for k in range(CODEBOOKS):
            axes.plot(steps, [row[f"val/perplexity_codebook_{k}"] for row in validated], marker="o", label=f"{k}")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.figure.legend(title="codebook", loc="outside right upper")  # four curves leave no room inside


def pictures_of(rows: Rows) -> dict[str, Callable[[Rows, Path], None]]:
    """Return the plots available for these rows, by the name of their file beside `metrics.jsonl`."""
    pictures: dict[str, Callable[[Rows, Path], None]] = {
        LOSS_PLOT: plot_losses,
        LEARNING_RATE_PLOT: plot_learning_rate,
    }
    if any("val/perplexity" in row for row in rows):
        pictures[PERPLEXITY_PLOT] = plot_perplexities
    return pictures


@contextmanager
def _picture(
    target: Path | IO[bytes], title: str, unit: str, layout: Literal["constrained"] | None = None, step: str = "step"
) -> Iterator[Any]:
    """Provide axes over the steps, and write them as a PNG at the end.

    Args:
        layout: `constrained` makes room for a legend outside of the axes, and takes twice as long.
        step: label of the steps.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout=layout)
    axes = figure.subplots()
    axes.set(xlabel=step, ylabel=unit, title=title)
    axes.grid(alpha=0.3)
    yield axes
    set_fonts(figure)
    figure.savefig(target, dpi=120, format="png")


def _running_mean(values: Sequence[float], decay: float = 0.95) -> list[float]:
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        means.append(total / weight)
    return means
