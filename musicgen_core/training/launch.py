"""Training on several GPUs of this machine: starts a worker for each under torchrun, and follows what they report."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from musicgen_core import storage
from musicgen_core.environment import python_path
from musicgen_core.errors import Cancelled, DeviceError, MusicgenError, TrainingError
from musicgen_core.language import message, stored_message
from musicgen_core.stages import Stage, announce, pass_on
from musicgen_core.training.ipc import ReportReader, revive, revive_result, write_request
from musicgen_core.training.request import TrainRequest, TrainResult

logger = logging.getLogger(__name__)

GRACE = 20.0
"""Seconds from SIGTERM to SIGKILL, in which latest.pt is saved. Prefect kills this process after 30."""
GRACE_BEFORE_START = 3.0
"""The same while there is nothing to save yet."""
PACE = 0.1
"""Seconds between looks at what the workers report."""
RESUME = message("Run the same command again: it goes on from the last checkpoint")


def launch(
    request: TrainRequest,
    gpus: int,
    on_start: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[dict[str, float]], None] = lambda row: None,
    cancelled: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str | None], None] = lambda reason: None,
    on_prior: Callable[[int, int], None] = lambda done, total: None,
    worker_module: str = "musicgen_core.training.worker",
) -> TrainResult:
    """Train in `gpus` processes of this machine; the same as `train` to who calls it.

    However this ends, no worker is left. Should this process be killed, they end by themselves within seconds.

    Args:
        gpus: processes, each with a GPU of its own; with device `cpu` they share the CPU.
        worker_module: what torchrun runs.

    Raises:
        DeviceError: there are fewer GPUs.
        MusicgenError: what a worker raised; or, where one died, TrainingError with its rank and its last words.
        Cancelled: `cancelled` said so, or somebody ended the workers with SIGTERM.
    """
    check_gpus(request.device, gpus)
    announce(message("starting {gpus} processes, which load PyTorch", gpus=gpus))
    with storage.scratch_folder() as scratch:
        workers = _Workers(request, gpus, scratch, worker_module)
        try:
            while workers.are_running():
                workers.follow(on_start, on_step, on_wait, on_prior)
                if cancelled():
                    workers.stop()
                    workers.was_cancelled = True
                    break
                time.sleep(PACE)
            workers.follow(on_start, on_step, on_wait, on_prior)
            return workers.result()
        finally:  # also after KeyboardInterrupt, and TerminationSignal, by which Prefect ends a run
            workers.stop()


def check_gpus(device: str, gpus: int) -> None:
    """Whether there are as many GPUs as asked for; processes on the CPU can be as many as one likes.

    Raises:
        DeviceError: there are fewer.
    """
    visible = torch.cuda.device_count()
    if device != "cpu" and visible < gpus:
        found = f"{visible} GPU is" if visible == 1 else f"{visible} GPUs are" if visible else "no GPU is"
        fewer = f"--gpus {visible}" if visible else "--device cpu"
        raise DeviceError(
            message("--gpus {gpus} was asked for, and {found} visible on this machine", gpus=gpus, found=found),
            message(
                "Use {fewer}, or check with nvidia-smi and CUDA_VISIBLE_DEVICES why there are not more", fewer=fewer
            ),
        )


class _Workers:
    """torchrun and the workers under it."""

    def __init__(self, request: TrainRequest, gpus: int, scratch: Path, module: str) -> None:
        self.was_cancelled = False
        self._gpus, self._logs = gpus, scratch / "logs"
        self._torchrun_log = scratch / "torchrun.log"
        self._reports = ReportReader(scratch / "reports.jsonl")
        self._pids: list[int] = []
        self._errors: list[dict[str, Any]] = []
        self._result: TrainResult | None = None
        self._step: int | None = None
        write_request(request, scratch / "request.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
        command += ["--redirects", "3", "--log-dir", str(self._logs), "-m", module]
        command += [str(scratch / "request.json"), "--reports", str(scratch / "reports.jsonl")]
        with open(self._torchrun_log, "wb") as log:
            # stdin is the workers' lifeline. A session of its own: Ctrl-C is for this process, which passes it on.
            self._torchrun = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_environment(gpus),
                start_new_session=True,
            )

    def are_running(self) -> bool:
        return self._torchrun.poll() is None

    def follow(
        self,
        on_start: Callable[[int, int], None],
        on_step: Callable[[dict[str, float]], None],
        on_wait: Callable[[str | None], None],
        on_prior: Callable[[int, int], None],
    ) -> None:
        """Take in what was reported since the last time."""
        for report in self._reports.new():
            match report["event"]:
                case "process":
                    self._pids.append(report["pid"])
                case "log":
                    logging.getLogger(report["name"]).log(report["level"], "%s", report["message"])
                case "start":
                    self._step = report["done"]
                    on_start(report["done"], report["total"])
                case "step":
                    self._step = int(report["row"]["step"])
                    on_step(report["row"])
                case "stage":
                    pass_on(Stage(**{**report["stage"], "text": stored_message(report["stage"]["text"])}))
                case "wait":
                    on_wait(report["reason"])
                case "prior":
                    on_prior(report["done"], report["total"])
                case "error":
                    self._errors.append(report)
                case "result":
                    self._result = revive_result(report["result"])

    def result(self) -> TrainResult:
        """What it came to, once nothing runs any more; else the error that explains it best."""
        if self._result is not None:
            return self._result
        causes = [error for error in self._errors if not error["is_consequence"]]
        causes.sort(key=lambda error: error["kind"] == Cancelled.__name__)  # an error says more
        if causes:
            raise revive(causes[0]["kind"], causes[0]["args"])
        if self.was_cancelled:
            raise Cancelled(f"the training was cancelled{self._when()}, before it had saved that. {RESUME}")
        raise (
            self._death()
            or self._lost()
            or TrainingError(
                message(
                    "torchrun ended with {ending}{when}: {tail}",
                    ending=_ending(self._torchrun.returncode),
                    when=self._when(),
                    tail=_tail(self._torchrun_log),
                ),
                RESUME,
            )
        )

    def stop(self) -> None:
        """End every process: in peace if they do so in time. Does nothing once they have ended."""
        try:
            if self.are_running():
                self._torchrun.terminate()  # it passes SIGTERM on to the workers
                self._torchrun.wait(GRACE if self._step is not None else GRACE_BEFORE_START)
        except subprocess.TimeoutExpired:
            pass  # killed below
        finally:
            self._kill()

    def _kill(self) -> None:
        if self._torchrun.poll() is None or self._torchrun.returncode == -signal.SIGKILL:
            # Workers lead sessions of their own, and are left when torchrun is killed; else it has waited for them.
            with suppress(ProcessLookupError):
                self._torchrun.kill()
            self.follow(  # for the pids of those just started
                lambda done, total: None, lambda row: None, lambda reason: None, lambda done, total: None
            )
            for pid in self._pids:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            self._pids.clear()
            self._torchrun.wait()
        assert self._torchrun.stdin is not None
        self._torchrun.stdin.close()

    def _death(self) -> MusicgenError | None:
        """The rank that torchrun saw die first."""
        log = self._torchrun_log.read_text(errors="replace")
        seen = re.search(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)", log)
        if seen is None or any(error["rank"] == int(seen[2]) for error in self._errors):
            return None
        code, rank = int(seen[1]), int(seen[2])
        words = _tail(next(self._logs.glob(f"**/{rank}/stderr.log"), None))
        return TrainingError(
            message(
                "rank {rank} of {gpus} ended with {ending}{when}{tail}",
                rank=rank,
                gpus=self._gpus,
                ending=_ending(code),
                when=self._when(),
                tail=f": {words}" if words else "",
            ),
            message("{resume}. What sends SIGKILL is mostly the system, out of memory", resume=RESUME)
            if code == -signal.SIGKILL
            else RESUME,
        )

    def _lost(self) -> MusicgenError | Cancelled | None:
        return revive(self._errors[0]["kind"], self._errors[0]["args"]) if self._errors else None

    def _when(self) -> str:
        return "" if self._step is None else message(" after step {step}", step=self._step)


def _environment(gpus: int) -> dict[str, str]:
    """This process's, with the project to import wherever it runs, and the CPU's cores divided among the workers."""
    threads = str(max(1, (os.cpu_count() or 1) // gpus))  # torchrun's own default is 1
    return {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": python_path()}


def _ending(code: int) -> str:
    if code >= 0:
        return message("exit code {code}", code=code)
    return message("signal {name}", name=signal.Signals(-code).name)


def _tail(path: Path | None, lines: int = 10) -> str:
    """The end of a log."""
    if path is None or not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").strip().splitlines()[-lines:])[-2000:]
