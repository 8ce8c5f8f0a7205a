"""Launching with real torchrun and real processes: results and errors. Only the training function is a toy."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core.config import TrainSettings
from musicgen_core.errors import DeviceError, TokensError, TrainingError
from musicgen_core.training.processes.launch import launch
from musicgen_core.training.request import TrainRequest, TrainResult
from tests.musicgen_core.training.launching import Launch, Processes

pytestmark = pytest.mark.timeout(900)


def test_more_gpus_than_there_are_is_an_error_before_anything_starts(processes: Processes, tmp_path: Path) -> None:
    there = torch.cuda.device_count()
    for device in ("auto", "cuda"):
        request = TrainRequest("t", str(tmp_path), "debug", TrainSettings(), device=device)
        with pytest.raises(DeviceError, match=f"--gpus {there + 2} was asked for") as caught:
            launch(request, there + 2, worker_module="toy_worker")
        assert "CUDA_VISIBLE_DEVICES" in caught.value.next_step
    assert not processes.running()


def test_two_processes_train_and_the_launcher_receives_every_step(
    toy: Launch, processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []
    with caplog.at_level(logging.INFO, "musicgen_core.toy"):
        result = toy(
            "three steps",
            on_start=lambda *given: heard.append(given),
            on_step=heard.append,
            on_wait=heard.append,
            on_prior=lambda *given: heard.append(("prior", *given)),
        )
    assert heard == [("prior", 1, 2), (0, 3), *({"step": step, "ranks": 3.0} for step in (1, 2, 3)), "no room", None]
    assert result == TrainResult(str(tmp_path), 3, 1, 0.5, 1, 1.0, 0.5, 0)
    reported = {
        (record.levelname, record.getMessage()) for record in caplog.records if record.name == "musicgen_core.toy"
    }
    # rank 0 logs everything, the others only warnings
    assert reported == {
        ("INFO", "rank 0 trains"),
        ("WARNING", "rank 0 warns"),
        ("WARNING", "rank 1: rank 1 warns"),
    }
    assert not processes.running()


@pytest.mark.slow
def test_an_error_of_any_rank_is_the_same_error_here(toy: Launch, processes: Processes) -> None:
    with pytest.raises(TokensError) as caught:
        toy("bad tokens")
    assert (caught.value.found, caught.value.next_step) == ("no shard in here", "Tokenize first")
    assert not processes.running()


@pytest.mark.slow
def test_an_unknown_error_has_its_rank_and_the_end_of_its_traceback(toy: Launch, processes: Processes) -> None:
    with pytest.raises(TrainingError) as caught:
        toy("bug")
    assert caught.value.found.startswith("rank 1 of 2 ended with exit code 1 after step 2: ")
    assert caught.value.found.endswith("ValueError: what nobody thought of")
    assert "resumes from the last checkpoint" in caught.value.next_step
    assert not processes.running()


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_within_seconds_and_is_named(toy: Launch, processes: Processes) -> None:
    died = []
    with pytest.raises(TrainingError) as caught:
        toy("killed", on_step=lambda row: died.append(time.monotonic()))
    assert time.monotonic() - died[-1] < 120  # gloo itself would wait for half an hour
    assert caught.value.found == "rank 1 of 2 ended with signal SIGKILL after step 2"
    assert "resumes from the last checkpoint" in caught.value.next_step
    assert not processes.running()


@pytest.mark.slow
def test_nothing_is_left_when_torchrun_is_killed(toy: Launch, processes: Processes) -> None:
    def kill_torchrun(row: dict[str, float]) -> None:
        for pid in processes.running("torch.distributed.run"):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match="torchrun ended with signal SIGKILL after step"):
        toy("deaf", on_step=kill_torchrun)
    assert processes.are_gone_within(120)
