"""`metrics.jsonl`, with one object per step, and plots of it for users without WandB.

A crash or a full disk loses at most the last row.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from musicgen_core import storage
from musicgen_core.language import as_message, message, set_fonts
from musicgen_core.run_layout import LEARNING_RATE_PLOT, LOSS_PLOT, PERPLEXITY_PLOT
from musicgen_core.strict_json import strict_json

logger = logging.getLogger(__name__)
Rows = Sequence[Mapping[str, float]]


def cut_metrics(path: Path, last_step: int) -> None:
    """Drop lines after `last_step` and an incomplete last line, so that each step is in the file once.

    A file with invalid lines is kept unchanged under another name, and so is anything that isn't a regular file.
    """
    if not path.exists() and not path.is_symlink():
        return
    beside = Path(str(storage.free_name_beside(storage.as_path(path))))
    if not path.is_file():
        path.rename(beside)
        logger.warning("%s is not a file; it is now %s, and the metrics start from scratch", path, beside)
        return
    rows, damaged = _parse(path.read_bytes())
    kept_rows = [row for row in rows if row["step"] <= last_step]
    kept = path.resolve() if path.is_symlink() else beside
    with storage.publish(storage.as_path(path)) as new:
        new.write_text("".join(f"{strict_json(row)}\n" for row in kept_rows), encoding="utf-8")
        if damaged and not path.is_symlink():  # the target of a link is left alone
            with storage.publish(storage.as_path(beside)) as copy:  # last, as each failed attempt would leave a copy
                shutil.copyfile(path, copy)
    if damaged:
        logger.warning("damaged lines of %s left out: %d; the file as it was is %s", path, damaged, kept)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of `metrics.jsonl` without invalid lines, such as a last one truncated by a crash.

    Values that were NaN or infinite, which are null in the file, are NaN.
    """
    if not path.is_file():  # opening a pipe would block
        return []
    return _parse(path.read_bytes())[0]


def _parse(content: bytes) -> tuple[list[dict[str, float]], int]:
    """Return the rows and the number of invalid lines, not counting an incomplete last one."""
    *lines, last = content.split(b"\n")
    found = [_row(line) for line in lines if line.strip()]
    ending = _row(last)
    return [row for row in [*found, ending] if row is not None], found.count(None)


def _row(line: bytes) -> dict[str, float] | None:
    try:
        values = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    row = {name: math.nan if value is None else value for name, value in values.items()}
    return row if all(_is_number(value) for value in row.values()) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)


class MetricsWriter:
    """Appends rows to `metrics.jsonl`, whose last line must be complete. Failed rows are retried with the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length: int | None = None  # bytes of complete rows
        self._waiting: list[str] = []

    def append(self, row: Mapping[str, float]) -> None:
        """Append a row. Raises OSError if it can't be written now."""
        self._waiting.append(strict_json(row) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the pending rows. Raises OSError if they still can't be written."""
        if not self._waiting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", opener=storage.open_file_alone) as file:
            if self._length is None:
                self._length = file.tell()
            elif file.tell() > self._length:
                file.truncate(self._length)  # a partial row of a failed attempt would corrupt the next one
            file.write("".join(self._waiting).encode())
            file.flush()
            self._length = file.tell()
        self._waiting.clear()


def plot_losses(rows: Rows, target: Path | IO[bytes], text: Callable[[str], str] = str) -> None:
    """Draw `loss.png`: training loss per step, its running mean, and validation loss per epoch.

    Args:
        text: returns a message as it is to be drawn; by default in English.
    """
    taken = [row for row in rows if "train/loss" in row]  # skipped steps have no loss
    steps, losses = [row["step"] for row in taken], [row["train/loss"] for row in taken]
    title, unit = text(message("MusicGen LoRA training")), text(message("cross-entropy (nats per code)"))
    with picture(target, title, unit, text(message("step"))) as axes:
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
    with picture(target, "Learning rate", "learning rate") as axes:
        axes.plot([row["step"] for row in drawn], [row["train/lr"] for row in drawn])
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 2))  # plain numbers are wider than the margin


def plot_perplexities(rows: Rows, target: Path | IO[bytes]) -> None:
    """Draw `perplexity.png`: perplexity of each codebook at each validation."""
    validated = [row for row in rows if "val/perplexity" in row]
    steps = [row["step"] for row in validated]
    with picture(target, "Validation perplexity of each codebook", "perplexity (codes)", layout="constrained") as axes:
        for k in range(sum(name.startswith("val/perplexity_codebook_") for name in validated[0])):
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
def picture(
    target: Path | IO[bytes], title: str, y: str, x: str = "step", *, layout: Literal["constrained"] | None = None
) -> Iterator[Any]:
    """Provide axes to plot on, which are written as a PNG at the end.

    Args:
        layout: `constrained` makes room for a legend outside of the axes, and takes twice as long.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout=layout)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    yield axes
    set_fonts(figure)
    figure.savefig(target, dpi=120, format="png")


def _running_mean(values: Sequence[float], decay: float = 0.95) -> list[float]:
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        means.append(total / weight)
    return means
