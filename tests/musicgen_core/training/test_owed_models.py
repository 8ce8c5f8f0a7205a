"""Full models that could not be written are owed, and written later."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from musicgen_core import tensor_files
from musicgen_core.errors import RunDirectoryError
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.files import background
from musicgen_core.training.files.background import Failures
from musicgen_core.training.files.checkpoint import Checkpoint, Progress, save_checkpoint
from musicgen_core.training.files.full_models import FullModels
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest
from tests.musicgen_core.training.failing_writes import failing

pytestmark = pytest.mark.usefixtures("quick_retries")


def test_a_full_model_that_can_not_be_written_is_reported_and_owed(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture, left_in: LeftIn
) -> None:
    request = request_for()
    with failing(lambda target, before: target.parent.name == "full_models" and "epoch_1" in target.name):
        result = train(request)
    assert any("checkpoint_epoch_1.pt" in warning and "no space" in warning for warning in result.warnings)
    assert "owed/checkpoint_step_3.pt" in left_in(request.run_dir).files
    again = train(request)  # not complete: something is owed
    assert again.resumed_from == 6 and again.warnings == ()
    assert "checkpoint_epoch_1" in left_in(request.run_dir).full_models
    assert train(request).warnings == ()


@pytest.mark.parametrize("name", ["final_model.pt", "final_lora.pt"])
def test_unwritable_final_files_end_the_run_and_the_next_run_writes_them(
    request_for: MakeRequest, name: str, left_in: LeftIn
) -> None:
    request = request_for()
    with (
        failing(lambda target, before: target.name == name),
        pytest.raises(RunDirectoryError, match=f"run is complete.*{name}.*no space left"),
    ):
        train(request)
    assert train(request).resumed_from == 6
    assert {f"lora_weights/{name}", f"full_models/{name}"} & left_in(request.run_dir).files


def test_models_that_can_not_be_written_hold_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many epochs they are of, and however often they are tried."""
    files = RunDirectory(UPath(tmp_path), tmp_path)
    for step in range(1, 21):
        adapter = Adapter({}, AdapterConfig(2, 4.0).plain(), step, step, 1.0, "debug")
        owed = Checkpoint(adapter, {}, Progress(step=step), {}, [f"checkpoint_epoch_{step}"])
        save_checkpoint(owed, files.owed(step))
    tried, pauses = list[str](), list[float]()

    def write(checkpoint: Checkpoint, owed: UPath) -> None:
        tried.extend(checkpoint.owed)
        raise OSError(28, "No space left on device", str(owed))

    models = FullModels(files, BaseModel("debug", tmp_path), None, Failures())
    monkeypatch.setattr(models, "_write", write)
    monkeypatch.setattr(models.background, "_pause", pauses.append)
    for _ in range(3):
        models.write_owed()
        models.background.drain()
    models.background.close(5.0)
    assert pauses == list(background.BACKGROUND_DELAYS_S)
    twice = ["checkpoint_epoch_1", "checkpoint_epoch_2"]
    assert tried == [*2 * twice[:1], *twice, *twice, *twice]  # the first with its delays, and each pass two
    assert len(files.owed_checkpoints()) == 20


@pytest.mark.parametrize(("error", "is_kept"), [(OSError(5, "Input/output error"), True), (ValueError("cut"), False)])
def test_owed_models_outlive_a_disk_that_fails_to_read_them(
    error: Exception, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunDirectory(UPath(tmp_path), tmp_path)
    adapter = Adapter({}, AdapterConfig(2, 4.0).plain(), 1, 1, 1.0, "debug")
    save_checkpoint(Checkpoint(adapter, {}, Progress(step=1), {}, ["checkpoint_epoch_1"]), files.owed(1))

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tensor_files, "load", load)
    models = FullModels(files, BaseModel("debug", tmp_path), None, Failures())
    models.write_owed()
    models.background.drain()
    models.background.close(5.0)
    assert files.owed(1).exists() == is_kept
