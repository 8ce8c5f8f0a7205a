"""`metrics.jsonl`: one object a step, written so that neither a crash nor a full disk costs more than the last row."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_core import storage
from musicgen_core.strict_json import strict_json

logger = logging.getLogger(__name__)


def cut_metrics(path: Path, last_step: int) -> None:
    """Drop lines after `last_step`, and a half-written last line, so that each step stands in the file once.

    A file with lines that are no rows is kept beside as it was, and so is what is no file.
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
        if damaged and not path.is_symlink():  # else the file that it points to stays
            with storage.publish(storage.as_path(beside)) as copy:  # last: each failed attempt would leave one
                shutil.copyfile(path, copy)
    if damaged:
        logger.warning("damaged lines of %s left out: %d; the file as it was is %s", path, damaged, kept)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of `metrics.jsonl`; lines that are none, such as a last one that a crash cut short, are left out.

    A value that was NaN or infinite, null in the file, is NaN.
    """
    if not path.is_file():  # a pipe would be waited for
        return []
    return _parse(path.read_bytes())[0]


def _parse(content: bytes) -> tuple[list[dict[str, float]], int]:
    """Return the rows, and the number of lines that are none, beside a last one that a crash cut short."""
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
    """Adds rows to `metrics.jsonl`, whose last line must be whole. What can't be written waits for the next row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length: int | None = None  # bytes of whole rows
        self._waiting: list[str] = []

    def append(self, row: Mapping[str, float]) -> None:
        """Raises OSError: it can't be written now."""
        self._waiting.append(strict_json(row) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the rows that wait. Raises OSError: they can't be written now either."""
        if not self._waiting:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", opener=storage.open_file_alone) as file:
            if self._length is None:
                self._length = file.tell()
            elif file.tell() > self._length:
                file.truncate(self._length)  # what a failed attempt wrote would hide every row after it
            file.write("".join(self._waiting).encode())
            file.flush()
            self._length = file.tell()
        self._waiting.clear()
