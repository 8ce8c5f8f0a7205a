"""The page of a training run in the Prefect UI: figures, curves, sample clips, and a link to the WandB run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

import soundfile
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.escaping import markdown_code, markdown_link, markdown_text, one_line
from musicgen_core.generation.page import PAGE
from musicgen_core.run_layout import PROMPTS, WANDB, RunLayout, parse_sample_name, sample_name
from musicgen_core.wording import counted
from tasks.artifacts import markdown_table
from tasks.previews import longest_seconds, picture, player
from tasks.progress import duration, local_now
from tasks.served import file_link

logger = logging.getLogger(__name__)

DRAWN = ("step", "epoch", "train/loss", "train/lr", "val/loss", "train/audio_seconds_per_sec")
RECENT = 50
"""Number of steps over which loss and throughput are averaged"""
MOST_SAMPLES = 2
"""Number of prompts whose samples have players on the page"""


@dataclass
class TrainingFigures:
    """Figures of a training run, from the rows so far.

    Attributes:
        rows: the row of every step, reduced to the metrics that are drawn.
        newest: latest value of each metric.
        done, total: numbers of steps.
        validated: step of the last validation.
        best_epoch: epoch of the best loss.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    validated: int | None = None
    best_epoch: int | None = None
    _first: tuple[int, float] | None = None

    def add(self, row: Mapping[str, float]) -> None:
        if row.get("best/loss", self.newest.get("best/loss")) != self.newest.get("best/loss"):
            self.best_epoch = int(row["epoch"])
        if "val/loss" in row:
            self.validated = int(row["step"])
        self.rows.append({name: row[name] for name in DRAWN if name in row})
        self.newest |= row
        self.done = int(row["step"])

    def time_step(self) -> None:
        """Record the time of this process's first step; earlier steps don't count for the speed."""
        self._first = self._first or (self.done, time.monotonic())

    def forget_speed(self) -> None:
        """Remove speed and ETA, as no more steps follow."""
        self._first = None

    @property
    def steps_per_sec(self) -> float | None:
        if self._first is None or self.done == self._first[0]:
            return None
        return (self.done - self._first[0]) / (time.monotonic() - self._first[1])

    @property
    def eta_seconds(self) -> float | None:
        speed = self.steps_per_sec
        return (self.total - self.done) / speed if speed else None

    def recent(self, name: str) -> float | None:
        """Return the mean of a metric over the last `RECENT` steps that have it; None: there are none."""
        values = [row[name] for row in self.rows[-RECENT:] if name in row]
        return sum(values) / len(values) if values else None

    def line(self) -> str:
        """Return `step 120 of 4,000, epoch 1, loss 3.412, …`; an empty string before the first step."""
        parts = [f"step {self.done:,} of {self.total:,}"] if self.total else []
        if "epoch" in self.newest:
            parts.append(f"epoch {int(self.newest['epoch'])}")
        for name, metric in (("loss", self.recent("train/loss")), ("validation", self.newest.get("val/loss"))):
            if metric is not None:
                parts.append(f"{name} {metric:.3f}")
        if self.newest.get("train/skipped_steps"):
            parts.append(f"{int(self.newest['train/skipped_steps']):,} skipped")
        if (throughput := self.recent("train/audio_seconds_per_sec")) is not None:
            parts.append(f"{throughput:,.1f} audio-s/s")
        if self.eta_seconds:
            parts.append(f"{duration(self.eta_seconds)} left")
        return ", ".join(parts)

    def table(self, state: str) -> str:
        newest, speed = self.newest, self.steps_per_sec
        share = 100 * self.done / max(1, self.total)
        rows = [("step", f"{self.done:,} of {self.total:,} ({share:.1f} %)")] if self.total else []
        if "epoch" in newest:
            rows.append(("epoch", str(int(newest["epoch"]))))
        if self.eta_seconds:
            rows.append(("ETA", duration(self.eta_seconds)))
        if speed:
            audio = self.recent("train/audio_seconds_per_sec") or 0.0
            rows.append(("throughput", f"{audio:,.1f} s of audio per second, {speed:,.2f} steps per second"))
        if (loss := self.recent("train/loss")) is not None:
            rows.append(
                ("training loss", f"{loss:.4f}, mean of the last {counted(min(RECENT, len(self.rows)), 'step')}")
            )
        if self.validated is not None:
            rows.append(("validation loss", f"{newest['val/loss']:.4f} after step {self.validated:,}"))
        if "best/loss" in newest:
            best = "best training loss" if self.validated is None else "best validation loss"
            rows.append((best, f"{newest['best/loss']:.4f} in epoch {self.best_epoch}"))
        if "train/lr" in newest:
            rows.append(("learning rate", f"{newest['train/lr']:.3g}"))
        rows.append(("skipped steps", f"{int(newest.get('train/skipped_steps', 0)):,}"))
        if "train/peak_gib" in newest:
            rows.append(("GPU memory", f"{newest['train/peak_gib']:.1f} GiB at most"))
        rows.append(("as of", local_now()))
        return markdown_table(("state", markdown_text(state)), [(name, markdown_text(value)) for name, value in rows])


