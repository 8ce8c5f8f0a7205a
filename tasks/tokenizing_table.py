"""Progress of each archive during tokenizing, as figures and as rows of a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.progress import duration

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
    """Return the reason of a failed archive without the archive's name, next to which it is shown.

    Args:
        archive: path or stem of the archive.
        reason: the error message.
    """
    name, _, rest = reason.partition(" ")
    return rest if name.startswith(archive.rpartition("/")[2]) and rest else reason
