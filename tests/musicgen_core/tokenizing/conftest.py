"""Fixtures of the tokenizing tests: an archive with rejected clips, a counting codec, directories for shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec, StartedBatch
from musicgen_core.data.shards import Row, read_rows, shard_paths
from musicgen_core.melody import Excerpt
from tests.fixture_types import MakeWav, Members, Pack


class CountingCodec(Codec):
    """The debug codec, counting how often it encodes."""

    def __init__(self, codec: Codec) -> None:
        self.__dict__.update(codec.__dict__)
        self.encoded = 0

    def start(self, clips: Sequence[NDArray[np.float32]], rate: int, excerpts: Sequence[Excerpt] = ()) -> StartedBatch:
        self.encoded += len(clips)
        return super().start(clips, rate, excerpts)


@pytest.fixture
def counting(codec: Codec) -> CountingCodec:
    return CountingCodec(codec)


@pytest.fixture(params=["local", "remote"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path / "tokens") if request.param == "local" else bucket / "tokens"


@pytest.fixture(scope="session")
def members(make_wav: MakeWav) -> Members:
    """Return three clips of different rates and lengths, two unusable ones, and members that aren't clips."""
    return [
        ("audio/one.wav", make_wav(440, 0.3)),
        ("audio/broken.wav", b"RIFF\x24\x00\x00\x00WAVE this is not audio"),
        ("cover.jpg", b"no clip"),
        ("audio/two.WAV", make_wav(880, 0.2, rate=44_100, channels=2)),
        ("audio/short.wav", make_wav(440, 0.01)),
        ("audio/three.wav", make_wav(220, 0.25, rate=22_050)),
    ]


@pytest.fixture
def archive(tmp_path: Path, pack: Pack, members: Members) -> UPath:
    return storage.as_path(pack(tmp_path / "batch_1.zip", members))


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[Row]]:
    def read(tokens: UPath, stem: str = "batch_1") -> list[Row]:
        with storage.staged(shard_paths(tokens, stem)[0]) as parquet:
            return list(read_rows(parquet))

    return read
