"""Tiny trainings: the debug model, random codes as tokens, a few steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicgen_core import storage
from musicgen_core.codec import codec_identity
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.request import TrainRequest

Codes = NDArray[np.uint16]
MakeTokens = Callable[..., Path]
MakeRequest = Callable[..., TrainRequest]


def random_clips(count: int, frames: int = 24, used_codes: int = 2048) -> list[Codes]:
    rng = np.random.default_rng(count)
    return [rng.integers(used_codes, size=(4, frames + 3 * i), dtype=np.uint16) for i in range(count)]


def write_tokens(directory: Path, clips: Sequence[Codes], codec: str, scratch: Path) -> Path:
    """One shard of these clips; every third has no description."""
    parquet = scratch / "archive_batch_0000.parquet"
    with ShardWriter(parquet, codec) as writer:
        for i, codes in enumerate(clips):
            writer.add(Row(f"clip_{i}.wav", None if i % 3 == 2 else f"tune {i}", codes.shape[1] / 50, codes))
    content = hashlib.sha256(parquet.read_bytes()).hexdigest()
    report = ShardReport("archive_batch_0000.zip", 1, content, "c", len(clips), 1.0)
    publish_shard(parquet, report, storage.as_path(directory))
    return directory


@pytest.fixture
def make_tokens(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> MakeTokens:
    """Clips → a directory of tokens for the debug model."""

    def make(clips: Sequence[Codes], codec: str | None = None) -> Path:
        directory = tmp_path_factory.mktemp("tokens")
        return write_tokens(directory, clips, codec or codec_identity(debug_model), tmp_path_factory.mktemp("scratch"))

    return make


@pytest.fixture(scope="session")
def tokens(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, of which one validates."""
    folder = tmp_path_factory.mktemp("tokens")
    return write_tokens(folder, random_clips(6), codec_identity(debug_model), tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def clips(debug_model: BaseModel, tokens: Path) -> Clips:
    return load_clips(storage.as_path(tokens), codec_identity(debug_model))


@pytest.fixture
def request_for(debug_model: BaseModel, tokens: Path, tmp_path: Path) -> MakeRequest:
    """A training of two epochs of three steps each in `tmp_path / name`; settings by name."""

    def make(name: str = "run", **given: Any) -> TrainRequest:
        of_request = {key: given.pop(key) for key in list(given) if key in TrainRequest.__dataclass_fields__}
        settings = {"batch_size": 2, "gradient_accumulation_steps": 1, "num_epochs": 2, "learning_rate": 1e-3}
        return TrainRequest(
            **{
                "tokens": str(tokens),
                "run_dir": str(tmp_path / name),
                "model": str(debug_model.directory),
                "settings": TrainSettings(**{**settings, **given}),
                "device": "cpu",
                **of_request,
            }
        )

    return make
