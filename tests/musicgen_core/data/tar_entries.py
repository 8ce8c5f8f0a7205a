"""Tars of made-up entries, with headers of any content."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLIPS = [("audio/b.wav", b"beta" * 700), ("audio/a.WAV", b"alpha"), ("deep/er/c.wav", b"")]


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, data


def write(path: Path, entries: Sequence[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for made, data in entries:
            tar.addfile(made, io.BytesIO(data))
    return path


def sealed(header: bytearray) -> bytes:
    """Return the header with a valid checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
