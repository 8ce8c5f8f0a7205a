"""Launching with real torchrun, real processes and real signals; only the training function is a toy."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import musicgen_core
from musicgen_core.config import TrainSettings
from musicgen_core.errors import Cancelled, ConfigError, DeviceError, TokensError, TrainingError
from musicgen_core.training.processes import launch as module
from musicgen_core.training.processes import worker
from musicgen_core.training.processes.ipc import ReportReader, Reports, read_request, write_request
from musicgen_core.training.processes.launch import launch
from musicgen_core.training.request import TrainRequest, TrainResult

pytestmark = pytest.mark.timeout(900)
Launch = Callable[..., TrainResult]
HERE = Path(__file__).parent
MARK = "MUSICGEN_TEST_MARK"


class Processes:
    """Those that a test started, however indirectly: they inherit its mark."""

    def __init__(self, mark: str) -> None:
        self.mark = f"{MARK}={mark}".encode()

    def running(self, command: str = "") -> list[int]:
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdecimal()
            and self.mark in _read(folder / "environ").split(b"\0")
            and command.encode() in _read(folder / "cmdline")
        ]

    def are_gone_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.running()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended, or is somebody else's
        return b""


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
        return launch(request_for(scenario, tmp_path), 2, worker_module="toy_worker", **given)

    return run


def request_for(scenario: str, run_dir: Path) -> TrainRequest:
    return TrainRequest(scenario, str(run_dir), "debug", TrainSettings(), device="cpu")


def saved_step(run_dir: Path) -> int:
    return int((run_dir / "saved").read_text())


def wait_for_steps(run_dir: Path, count: int) -> None:
    """Until the toy has done so many steps more."""
    steps = run_dir / "steps"
    enough = (steps.stat().st_size if steps.exists() else 0) + count
    deadline = time.monotonic() + 240
    while not steps.exists() or steps.stat().st_size < enough:
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)


# What goes back and forth


@given(
    request=st.builds(
        TrainRequest,
        tokens=st.text(),
        run_dir=st.text(),
        model=st.text(),
        settings=st.builds(
            TrainSettings,
            learning_rate=st.floats(1e-9, 1),
            batch_size=st.one_of(st.just("auto"), st.integers(1, 64)),
            max_steps=st.one_of(st.none(), st.integers(1, 10**9)),
            base_precision=st.sampled_from(["bf16", "fp8"]),
            compile_blocks=st.sampled_from([None, True, False]),
            seed=st.integers(0, 2**32 - 1),
        ),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        init_adapter=st.one_of(st.none(), st.text()),
    )
)
@settings(max_examples=50, deadline=None)
def test_a_request_comes_out_of_its_file_as_it_went_in(
    request: TrainRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "request.json"
    write_request(request, path)
    assert read_request(path) == request


def test_a_request_written_by_hand_needs_only_what_has_no_default(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"tokens": "t", "run_dir": "r", "model": "m", "settings": {"lora_r": 16}}))
    assert read_request(path) == TrainRequest("t", "r", "m", TrainSettings(lora_r=16))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": 1}, "tokens"),
        ({"resum": "never"}, "resum"),
        ({"settings": {"lora_r": 0, "sed": 1}}, "settings.lora_r.*settings.sed"),
    ],
)
def test_every_mistake_in_a_request_is_named(tmp_path: Path, wrong: dict[str, Any], named: str) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"tokens": "t", "run_dir": "r", "model": "m", "settings": {}, **wrong}))
    with pytest.raises(ConfigError, match=named):
        read_request(path)


def test_a_request_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "request.json")):
        read_request(tmp_path / "request.json")


def test_a_report_is_read_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    reader = ReportReader(path)
    assert not list(reader.new())
    Reports(path, 0).send("step", row={"step": 1})
    Reports(path, 1).send("process", pid=7)
    with open(path, "ab") as file:
        file.write(b'{"rank": 0, "ev')
    assert [report["event"] for report in reader.new()] == ["step", "process"]
    with open(path, "ab") as file:
        file.write(b'ent": "start"}\n')
    assert list(reader.new()) == [{"rank": 0, "event": "start"}]
    assert not list(reader.new())


# GPUs


def test_more_gpus_than_there_are_is_an_error_before_anything_starts(processes: Processes, tmp_path: Path) -> None:
    there = torch.cuda.device_count()
    for device in ("auto", "cuda"):
        request = TrainRequest("t", str(tmp_path), "debug", TrainSettings(), device=device)
        with pytest.raises(DeviceError, match=f"--gpus {there + 2} was asked for") as caught:
            launch(request, there + 2, worker_module="toy_worker")
        assert "CUDA_VISIBLE_DEVICES" in caught.value.next_step
    assert not processes.running()


# Runs


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
    told = {(record.levelname, record.getMessage()) for record in caplog.records if record.name == "musicgen_core.toy"}
    # rank 0 tells what happens, the others what is wrong
    assert told == {
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
    assert "goes on from the last checkpoint" in caught.value.next_step
    assert not processes.running()


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_within_seconds_and_is_named(toy: Launch, processes: Processes) -> None:
    died = []
    with pytest.raises(TrainingError) as caught:
        toy("killed", on_step=lambda row: died.append(time.monotonic()))
    assert time.monotonic() - died[-1] < 120  # gloo itself would wait for half an hour
    assert caught.value.found == "rank 1 of 2 ended with signal SIGKILL after step 2"
    assert "goes on from the last checkpoint" in caught.value.next_step
    assert not processes.running()


@pytest.mark.slow
def test_cancelling_saves_and_leaves_no_process(toy: Launch, processes: Processes, tmp_path: Path) -> None:
    steps: list[float] = []
    with pytest.raises(Cancelled, match="cancelled after step"):
        toy("endless", on_step=lambda row: steps.append(row["step"]), cancelled=lambda: len(steps) >= 3)
    assert saved_step(tmp_path) == steps[-1] >= 3
    assert not processes.running()


@pytest.mark.slow
def test_cancelling_before_the_start_does_not_wait(
    toy: Launch, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 200.0)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        toy("endless", cancelled=lambda: True)
    assert time.monotonic() - started < 100
    assert not processes.running()


@pytest.mark.slow
def test_workers_that_do_not_hear_are_killed(
    toy: Launch, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 2.0)
    steps: list[float] = []
    with pytest.raises(Cancelled, match=r"cancelled after step .* before it had saved"):
        toy("deaf", on_step=lambda row: steps.append(row["step"]), cancelled=lambda: bool(steps))
    assert processes.are_gone_within(120)


class TerminationSignal(BaseException):
    """As Prefect raises when a run is to end."""


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    raise TerminationSignal


@pytest.mark.slow
@pytest.mark.parametrize(("end", "error"), [(interrupt, KeyboardInterrupt), (terminate, TerminationSignal)])
def test_whatever_ends_the_launcher_saves_and_leaves_no_process(
    toy: Launch, processes: Processes, tmp_path: Path, end: Callable[[], None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        toy("endless", on_step=lambda row: end())
    assert saved_step(tmp_path) >= 1
    assert not processes.running()


@pytest.mark.slow
def test_a_second_interrupt_kills_all_processes_at_once(
    toy: Launch, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 200.0)
    interrupted, waits = [], threading.Event()
    whole = module._Workers.stop

    def stop(workers: Any) -> None:
        waits.set()
        whole(workers)

    def interrupt_again() -> None:
        assert waits.wait(100)
        time.sleep(1.0)  # now it waits for the workers
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_twice(row: dict[str, float]) -> None:
        threading.Thread(target=interrupt_again).start()
        interrupted.append(time.monotonic())
        interrupt()

    monkeypatch.setattr(module._Workers, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        toy("deaf", on_step=interrupt_twice)
    assert time.monotonic() - interrupted[0] < 100
    assert processes.are_gone_within(120)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["endless", "deaf"])
def test_workers_end_by_themselves_when_the_launcher_is_killed(
    processes: Processes, tmp_path: Path, scenario: str
) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from musicgen_core.training.processes.ipc import read_request\n"
        "from musicgen_core.training.processes.launch import launch\n"
        "launch(read_request(Path(sys.argv[1])), 2, worker_module='toy_worker',"
        " on_step=lambda row: print(row, flush=True))"
    )
    write_request(request_for(scenario, tmp_path), tmp_path / "request.json")
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "request.json")],
        env={**os.environ, "PYTHONPATH": f"{Path(musicgen_core.__file__).parents[1]}:{HERE}"},
        stdout=subprocess.PIPE,
    )
    assert launcher.stdout is not None and launcher.stdout.readline()
    assert len(processes.running("toy_worker")) >= 2
    launcher.kill()
    launcher.wait()
    assert processes.are_gone_within(worker.ORPHAN_GRACE + 120)
    assert (tmp_path / "saved").exists() == (scenario == "endless")


@pytest.mark.slow
def test_nothing_is_left_when_torchrun_is_killed(toy: Launch, processes: Processes) -> None:
    def kill_torchrun(row: dict[str, float]) -> None:
        for pid in processes.running("torch.distributed.run"):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match="torchrun ended with signal SIGKILL after step"):
        toy("deaf", on_step=kill_torchrun)
    assert processes.are_gone_within(120)


def start_by_hand(tmp_path: Path, processes: int, *options: str) -> subprocess.Popen[str]:
    """torchrun as a person starts it, until its first worker trains."""
    write_request(request_for("endless", tmp_path), tmp_path / "request.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options]
    command += ["--rdzv-backend", "c10d", "--rdzv-id", "by-hand"]
    command += ["-m", "toy_worker", str(tmp_path / "request.json")]
    environment = {**os.environ, "PYTHONPATH": f"{Path(musicgen_core.__file__).parents[1]}:{HERE}"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(line: str, torchrun: subprocess.Popen[str]) -> None:
    assert torchrun.stderr is not None
    next(said for said in torchrun.stderr if line in said)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_workers_of_a_manual_torchrun_save_when_it_is_stopped(
    processes: Processes, tmp_path: Path, chosen: signal.Signals
) -> None:
    torchrun = start_by_hand(tmp_path, 2, "--nnodes", "1", "--rdzv-endpoint", "localhost:0")
    wait_for("rank 0 warns", torchrun)
    time.sleep(3)
    wait_for_steps(tmp_path, 4)  # without stdin there is no lifeline, and they go on
    assert torchrun.poll() is None
    torchrun.send_signal(chosen)
    torchrun.communicate(timeout=240)
    assert processes.are_gone_within(worker.ORPHAN_GRACE + 120)
    assert saved_step(tmp_path) > 3


@pytest.mark.slow
def test_machines_train_together_and_ending_one_saves_and_ends_all(processes: Processes, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"localhost:{free.getsockname()[1]}"
    machines = [start_by_hand(tmp_path, 1, "--nnodes", "2", "--rdzv-endpoint", place) for _ in range(2)]
    for machine in machines:
        wait_for("warns", machine)
    wait_for_steps(tmp_path, 4)
    machines[1].terminate()
    for machine in machines:
        machine.communicate(timeout=240)
    assert saved_step(tmp_path) > 3
    assert processes.are_gone_within(120)
