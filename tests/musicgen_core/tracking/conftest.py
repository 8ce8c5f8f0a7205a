from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicgen_core.tracking import AudioFile
from tests.musicgen_core.tracking.stand_in import StandIn, running_stand_in


@pytest.fixture
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stand_in(without_key: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Run a stand-in of WandB's server, and set a key."""
    with running_stand_in() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten timeouts, so that failures of WandB take little time."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")


@pytest.fixture
def clip(tmp_path: Path) -> AudioFile:
    path = tmp_path / "epoch_001_00.wav"
    soundfile.write(path, np.zeros(3200), 32_000)
    return AudioFile(path, "slow piano")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "best_lora.pt"
    path.write_bytes(b"weights")
    return path
