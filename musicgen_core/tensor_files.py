"""Write torch files with errors that name the cause, and load them with verified checksums.

Such a file is a zip archive. `torch.save` stores a CRC-32 with each record (the pickle, and the bytes of each tensor),
but `torch.load` ignores them: a flipped bit on the disk changes weights without an error. NaN and infinities,
which damaged files without checksums may hold, are found by `names_of_non_finite`.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

_FLUSH_BYTES = 256 << 20
_ZIP = b"PK\x03\x04"
_DIRECTORY = 0x10  # attribute of a zip entry: torch's reader leaves such a record's memory uninitialized
_CHUNK_BYTES = 1 << 20


def save(values: dict[str, Any], path: Path, check: Callable[[], None] = lambda: None) -> None:
    """Write `values` with torch.save.

    Args:
        check: called before each block is written; may raise to stop.

    Raises:
        OSError: the file can't be written.
    """
    with open(path, "wb") as file:
        writer = _Writer(file, check)
        try:
            torch.save(values, writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise writer.error or error from error  # torch reports any failed write as `unexpected pos`


class _Writer:
    """A file for torch.save that keeps the first error and flushes to the disk as it grows.

    Without flushing, small files of an interrupted run would wait for gigabytes of dirty pages.
    """

    def __init__(self, file: BinaryIO, check: Callable[[], None]) -> None:
        self._file, self._check = file, check
        self._unflushed = 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self._check()
            written = self._file.write(data)
            self._unflushed += written
            if self._unflushed > _FLUSH_BYTES:
                self.flush()
                os.fsync(self._file.fileno())
                self._unflushed = 0
            return written
        except BaseException as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def load(path: Path, *, mmap: bool = False, verify: Literal["all", "pickle"] = "all") -> Any:
    """Load tensors and plain values onto the CPU; never runs code from the file.

    Args:
        path: a local file.
        mmap: map the tensors instead of reading them.
        verify: `all` compares all checksums; `pickle` skips those of the tensors, which is instant for large files.

    Raises:
        Exception: any of torch's exceptions; ValueError if a checksum differs or the file is no torch file.
    """
    verify_records(path, verify)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, KeyError, IndexError) as error:  # torch's message advises weights_only=False
        raise ValueError("it is not a file of torch, or it holds more than tensors and plain values") from error


def verify_records(path: Path, verify: Literal["all", "pickle"] = "all") -> None:
    """Verify the checksums of a file.

    Files without checksums pass: the format before torch 1.6 is no zip archive, and
    `torch.serialization.set_crc32_options(False)` leaves all checksums zero.

    Raises:
        ValueError: a record differs from its checksum, or the file's structure is damaged.
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                if not any(record.CRC for record in records):
                    return
                for record in records:
                    if record.external_attr & _DIRECTORY:
                        raise ValueError(f"its record {record.filename} is marked as a directory")
                    if verify == "all" or record.filename.endswith("/data.pkl"):
                        with archive.open(record) as content:
                            while content.read(_CHUNK_BYTES):
                                pass
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise ValueError(f"its content does not match its checksums: {error}") from error


def names_of_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinity.

    Each tensor is read once, nothing of its size is allocated, and a GPU is synchronized once for all of them.
    """
    floats = {name: one for name, one in tensors.items() if one.is_floating_point() and one.numel()}
    if not floats:
        return []
    extremes = [torch.stack(one.detach().flatten().aminmax()).double() for one in floats.values()]  # propagate NaN
    finite = torch.stack(extremes).isfinite().all(dim=1).tolist()
    return [name for name, is_finite in zip(floats, finite, strict=True) if not is_finite]