def training_page(
    table: str,
    rows: Sequence[Mapping[str, float]],
    run_dir: UPath,
    url: str | None,
    note: str = "",
    has_begun: bool = True,
) -> str:
    """Return the page as Markdown: the table of figures, a note below it, and the rows as curves.

    Args:
        url: URL of the WandB run, if it is known.
        has_begun: whether training has begun; else what the run directory has of WandB is that of an earlier run.
    """
    parts = [f"Files in {markdown_code(run_dir)}", wandb_line(run_dir, url) if has_begun else "", table, note]
    if rows:
        parts.append(picture(partial(tracking.plot_losses, rows), "Loss of training and validation"))
        parts.append(picture(partial(tracking.plot_learning_rate, rows), "Learning rate of each step"))
    return "\n\n".join(part for part in parts if part)


def wandb_line(folder: UPath, url: str | None = None) -> str:
    """Return a link to the WandB run of a folder, or the command that uploads an offline run."""
    url = url or tracking.stored_url(folder)
    if url:
        return markdown_link("WandB run", url)
    if (folder / WANDB).exists():
        return f"WandB runs offline. To upload it later: {markdown_code(tracking.sync_command(folder / WANDB))}"
    return ""


def newest_samples(run_dir: UPath) -> tuple[str, ...]:
    """Return the samples of the first prompts in a run directory: the base model's and the newest epoch's."""
    folder = RunLayout(run_dir).samples
    paths = folder.glob("epoch_*.wav") if folder.is_dir() else ()
    found = sorted(filter(None, (parse_sample_name(path.name) for path in paths)))
    newest = [prompt for epoch, prompt in found if epoch == found[-1][0]][:MOST_SAMPLES]
    pairs = [(epoch, prompt) for prompt in newest for epoch in (0, found[-1][0])]
    return tuple(str(folder / sample_name(*pair)) for pair in dict.fromkeys(pairs) if pair in found)


def samples_page(files: Sequence[str]) -> str:
    """Return a page with players for the beginnings of samples, under their prompts; incomplete files are skipped."""
    folder = storage.as_path(files[0]).parent
    parts = [f"Samples of every epoch, in full: {file_link(folder / PAGE)}"]
    prompts, seconds = _prompts(folder), longest_seconds(len(files))
    for file in files:
        epoch, prompt = parse_sample_name(PurePosixPath(file).name) or (0, len(prompts))
        title = f"**{'base model' if epoch == 0 else f'after epoch {epoch}'}**"
        text = f" · {markdown_text(one_line(prompts[prompt]))}" if prompt < len(prompts) else ""
        try:
            parts.append(f"{title}{text} · {file_link(file)}\n\n{player(file, seconds)}")
        except (OSError, soundfile.LibsndfileError) as error:
            logger.debug("%s can't be played: %s", file, error)
    return "\n\n".join(parts)


def _prompts(folder: UPath) -> list[str]:
    try:
        return list(json.loads(storage.read_text(folder / PROMPTS))["prompts"])
    except (OSError, ValueError, KeyError, TypeError):  # it is written after the first samples
        return []
