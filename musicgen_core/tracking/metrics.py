"""`metrics.jsonl`: one object per step. A crash or a full disk loses at most the last row."""

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
