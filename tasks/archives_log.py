"""Live progress of work on archives: an artifact with one row per archive, a line for the terminal, and WandB."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.shards import Rejected
from musicgen_core.errors import raise_if_interrupted
from musicgen_core.escaping import markdown_link
from musicgen_core.language import message
from musicgen_core.tracking import Wandb, kept_run_id
from musicgen_core.wording import counted, joined
from tasks.artifacts import Artifacts, artifacts_of_run
from tasks.progress import (
    LOG_EVERY_SECONDS,
    Listener,
    Pace,
    Update,
    duration,
    listener,
    listening,
    local_now,
    run_logger,
)

STATES = ("failed", "running", "waiting", "done", "kept")
"""States in the order of the table: those that need attention come first"""


@dataclass
class Line:
    """Progress of one archive. Times are from time.monotonic(); 0 if unknown."""

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

    def row(self, now: float) -> dict[str, Any]:
        working = (self.ended or now) - self.begun if self.begun else 0.0
        speed = self.clips / working if working > 0 else 0.0
        left = (self.total - self.clips) / speed if self.state == "running" and self.total and speed else None
        return _row(self.stem, self.state, self.rows, self.rejected, speed, left, self.problem)


@dataclass(frozen=True)
class Figures:
    """Totals of all archives. `clips` are those with codes; `eta_seconds` is None while the speed is unknown."""

    archives_done: int
    archives_failed: int
    clips: int
    clips_rejected: int
    clips_per_sec: float
    eta_seconds: float | None


def figures(lines: Collection[Line], started: float, now: float) -> Figures:
    """Return the totals. Archives kept from earlier runs count as done, but not for the speed."""
    worked = sum(line.clips for line in lines if line.state != "kept")
    begun = min((line.begun for line in lines if line.begun), default=started)  # tasks on a cluster don't report
    speed = worked / (now - begun) if now > begun else 0.0
    totals = [line.total for line in lines if line.total]
    mean = sum(totals) / len(totals) if totals else 0.0
    left = sum((line.total or mean) - line.clips for line in lines if line.state in ("waiting", "running"))
    return Figures(
        archives_done=sum(line.state in ("done", "kept") for line in lines),
        archives_failed=sum(line.state == "failed" for line in lines),
        clips=sum(line.rows for line in lines),
        clips_rejected=sum(line.rejected for line in lines),
        clips_per_sec=speed,
        eta_seconds=max(0.0, left) / speed if speed and totals else None,
    )


def table(lines: Mapping[str, Line], whole: Figures, now: float) -> list[dict[str, Any]]:
    """Return the table: a row of totals, then one row per archive, those that need attention first."""
    first = _row(
        f"all {len(lines)}",
        f"{whole.archives_done + whole.archives_failed} ended",
        whole.clips,
        whole.clips_rejected,
        whole.clips_per_sec,
        whole.eta_seconds,
        f"{whole.archives_failed} failed" if whole.archives_failed else "",
    )
    ordered = sorted(lines.values(), key=lambda line: (STATES.index(line.state), line.stem))
    return [first, *(line.row(now) for line in ordered)]


def _row(
    archive: str, state: str, clips: int, rejected: int, speed: float, left: float | None, problem: str
) -> dict[str, Any]:
    return {
        "archive": archive,
        "state": state,
        "clips": clips,
        "rejected": rejected,
        "clips/s": round(speed, 1) if speed else "",
        "ETA": duration(left) if left else "",
        "problem": problem,
    }


def reason_alone(archive: str, reason: str) -> str:
    """Return the reason of a failed archive without its name, a path or stem, next to which the reason is shown."""
    name, _, rest = reason.partition(" ")
    return rest if name.startswith(archive.rpartition("/")[2]) and rest else reason


@dataclass(frozen=True)
class ArchiveJob:
    """What is done with the archives.

    Attributes:
        stage: its name for the terminal (`Update.stage`).
        title: the same as a participle, for logs and pages.
        table: key of the artifact with a row per archive.
    """

    stage: str
    title: str
    table: str


TOKENIZING = ArchiveJob("tokenize", "Tokenizing", "tokenized-archives")
CAPTIONING = ArchiveJob("caption", "Captioning", "captioned-archives")
AXIS = "tokenize/clips"
SHOW_EVERY_SECONDS = 10.0
SAY_EVERY_SECONDS = 0.25


class ArchiveReport(Protocol):
    """The result of an archive's task."""

    @property
    def clips(self) -> int:
        """Number of clips that were used."""
        ...

    @property
    def rejected(self) -> Sequence[Rejected]:
        """The other clips, with the reasons."""
        ...


@dataclass(frozen=True)
class ArchiveProgress:
    """Progress that a task reports after each clip; `total` is None while the number of clips is unknown."""

    stem: str
    rows: int
    rejected: int
    total: int | None


