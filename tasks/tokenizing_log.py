"""How tokenizing goes, live: an artifact with a row an archive, a WandB run, and a line for the terminal."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_core import storage
from musicgen_core.data.shards import ShardReport
from musicgen_core.tracking import Wandb
from tasks.progress import Listener, ProgressArtifact, TableArtifact, Update, listener, listening

SHOW_EVERY_SECONDS = 10.0
SAY_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class ArchiveProgress:
    """Reported by a task after each clip; `total` is None where only the end will tell."""

    stem: str
    rows: int
    rejected: int
    total: int | None


@dataclass
class _Line:
    """What is known of one archive."""

    stem: str
    state: str = "waiting"
    rows: int = 0
    rejected: int = 0
    total: int | None = None
    begun: float = 0.0
    ended: float = 0.0
    problem: str = ""

    @property
    def clips(self) -> int:
        return self.rows + self.rejected

    def shown(self, now: float) -> dict[str, Any]:
        working = (self.ended or now) - self.begun if self.begun else 0.0
        speed = self.clips / working if working > 0 else 0.0
        left = (self.total - self.clips) / speed if self.state == "running" and self.total and speed else None
        return {
            "archive": self.stem,
            "state": self.state,
            "clips": self.rows,
            "rejected": self.rejected,
            "clips/s": round(speed, 1) if speed else "",
            "left": duration(left) if left is not None else "",
            "problem": self.problem,
        }


class TokenizingLog:
    """Gathers what tasks report and how they end, and shows it every few seconds. Called from any thread.

    Args:
        run: the WandB run.
        stems: the archives.
        say: hears an `Update` on the whole of it, a few times a second.
    """

    def __init__(self, run: Wandb, stems: Sequence[str], say: Listener) -> None:
        self._run = run
        self._say = say
        self._lines = {stem: _Line(stem) for stem in stems}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._shown = self._said = self._started
        self._progress = ProgressArtifact("Tokenizing", every_seconds=0.0)
        self._table = TableArtifact("tokenized-archives", "Clips and rejections of each archive")
        self._say(self._summary())

    def hear(self, update: Any) -> None:
        """A task's report; anything else is passed on."""
        if not isinstance(update, ArchiveProgress):
            self._say(update)
            return
        with self._lock:
            line = self._lines[update.stem]
            line.begun = line.begun or time.monotonic()
            line.state, line.rows, line.rejected, line.total = "running", update.rows, update.rejected, update.total
        self._tell()

    def end(self, stem: str, report: ShardReport | None, cached: bool = False, problem: str = "") -> None:
        """An archive ended: with its report, or without one and with its problem."""
        with self._lock:
            line = self._lines[stem]
            line.ended = time.monotonic()
            line.state = "failed" if report is None else "kept" if cached else "done"
            line.problem = problem
            if report is None:
                line.rows = line.rejected = 0
            else:
                line.rows, line.rejected = report.clips, len(report.rejected)
                line.total = line.clips
                line.problem = "; ".join(f"{entry.clip}: {entry.reason}" for entry in report.rejected[:3])
        self._tell(at_once=True)

    def _tell(self, at_once: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            say = at_once or now - self._said >= SAY_EVERY_SECONDS
            show = now - self._shown >= SHOW_EVERY_SECONDS
            self._said = now if say else self._said
            self._shown = now if show else self._shown
        if say:
            self._say(self._summary())
        if show:
            self.show()

    def show(self) -> None:
        """Bring the artifacts and WandB up to date."""
        now = time.monotonic()
        summary = self._summary()
        with self._lock:
            rows = [line.shown(now) for line in self._lines.values()]
            figures = self._figures(now)
        left = figures["eta_seconds"]
        text = summary.text + (f", {duration(left)} left" if left is not None else "")
        self._progress.update(summary.done, summary.total or 0, f"Tokenizing: {text}")
        self._table.update(rows)
        known = {f"tokenize/{name}": value for name, value in figures.items() if value is not None}
        self._run.log({"global_step": sum(line.clips for line in self._lines.values()), **known})

    def _summary(self) -> Update:
        with self._lock:
            figures = self._figures(time.monotonic())
        text = f"{figures['clips']:,} clips"
        if figures["clips_rejected"]:
            text += f", {figures['clips_rejected']:,} rejected"
        if figures["archives_failed"]:
            text += f", {figures['archives_failed']} archives failed"
        if figures["clips_per_sec"]:
            text += f", {figures['clips_per_sec']:,.1f} clips/s"
        return Update("tokenize", "", figures["archives_done"] + figures["archives_failed"], len(self._lines), text)

    def _figures(self, now: float) -> dict[str, Any]:
        """Cached archives count as done and not as work: they say nothing of the speed."""
        lines = self._lines.values()
        worked = sum(line.clips for line in lines if line.state != "kept")
        begun = min((line.begun for line in lines if line.begun), default=now)
        speed = worked / (now - begun) if now > begun else 0.0
        totals = [line.total for line in lines if line.total]
        mean = sum(totals) / len(totals) if totals else 0.0
        left = sum((line.total or mean) - line.clips for line in lines if line.state in ("waiting", "running"))
        return {
            "archives_done": sum(line.state in ("done", "kept") for line in lines),
            "archives_failed": sum(line.state == "failed" for line in lines),
            "clips": sum(line.rows for line in lines),
            "clips_rejected": sum(line.rejected for line in lines),
            "clips_per_sec": speed,
            "eta_seconds": max(0.0, left) / speed if speed and totals else None,
        }

    @property
    def failed(self) -> bool:
        return any(line.state == "failed" for line in self._lines.values())


def duration(seconds: float) -> str:
    """3725 → `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def log_tokenizing(tokens: str, stems: Sequence[str]) -> Iterator[TokenizingLog]:
    """Log all that is reported inside. WandB's run lies under `TOKENS/wandb`; to a remote TOKENS it goes at the end."""
    target = storage.as_path(tokens)
    with storage.scratch_folder() as scratch:
        stage = Path(str(target)) if storage.is_local(target) else scratch / "stage"
        stage.mkdir(parents=True, exist_ok=True)
        config = {"tokens": tokens, "archives": len(stems)}
        run = Wandb(stage, secrets.token_hex(4), f"tokenize {target.name}", job_type="tokenize", config=config)
        exit_code = 1
        try:
            log = TokenizingLog(run, stems, listener())
            with listening(log.hear):
                try:
                    yield log
                finally:
                    log.show()
            exit_code = int(log.failed)
        finally:
            run.finish(exit_code)
            if not storage.is_local(target):
                storage.upload_tree(stage, target)
