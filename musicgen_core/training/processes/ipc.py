"""Communication between the process that launches a run and its workers: JSON files in a scratch directory.

The launcher passes the request as one file. The workers append their reports, one per line, to another. Unlike
`metrics.jsonl` that file exists from the start, is local even if the run directory isn't, is never cut back, and has
reports that aren't metrics. A pipe is not possible, because torchrun closes inherited file descriptors.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from musicgen_core import errors
from musicgen_core.errors import Cancelled, ConfigError, MusicgenError
from musicgen_core.language import message
from musicgen_core.training.request import TrainRequest, TrainResult

RESULT = TypeAdapter(TrainResult)
"""Converts the result to plain values and back."""


def write_request(request: TrainRequest, path: Path) -> None:
    path.write_bytes(TypeAdapter(TrainRequest).dump_json(request, indent=2))


def read_request(path: Path) -> TrainRequest:
    """Read a request that `write_request` or a person wrote; fields that are left out have their defaults.

    Raises:
        ConfigError: the file can't be read, or names or values in it are wrong; names every problem.
    """
    try:
        text = path.read_bytes()
        request = TypeAdapter(TrainRequest).validate_json(text)
    except OSError as error:
        raise ConfigError(
            message("the request {path} can't be read ({strerror})", path=path, strerror=error.strerror),
            message("Check the path"),
        ) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc'])) or 'all'}: {problem['msg']}" for problem in error.errors()]
        raise ConfigError(
            message("the request {path} is wrong: {names}", path=path, names="; ".join(problems)),
            message("Change what is named"),
        ) from error
    unknown = sorted(set(json.loads(text)) - {field.name for field in fields(TrainRequest)})
    if unknown:
        raise ConfigError(
            message("the request {path} has fields that don't exist: {names}", path=path, names=", ".join(unknown)),
            message("Remove them"),
        )
    return request


class Reports:
    """A worker's end: each report is one line, appended atomically, so that those of several ranks don't mix."""

    def __init__(self, path: Path, rank: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._rank = rank

    def send(self, event: str, **values: Any) -> None:
        os.write(self._file, json.dumps({"rank": self._rank, "event": event, **values}).encode() + b"\n")

    def send_error(self, error: MusicgenError | Cancelled, is_consequence: bool = False) -> None:
        """Send an error for `revive`, as its nearest base class in errors.py."""
        kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
        self.send("error", kind=kind, args=list(error.args), is_consequence=is_consequence)


class ReportHandler(logging.Handler):
    """Sends log records to the launcher, which adds them to its own log."""

    def __init__(self, reports: Reports) -> None:
        super().__init__()
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._reports.send("log", name=record.name, level=record.levelno, message=self.format(record))
        except Exception:  # like every logging handler: a log line must not end a run
            self.handleError(record)


class ReportReader:
    """The launcher's end: each call of `new` yields the reports since the last call, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def revive(report: dict[str, Any]) -> MusicgenError | Cancelled:
    """Return the error that `Reports.send_error` sent."""
    error: MusicgenError | Cancelled = getattr(errors, report["kind"])(*report["args"])
    return error