class ArchivesLog:
    """Collects progress and results of the archives' tasks, and shows them every few seconds. Thread-safe.

    Args:
        job: what the tasks do.
        run: the WandB run, if any.
        stems: stems of the archives.
        say: listener that receives an `Update` on all archives, a few times a second.
        artifacts: artifacts of the flow run.
    """

    def __init__(
        self, job: ArchiveJob, run: Wandb | None, stems: Sequence[str], say: Listener, artifacts: Artifacts
    ) -> None:
        self._job = job
        self._run = run
        self._say = say
        self._artifacts = artifacts
        self._logger = run_logger()
        self._lines = {stem: Line(stem) for stem in stems}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._saying, self._showing, self._logging = (
            Pace(seconds) for seconds in (SAY_EVERY_SECONDS, SHOW_EVERY_SECONDS, LOG_EVERY_SECONDS)
        )
        self._show_due()

    def hear(self, update: Any) -> None:
        """Record a task's progress; forward all other updates."""
        if not isinstance(update, ArchiveProgress):
            self._say(update)
            return
        with self._lock:
            line = self._lines[update.stem]
            line.begun = line.begun or time.monotonic()
            line.state, line.rows, line.rejected, line.total = "running", update.rows, update.rejected, update.total
        self._show_due()

    def end(self, stem: str, report: ArchiveReport | None, cached: bool = False, problem: str = "") -> None:
        """Record the end of an archive: the result of its task, or the problem of a failed one."""
        with self._lock:
            line = self._lines[stem]
            line.ended = time.monotonic()
            line.state = "failed" if report is None else "kept" if cached else "done"
            line.problem = reason_alone(stem, problem)
            if report is None:
                line.rows = line.rejected = 0
            else:
                line.rows, line.rejected = report.clips, len(report.rejected)
                line.total = line.clips
                line.problem = "; ".join(f"{entry.clip}: {entry.reason}" for entry in report.rejected[:3])
        self._show_due(report_now=True)

    def _show_due(self, report_now: bool = False) -> None:
        if self._saying.is_due() or report_now:
            self._say(self._summary()[0])
        if self._showing.is_due():
            self.show()
        if self._logging.is_due():
            self._logger.info("%s", self._summary()[1])

    def show(self) -> None:
        """Update the artifacts and WandB."""
        summary, text = self._summary()
        now = time.monotonic()
        with self._lock:
            whole = figures(self._lines.values(), self._started, now)
            rows = table(self._lines, whole, now)
        self._artifacts.progress(self._job.title.lower(), summary.done, summary.total or 0, text)
        link = markdown_link("WandB run", self._run.url) if self._run and self._run.url else ""
        self._artifacts.table(self._job.table, rows, f"{text} · {local_now()}", link)
        if self._run:
            self._run.log(wandb_row(whole))

    def _summary(self) -> tuple[Update, str]:
        """Return the update for the listener, and the same as a line for the log."""
        with self._lock:
            whole = figures(self._lines.values(), self._started, time.monotonic())
        parts = [counted(whole.clips, "clip")]
        if whole.clips_rejected:
            parts.append(message("{number:,} rejected", number=whole.clips_rejected))
        if whole.archives_failed:
            parts.append(message("{archives} failed", archives=counted(whole.archives_failed, "archive")))
        if whole.clips_per_sec:
            parts.append(message("{speed:,.1f} clips/s", speed=whole.clips_per_sec))
        text = joined(parts)
        ended, archives = whole.archives_done + whole.archives_failed, len(self._lines)
        left = f", {duration(whole.eta_seconds)} left" if whole.eta_seconds else ""
        line = f"{self._job.title}: {ended} of {counted(archives, 'archive')}, {text}{left}"
        return Update(self._job.stage, "", ended, archives, text), line

    @property
    def failed(self) -> bool:
        return any(line.state == "failed" for line in self._lines.values())


def wandb_row(whole: Figures) -> dict[str, float]:
    """Return WandB's metrics of all archives; the axis `tokenize/clips` counts tokenized and rejected clips."""
    row = {
        AXIS: whole.clips + whole.clips_rejected,
        "tokenize/clips_succeeded": whole.clips,
        "tokenize/clips_failed": whole.clips_rejected,
        "tokenize/archives_succeeded": whole.archives_done,
        "tokenize/archives_failed": whole.archives_failed,
        "tokenize/files_per_sec": whole.clips_per_sec,
    }
    return row if whole.eta_seconds is None else {**row, "tokenize/eta_seconds": whole.eta_seconds}


@contextmanager
def log_archives(job: ArchiveJob, stems: Sequence[str], run: Wandb | None = None) -> Iterator[ArchivesLog]:
    """Yield the log that receives all updates of the block."""
    with artifacts_of_run() as artifacts:
        log = ArchivesLog(job, run, stems, listener(), artifacts)
        with listening(log.hear):
            try:
                yield log
            finally:
                log.show()


@contextmanager
def log_tokenizing(tokens: str, stems: Sequence[str]) -> Iterator[ArchivesLog]:
    """Yield the log that receives all updates of the block.

    WandB's run lies under `TOKENS/wandb`, and later tokenizing resumes it. For a remote TOKENS it is uploaded at the
    end.
    """
    target = storage.as_path(tokens)
    with storage.scratch_folder() as scratch:
        stage = Path(str(target)) if storage.is_local(target) else scratch / "stage"
        stage.mkdir(parents=True, exist_ok=True)
        config = {"tokens": tokens, "archives": len(stems)}
        run = Wandb(stage, kept_run_id(target), f"tokenize {target.name}", "tokenize", config, axis=AXIS, home=target)
        try:
            with log_archives(TOKENIZING, stems, run) as log:
                yield log
        except BaseException:
            run.finish(1, is_interrupted=True)
            raise
        else:
            run.finish(int(log.failed))
        finally:
            _upload(stage, target)


def _upload(stage: Path, target: UPath) -> None:
    if storage.is_local(target):
        return
    try:
        storage.upload_tree(stage, target)
    except Exception as error:  # the shards must not depend on the log
        raise_if_interrupted(error)
        run_logger().warning("what WandB logged could not be brought to %s (%s)", target, error)
