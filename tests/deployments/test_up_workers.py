"""The workers of `up`: one for each GPU that is visible, and one for tokenizing."""

from __future__ import annotations

import pytest

from deployments.up import visible_gpus, worker_commands


def test_each_gpu_and_tokenizing_get_a_worker_with_one_job() -> None:
    first, second, tokenizing = worker_commands(None, ["0", "1"])
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for _, environment in (first, second, tokenizing)]
    assert gpus == ["0", "1", "1"]
    for command, _ in (first, second, tokenizing):
        assert command[command.index("--limit") + 1] == "1"
    queues = [command[command.index("--work-queue") + 1] for command, _ in (first, second, tokenizing)]
    assert queues == ["default", "default", "tokenizing"]
    assert len({command[-1] for command, _ in (first, second, tokenizing)}) == 3  # names


def test_a_single_worker_sees_every_gpu_and_many_share_them() -> None:
    [alone, _] = worker_commands(1, ["0", "1", "2", "3"])
    assert alone[1] == {}
    assert [environment for _, environment in worker_commands(3, ["5"])[:3]] == [{"CUDA_VISIBLE_DEVICES": "5"}] * 3
    assert len(worker_commands(None, [])) == 2


def test_gpus_are_those_that_were_made_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f3a")
    assert visible_gpus() == ["2", "GPU-8f3a"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert visible_gpus() == []
