"""The estimated size of a run's files, compared with their real size and with the free space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import RunDirectoryError, RunDirectoryUnavailable
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.files.disk_space import Plan, Sizes, bytes_to_write, check_disk_space
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train

LARGE = Sizes(full_model=6_500_000_000, trained=82_000_000)


def directory(place: str | Path) -> RunDirectory:
    root = storage.as_path(place)
    return RunDirectory(root, Path(str(root)))


def test_musicgen_large_takes_seven_full_models(tmp_path: Path) -> None:
    settings = TrainSettings(save_every_steps=10**6)
    needed = bytes_to_write(directory(tmp_path), settings, LARGE, Plan(epochs=5, steps=40_000))
    assert 7 * LARGE.full_model < needed < 7.6 * LARGE.full_model


@pytest.mark.parametrize(
    "given", [{}, {"keep_last": 1}, {"full_models": "best_and_final"}, {"full_models": "none"}], ids=str
)
def test_the_estimate_is_what_a_training_writes(
    request_for: Callable[..., TrainRequest], debug_model: BaseModel, given: dict[str, Any]
) -> None:
    request = request_for(num_epochs=3, save_every_steps=2, **given)
    train(request)
    run_dir = Path(request.run_dir)
    tensors = load_adapter(storage.as_path(run_dir / "lora_weights" / "final_lora.pt")).lora.values()
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    sizes = Sizes(debug_model.lm_path.stat().st_size, adapter)
    estimate = bytes_to_write(directory(run_dir / "empty"), request.settings, sizes, Plan(3, 9))
    written = sum(path.stat().st_size for path in run_dir.rglob("*.pt"))
    # latest.pt beside itself, and what two epochs' full models are made from
    passing = 3 * adapter if given.get("full_models") == "none" else 9 * adapter
    assert abs(written + passing - estimate) < 0.15 * estimate  # names weigh beside tensors this small


def test_what_lies_there_is_not_counted_again(request_for: Callable[..., TrainRequest], debug_model: BaseModel) -> None:
    request = request_for(num_epochs=2, save_every_steps=2)
    files, sizes, plan = directory(request.run_dir), Sizes(10**9, 1), Plan(2, 6)
    before = bytes_to_write(files, request.settings, sizes, plan)
    train(request)
    after = bytes_to_write(files, request.settings, sizes, plan)
    assert before // 10**9 == 4 and after // 10**9 == 1  # one beside the file that it replaces


def test_what_going_back_moves_away_is_counted_again(
    request_for: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(num_epochs=2, save_every_steps=2)
    sizes, plan = Sizes(10**9, 1), Plan(2, 6)
    before = bytes_to_write(directory(request.run_dir), request.settings, sizes, plan)
    train(request)
    files, estimates = directory(request.run_dir), list[int]()
    monkeypatch.setattr(
        "musicgen_core.training.session.check_disk_space",
        lambda files, settings, _, plan, gone: estimates.append(bytes_to_write(files, settings, sizes, plan, gone)),
    )
    train(dataclasses.replace(request, resume=f"{files.root}/checkpoint_step_2.pt"))
    # All four models; of what passes or is small, checkpoint_step_2.pt alone stays.
    assert before - estimates[0] == 3


def test_files_that_do_not_fit_are_refused_with_smaller_options(tmp_path: Path) -> None:
    huge = Sizes(full_model=10**17, trained=10**3)
    with pytest.raises(RunDirectoryUnavailable, match=r"will write 700,000\.\d TB to .* GB are free") as refused:
        check_disk_space(directory(tmp_path / "not" / "there"), TrainSettings(), huge, Plan(5, 1000))
    assert "--keep-last 1 (300,000.0 TB)" in refused.value.next_step
    assert "--full-models best_and_final (200,000.0 TB)" in refused.value.next_step
    assert "--full-models none (20.0 kB)" in refused.value.next_step
    check_disk_space(directory(tmp_path), TrainSettings(full_models="none"), huge, Plan(5, 1000))


def test_a_setting_that_saves_nothing_is_not_offered(tmp_path: Path) -> None:
    huge = Sizes(full_model=1, trained=10**17)
    with pytest.raises(RunDirectoryError) as refused:
        check_disk_space(
            directory(tmp_path), TrainSettings(full_models="none", save_every_steps=10), huge, Plan(1, 100)
        )
    assert "--keep-last 1" in refused.value.next_step and "--full-models" not in refused.value.next_step


def test_object_stores_have_room() -> None:
    check_disk_space(directory("memory://bucket/run"), TrainSettings(), Sizes(10**7, 10**5), Plan(10**9, 10**12))


@given(st.integers(1, 30), st.integers(1, 5000), st.none() | st.integers(1, 9))
def test_keeping_fewer_never_takes_more(epochs: int, steps: int, keep_last: int | None) -> None:
    files, plan = directory("/nowhere/run"), Plan(epochs, steps)

    def needed(**given: Any) -> int:
        return bytes_to_write(files, TrainSettings(**given), LARGE, plan)

    everything = needed(keep_last=None)
    assert needed(keep_last=keep_last) <= everything
    assert needed(full_models="none") < needed(full_models="best_and_final") <= needed(keep_last=keep_last)


def test_a_remote_run_directory_needs_local_space_for_one_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = RunDirectory(storage.as_path("memory://runs/first"), tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=2_000_000_000))
    check_disk_space(files, TrainSettings(full_models="none"), LARGE, Plan(5, 40_000))
    with pytest.raises(RunDirectoryError, match=r"7\.0 GB at a time .* on their way to memory://runs/first") as refused:
        check_disk_space(files, TrainSettings(), LARGE, Plan(5, 40_000))
    assert "TMPDIR" in refused.value.next_step
