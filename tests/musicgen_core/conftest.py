"""Fixtures of the core's tests: the debug model and its parts, wavs, archives of every kind, an object store."""

from __future__ import annotations

import gc
import io
import tarfile
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel
from tests.fixture_types import MakeWav, Pack


@pytest.fixture(scope="session")
def debug_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Build the debug model from scratch, rather than test an older version in the user's cache."""
    model = BaseModel("debug", debug_model_directory(tmp_path_factory.mktemp("cache")))
    gc.freeze()  # after audiocraft and transformers were imported
    return model


@pytest.fixture(scope="session")
def codec(debug_model: BaseModel) -> Codec:
    return Codec(debug_model)


@pytest.fixture(scope="session")
def text_encoder(debug_model: BaseModel) -> TextEncoder:
    return TextEncoder(debug_model.text_encoder)


@pytest.fixture
def bucket() -> Iterator[UPath]:
    """Return an empty folder of an object store."""
    place = storage.as_path(f"memory://{uuid.uuid4().hex}")
    yield place
    if place.exists():
        place.fs.rm(place.path, recursive=True)


@pytest.fixture(scope="session")
def make_wav() -> MakeWav:
    """Return a sine as the bytes of a wav."""

    def make(
        hertz: float = 440.0, seconds: float = 0.1, rate: int = 32_000, channels: int = 1, subtype: str = "PCM_16"
    ) -> bytes:
        mono = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
        buffer = io.BytesIO()
        soundfile.write(buffer, np.tile(mono[:, None], channels), rate, format="WAV", subtype=subtype)
        return buffer.getvalue()

    return make


def pack_zstd(data: bytes) -> bytes:
    """Compress by Zstandard, without a checksum."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="session")
def pack() -> Pack:
    """Write an archive of (name, bytes) pairs, of a kind that may differ from the path's suffix."""

    def write(path: Path, members: Sequence[tuple[str, bytes]], kind: str = "zip") -> Path:
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in members:
                    archive.writestr(name, data)
        else:
            compression = kind.removeprefix("tar").removeprefix(".")
            if compression == "zst":  # tarfile of Python 3.14
                path.write_bytes(pack_zstd(write(path, members, "tar").read_bytes()))
                return path
            with tarfile.open(path, f"w:{compression}") as tar:  # type: ignore[call-overload]
                for name, data in members:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        return path

    return write
