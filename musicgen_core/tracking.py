"""Metrics: `metrics.jsonl`, WandB, and pictures of both. WandB's troubles never become the training's."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from upath import UPath

from musicgen_core.errors import raise_if_interrupted

logger = logging.getLogger(__name__)
PROJECT = "musicgen-flows"
URL_FILE = "run-url"
"""In WandB's folder of a run that is online: where its page is, for who watches from outside."""


def cut_metrics(path: Path, last_step: int) -> None:
    """Drop lines after `last_step`, and a half-written last line, so that each step stands in the file once."""
    if not path.exists():
        return
    beside = path.with_name(f"{path.name}.partial")
    rows = [row for row in read_metrics(path) if row["step"] <= last_step]
    beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    os.replace(beside, path)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`; a last line that a crash cut short is left out."""
    rows: list[dict[str, float]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class MetricsWriter:
    """Adds rows to `metrics.jsonl`, whose last line must be whole. What can't be written waits for the next row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length: int | None = None  # bytes of whole rows
        self._waiting: list[str] = []

    def append(self, row: Mapping[str, float]) -> None:
        """Raises OSError: it can't be written now."""
        self._waiting.append(json.dumps(row) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the rows that wait. Raises OSError: they can't be written now either."""
        if not self._waiting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            if self._length is None:
                self._length = file.tell()
            elif file.tell() > self._length:
                file.truncate(self._length)  # what a failed attempt wrote would hide every row after it
            file.write("".join(self._waiting).encode())
            file.flush()
            self._length = file.tell()
        self._waiting.clear()


class Wandb:
    """A WandB run under the run directory: online with WANDB_API_KEY in the environment, else offline.

    Args:
        folder: where `wandb/` goes.
        run_id: the same for every part of one training, so that a resumed run goes on.
        job_type: `train` or `tokenize`.
        config: settings to show with the run.
    """

    def __init__(self, folder: Path, run_id: str, name: str, job_type: str, config: Mapping[str, Any]) -> None:
        self._run: Any = None
        online = bool(os.environ.get("WANDB_API_KEY"))
        mode = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
        if mode == "disabled":
            return
        if mode == "offline":
            logger.info("WandB runs offline: no WANDB_API_KEY is set. Later: wandb sync %s", folder / "wandb")
        self._data, self._offline = folder / "wandb", mode == "offline"
        try:
            import wandb

            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run_id,
                name=name,
                job_type=job_type,
                config=dict(config),
                dir=folder,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]
                settings=wandb.Settings(silent=True, console="off", init_timeout=60),
            )
            # Steps restart at 0 when an offline run is resumed: an axis of our own survives that.
            self._run.define_metric("global_step")
            self._run.define_metric("*", step_metric="global_step")
            if self.url:
                (self._data / URL_FILE).write_text(self.url, encoding="utf-8")
        except Exception as error:
            self._lost(error)

    @property
    def url(self) -> str | None:
        """The run's page, where it has one."""
        return self._run.url if self._run is not None and not self._offline else None

    def log(self, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            try:
                self._run.log(dict(values))
            except Exception as error:
                self._lost(error)

    def log_adapter(self, file: Path, alias: str, metadata: Mapping[str, Any]) -> None:
        """Keep LoRA weights as a versioned artifact."""
        if self._run is not None:
            try:
                import wandb

                with _artifacts_under(self._data):
                    artifact = wandb.Artifact(f"lora-{self._run.id}", type="model", metadata=dict(metadata))
                    artifact.add_file(str(file))
                    self._run.log_artifact(artifact, aliases=[alias])
            except Exception as error:
                self._lost(error)

    def finish(self, exit_code: int = 0) -> None:
        if self._run is not None:
            try:
                import wandb

                self._run.finish(exit_code=exit_code)
                if self._offline:  # finish() comes back before an offline run's file is written
                    wandb.teardown(exit_code)
            except Exception as error:
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        raise_if_interrupted(error)
        logger.warning("WandB failed and is left out from here on (%s); metrics.jsonl has everything", error)
        self._run = None


def stored_url(folder: UPath) -> str | None:
    """The page of the WandB run whose files are under `folder`, where it has one."""
    try:
        return (folder / "wandb" / URL_FILE).read_text(encoding="utf-8")
    except OSError:
        return None


@contextmanager
def _artifacts_under(folder: Path) -> Iterator[None]:
    """Artifacts are staged under the home directory unless told otherwise, and an offline run would lose them."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)


def plot_losses(rows: Sequence[Mapping[str, float]], target: Path | IO[bytes]) -> None:
    """Draw `loss.png`: training loss a step, its running mean, and validation loss an epoch."""
    taken = [row for row in rows if "train/loss" in row]  # a step that was skipped has no loss
    steps, losses = [row["step"] for row in taken], [row["train/loss"] for row in taken]
    with _picture(target, "MusicGen LoRA training", "cross-entropy (nats per code)") as axes:
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training, each step")
        axes.plot(steps, _running_mean(losses), color="tab:blue", label="training, running mean")
        validated = [row for row in rows if "val/loss" in row]
        if validated:
            x, y = [row["step"] for row in validated], [row["val/loss"] for row in validated]
            axes.plot(x, y, color="tab:orange", marker="o", label="validation")
        axes.legend()


def plot_learning_rate(rows: Sequence[Mapping[str, float]], target: Path | IO[bytes]) -> None:
    """Draw the learning rate of each step."""
    with _picture(target, "Learning rate", "learning rate") as axes:
        axes.plot([row["step"] for row in rows], [row["train/lr"] for row in rows])
        axes.set_ylim(bottom=0)


@contextmanager
def _picture(target: Path | IO[bytes], title: str, unit: str) -> Iterator[Any]:
    """Axes over the steps, drawn to a PNG at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=unit, title=title)
    axes.grid(alpha=0.3)
    yield axes
    figure.savefig(target, dpi=120, format="png")


def _running_mean(values: Sequence[float], decay: float = 0.95) -> list[float]:
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        means.append(total / weight)
    return means
