"""Tiny runs: the debug model, random codes as tokens, a few steps; their files, and ways to interrupt them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.batches import BatchSize
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.files import background, full_models, saving
from musicgen_core.training.loop import Trainer
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.processes.launch import launch
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest, MakeTokens
from tests.killing import Killed
from tests.musicgen_core.training.launching import HERE, MARK, Launch, Processes
from tests.musicgen_core.training.launching import request_for as toy_request
from tests.musicgen_core.training.trainers import FOUR, FP32, MakeTrainer

Codes = NDArray[np.uint16]
Metrics = dict[str, float]


@pytest.fixture(autouse=True)
def plots_are_blank(blank_plots: None) -> None:
    """Draw no plots, which tests/musicgen_core/tracking/test_metric_plots.py does."""


def random_clips(count: int, frames: int = 24, used_codes: int = 2048) -> list[Codes]:
    rng = np.random.default_rng(count)
    return [rng.integers(used_codes, size=(4, frames + 3 * i), dtype=np.uint16) for i in range(count)]


def write_tokens(directory: Path, clips: Sequence[Codes], codec: str, scratch: Path) -> Path:
    """One shard of these clips; every third has no description."""
    rows = [
        Row(f"clip_{i}.wav", None if i % 3 == 2 else f"tune {i}", codes.shape[1] / 50, codes)
        for i, codes in enumerate(clips)
    ]
    return write_rows(directory, rows, codec, scratch)


def write_rows(directory: Path, rows: Sequence[Row], codec: str, scratch: Path) -> Path:
    """One shard of these rows."""
    parquet = scratch / "archive_batch_0000.parquet"
    with ShardWriter(parquet, codec) as writer:
        for row in rows:
            writer.add(row)
    content = hashlib.sha256(parquet.read_bytes()).hexdigest()
    chroma = "v1/mix" if any(row.chroma is not None for row in rows) else None
    report = ShardReport("archive_batch_0000.zip", 1, content, "c", len(rows), 1.0, chroma=chroma)
    publish_shard(parquet, report, storage.as_path(directory))
    return directory


@pytest.fixture
def make_tokens(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> MakeTokens:
    """Clips → a directory of tokens for the debug model."""

    def make(clips: Sequence[Codes], codec: str | None = None) -> Path:
        directory = tmp_path_factory.mktemp("tokens")
        return write_tokens(directory, clips, codec or codec_identity(debug_model), tmp_path_factory.mktemp("scratch"))

    return make


@pytest.fixture
def tokens_of(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[Row]], Path]:
    """Rows → a directory of tokens for the debug model."""
    codec = codec_identity(debug_model)
    return lambda rows: write_rows(tmp_path_factory.mktemp("tokens"), rows, codec, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def tokens(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, of which one validates."""
    folder = tmp_path_factory.mktemp("tokens")
    return write_tokens(folder, random_clips(6), codec_identity(debug_model), tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def clips(debug_model: BaseModel, tokens: Path) -> Clips:
    return load_clips(storage.as_path(tokens), codec_identity(debug_model))


def tiny_request(debug_model: BaseModel, **given: Any) -> TrainRequest:
    """Two epochs of three steps each; what is given goes to the request or to its settings, by name."""
    of_request = {key: given.pop(key) for key in list(given) if key in TrainRequest.__dataclass_fields__}
    settings = {"batch_size": 2, "gradient_accumulation_steps": 1, "num_epochs": 2, "learning_rate": 1e-3}
    return TrainRequest(
        **{
            "model": str(debug_model.directory),
            "settings": TrainSettings(**{**settings, **given}),
            "device": "cpu",
            **of_request,
        }
    )


@pytest.fixture
def request_for(debug_model: BaseModel, tokens: Path, tmp_path: Path) -> MakeRequest:
    """A training of two epochs of three steps each in `tmp_path / name`; settings by name."""

    def make(name: str = "run", **given: Any) -> TrainRequest:
        return tiny_request(debug_model, **{"tokens": str(tokens), "run_dir": str(tmp_path / name), **given})

    return make


@pytest.fixture
def trainer_of(debug_model: BaseModel, text_encoder: TextEncoder, clips: Clips) -> MakeTrainer:
    def make(size: BatchSize = FOUR, execution: Execution = FP32, world: World | None = None, **given: Any) -> Trainer:
        settings = TrainSettings(**{"num_epochs": 1, "learning_rate": 1e-3, **given})
        return Trainer(load_lm(debug_model), text_encoder, clips, settings, size, 0.3, execution, world)

    return make


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    found = Processes(mark)
    yield found
    for pid in found.running():  # of a test that failed
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def toy(processes: Processes, tmp_path: Path) -> Launch:
    """Launch the toy on two processes."""

    def run(scenario: str, **given: Any) -> TrainResult:
        return launch(toy_request(scenario, tmp_path), 2, worker_module="toy_worker", **given)

    return run


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't be written is tried again at once."""
    for module in (saving, full_models):
        monkeypatch.setattr(module, "RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(saving, "WAITING_DELAY_S", 0.0)
    monkeypatch.setattr(background, "BACKGROUND_DELAYS_S", (0.0, 0.0))


@dataclass(frozen=True)
class Left:
    """What a training has left in its run directory, here or in an object store."""

    run_dir: str

    @property
    def root(self) -> UPath:
        return storage.as_path(self.run_dir)

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    @property
    def contents(self) -> dict[str, tuple[float, bytes]]:
        return {name: ((self.root / name).stat().st_mtime_ns, (self.root / name).read_bytes()) for name in self.files}

    @property
    def rows(self) -> list[Metrics]:
        """Of metrics.jsonl, each of its lines."""
        return [json.loads(line) for line in (self.root / "metrics.jsonl").read_text().splitlines()]

    @property
    def untimed_rows(self) -> list[Metrics]:
        return [{name: value for name, value in row.items() if "sec" not in name} for row in self.rows]

    @property
    def full_models(self) -> set[str]:
        return {Path(name).stem for name in self.files if name.startswith("full_models/")}

    def adapter(self, name: str = "final_lora") -> dict[str, torch.Tensor]:
        return load_adapter(self.root / "lora_weights" / f"{name}.pt").lora

    def full_model(self, name: str) -> dict[str, torch.Tensor]:
        with storage.staged(self.root / "full_models" / f"{name}.pt") as file:
            weights: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["best_state"]
        return weights


@pytest.fixture(scope="session")
def left_in() -> Callable[[str], Left]:
    return Left


@pytest.fixture(scope="session")
def uninterrupted(
    debug_model: BaseModel, tokens: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, TrainResult]:
    """One that saved every two steps and went on to its end. Not to be written to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    request = tiny_request(debug_model, tokens=str(tokens), run_dir=str(run_dir), save_every_steps=2)
    return request, train(request)


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="session")
def same_weights() -> Callable[..., None]:
    return assert_same_weights


@pytest.fixture
def nothing_shows(uninterrupted: tuple[TrainRequest, TrainResult]) -> Callable[[str], None]:
    """Asserts of a run directory: the files, the metrics, each step once, and the weights of `uninterrupted`."""
    expected = Left(uninterrupted[0].run_dir)

    def check(run_dir: str) -> None:
        found = Left(run_dir)
        assert found.files == expected.files
        assert found.untimed_rows == expected.untimed_rows
        for name in ("final_lora", "best_lora", "latest_lora", "lora_epoch_1"):
            assert_same_weights(found.adapter(name), expected.adapter(name))
        for name in ("best_model", "final_model"):
            assert_same_weights(found.full_model(name), expected.full_model(name))

    return check


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture(scope="session")
def killed_after() -> Callable[[TrainRequest, int], None]:
    """Train, and be killed after that step."""

    def run(request: TrainRequest, step: int) -> None:
        def kill(row: Metrics) -> None:
            if row["step"] == step:
                raise Killed

        with pytest.raises(Killed):
            train(request, on_step=kill)

    return run


@pytest.fixture(scope="session")
def killed_in() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Killed instead of the `call`-th call, from 1, of a function that saving.py uses; expects it to come out."""

    @contextlib.contextmanager
    def expecting(function: str, call: int) -> Iterator[None]:
        calls = 0
        whole = getattr(saving, function)

        def killing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Killed
            return whole(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, function, killing)
            with pytest.raises(Killed):
                yield

    return expecting
