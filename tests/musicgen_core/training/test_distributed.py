"""Collective operations of two real processes: over Gloo, and over NCCL where there are two GPUs."""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import musicgen_core
from musicgen_core.errors import DeviceError
from musicgen_core.training.processes.distributed import LostRank, World


class Ranks:
    """Two processes of one world; `ask("sum", (a,), (b,))` calls that on each with its own arguments."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("distributed_rank.py")), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={
                    **os.environ,
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
                    "PYTHONPATH": str(Path(musicgen_core.__file__).parents[1]),
                },
            )
            for rank in range(2)
        ]

    def send(self, rank: int, method: str, *arguments: Any) -> None:
        stdin = self.processes[rank].stdin
        assert stdin is not None
        pickle.dump((method, *arguments), stdin)
        stdin.flush()

    def receive(self, rank: int) -> Any:
        stdout = self.processes[rank].stdout
        assert stdout is not None
        return pickle.load(stdout)

    def ask(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        for rank, of_rank in enumerate(arguments or ((), ())):
            self.send(rank, method, *of_rank)
        return [self.receive(rank) for rank in range(2)]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two GPUs")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=TWO_GPUS)])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    pair = Ranks(request.param)
    yield pair
    pair.end()


def test_each_process_knows_its_place(ranks: Ranks) -> None:
    devices = ["cpu", "cpu"] if ranks.device == "cpu" else ["cuda:0", "cuda:1"]
    assert ranks.ask("describe") == [(0, 2, True, devices[0]), (1, 2, False, devices[1])]


@pytest.mark.parametrize("how", ["sum", "all_reduce"])
def test_sums_are_the_same_everywhere(ranks: Ranks, how: str) -> None:
    first, second = ranks.ask(how, (torch.tensor([1.0, 2.0]),), (torch.tensor([10.0, 20.0]),))
    assert first.tolist() == second.tolist() == [11.0, 22.0]


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
def test_what_one_rank_says_all_hear(ranks: Ranks, flags: tuple[bool, bool]) -> None:
    assert ranks.ask("any", (flags[0],), (flags[1],)) == [any(flags)] * 2


def test_the_highest_of_any_rank_is_the_same_everywhere(ranks: Ranks) -> None:
    assert ranks.ask("highest", (1,), (2,)) == [2, 2]


def test_objects_come_from_the_main_rank(ranks: Ranks) -> None:
    assert ranks.ask("broadcast_object", ({"step": 7},), ("not looked at",)) == [{"step": 7}] * 2


def test_a_barrier_holds_until_the_last_is_there(ranks: Ranks) -> None:
    ranks.send(0, "barrier")
    stdout = ranks.processes[0].stdout
    assert not select.select([stdout], [], [], 0.5)[0]
    ranks.send(1, "barrier")
    assert [ranks.receive(0), ranks.receive(1)] == [None, None]


def test_a_dead_rank_is_noticed_at_once_and_named_as_lost() -> None:
    pair = Ranks()
    pair.ask("barrier")
    pair.processes[1].kill()
    pair.send(0, "any", False)
    error = pair.receive(0)
    assert isinstance(error, LostRank) and "rank 0 can't reach" in error.found and "again" in error.next_step
    pair.end()


def test_all_leave_in_peace() -> None:
    pair = Ranks()
    pair.ask("barrier")  # who leaves while the other one still connects would break that connection
    pair.send(0, "leave")
    pair.send(1, "leave")
    assert [process.wait(120) for process in pair.processes] == [0, 0]
    pair.end()


def test_alone_nothing_happens_and_no_group_is_made() -> None:
    gradient, value = torch.ones(2), object()
    with World.alone() as world:
        assert world.is_main
        world.all_reduce(gradient)
        world.barrier()
        assert gradient.tolist() == [1, 1]
        assert world.sum(gradient) is gradient
        assert world.broadcast_object(value) is value
        assert (world.any(True), world.any(False)) == (True, False)
    assert not torch.distributed.is_initialized()


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment(torch.device("cpu")) == World.alone()


def test_more_processes_than_gpus_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(DeviceError, match="no GPU of its own"):
        World.from_environment(torch.device("cuda"))
