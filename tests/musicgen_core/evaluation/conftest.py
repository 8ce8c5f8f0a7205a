"""A real training run with the debug model, its tokens, and a toy CLAP."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from musicgen_core.config import TrainSettings
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.evaluation.evaluate import evaluate
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import Evaluate

CLIPS = 40


@pytest.fixture(scope="session")
def tokens(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return clips of 1 to 2 s with few codes, which are quickly learned. Every fourth has no description."""
    folder, rng = tmp_path_factory.mktemp("tokens"), np.random.default_rng(7)
    parquet = tmp_path_factory.mktemp("scratch") / "archive_batch_0000.parquet"
    with ShardWriter(parquet, codec_identity(debug_model)) as writer:
        for i in range(CLIPS):
            codes = rng.integers(12, size=(4, 50 + i), dtype=np.uint16)
            writer.add(Row(f"clip_{i}.wav", None if i % 4 == 3 else f"tune {i}", codes.shape[1] / 50, codes))
    publish_shard(parquet, ShardReport("archive_batch_0000.zip", 1, "f", "c", CLIPS, 60.0), UPath(folder))
    return folder


@pytest.fixture(scope="session")
def trained(debug_model: BaseModel, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a successful training run, with samples. Read-only."""
    run_dir = tmp_path_factory.mktemp("runs") / "jazz"
    settings = TrainSettings(
        batch_size=4,
        gradient_accumulation_steps=1,
        num_epochs=3,
        learning_rate=5e-3,
        validation_fraction=0.3,
        segment_seconds=1.2,
        full_models="none",
        sample_prompts=["slow <b>piano</b>", "drums"],
        sample_seconds=0.5,
    )
    train(TrainRequest(str(tokens), str(run_dir), str(debug_model.directory), settings, "cpu"))
    return run_dir


@pytest.fixture(scope="session")
def run(debug_model: BaseModel, tokens: Path) -> Evaluate:
    """Evaluate an adapter; settings by name. Samples are compared with training clips only if `samples` is given."""

    def call(adapter: Path | UPath, output: Path | UPath | None = None, **settings: Any) -> Evaluation:
        out = str(output) if output else None
        given = EvaluateSettings(**{"samples": 0, **settings})
        return evaluate(EvaluateRequest(str(tokens), str(adapter), str(debug_model.directory), out, "cpu", given))

    return call


@pytest.fixture(scope="session")
def copied(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run directory, with an evaluation of its best adapter."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("copy") / "jazz"))


@pytest.fixture(scope="session")
def evaluation(copied: Path, run: Evaluate) -> Evaluation:
    return run(copied, samples=None)


@pytest.fixture
def request_for(debug_model: BaseModel, tokens: Path, trained: Path, tmp_path: Path) -> Callable[..., EvaluateRequest]:
    """Return a factory of valid requests with the given fields and settings."""

    def make(**given: Any) -> EvaluateRequest:
        fields = {name: given.pop(name) for name in list(given) if name in EvaluateRequest.__dataclass_fields__}
        right = {"tokens": str(tokens), "adapter": str(trained), "model": str(debug_model.directory), "device": "cpu"}
        return EvaluateRequest(
            **{
                **right,
                "output": str(tmp_path / "out"),
                "settings": EvaluateSettings(**{"samples": 0, **given}),
                **fields,
            }
        )

    return make
