"""`metrics.jsonl`: one object a step, written so that neither a crash nor a full disk costs more than the last row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from musicgen_core import storage


def cut_metrics(path: Path, last_step: int) -> None:
    """Drop lines after `last_step`, and a half-written last line, so that each step stands in the file once."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path) if row["step"] <= last_step]
    with storage.publish(storage.as_path(path)) as beside:
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


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
