"""Training on several GPUs of this machine: start one worker per GPU under torchrun, and follow their reports."""

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
from musicgen_core.errors import Cancelled, DeviceError, MusicgenError, TrainingError
from musicgen_core.language import message, stored_message
from musicgen_core.process import python_path
from musicgen_core.stages import Stage, announce, pass_on
from musicgen_core.training.processes.ipc import RESULT, ReportReader, revive, write_request
from musicgen_core.training.request import TrainRequest, TrainResult

logger = logging.getLogger(__name__)

GRACE = 20.0
"""Seconds from SIGTERM to SIGKILL, for saving latest.pt; Prefect kills this process after 30."""
GRACE_BEFORE_START = 3.0
"""The same before the first step, while there is nothing to save."""
PACE = 0.1
"""Seconds between two reads of the workers' reports."""
RESUME = message("Run the same command again: it resumes from the last checkpoint")


def launch(
    request: TrainRequest,
    gpus: int,
    on_start: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[dict[str, float]], None] = lambda row: None,
    cancelled: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str | None], None] = lambda reason: None,
    on_prior: Callable[[int, int], None] = lambda done, total: None,
    worker_module: str = "musicgen_core.training.processes.worker",
) -> TrainResult:
    """Train in `gpus` processes of this machine, and return the result.

    No worker outlives this call. If this process is killed, the workers end automatically within seconds. Arguments
    that aren't listed are those of `train`.

    Args:
        gpus: number of processes, each with a GPU of its own; with device `cpu` they share the CPU.
        cancelled: asked several times a second; if true, the workers save and stop.

    Raises:
        DeviceError: this machine has fewer GPUs.
        MusicgenError: the error that a worker raised; TrainingError with its rank and last lines if a worker died.
        Cancelled: `cancelled` returned true, or the workers received SIGTERM.
    """
    require_gpus(request.device, gpus)
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
        finally:  # also after KeyboardInterrupt, and TerminationSignal, with which Prefect ends a run
            workers.stop()


def require_gpus(device: str, gpus: int) -> None:
    """Check that this machine has as many GPUs as requested; the number of processes on a CPU is not limited.

    Raises:
        DeviceError: it has fewer.
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
        threads = str(max(1, (os.cpu_count() or 1) // gpus))  # torchrun's own default is 1
        with open(self._torchrun_log, "wb") as log:
            # Workers end when stdin closes. A session of its own, so that Ctrl-C reaches only this process.
            self._torchrun = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": python_path()},
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
        """Read the reports since the last call, and pass them to the callbacks."""
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
                    self._result = RESULT.validate_python(report["result"])

    def result(self) -> TrainResult:
        """Return the result once all processes have ended, or raise the error that explains the failure best."""
        if self._result is not None:
            return self._result
        causes = [error for error in self._errors if not error["is_consequence"]]
        causes.sort(key=lambda error: error["kind"] == Cancelled.__name__)  # an error explains more
        if causes:
            raise revive(causes[0])
        if self.was_cancelled:
            raise Cancelled(f"the training was cancelled{self._when()}, before it had saved that. {RESUME}")
        if (death := self._death()) is not None:
            raise death
        if self._errors:
            raise revive(self._errors[0])
        found = message(
            "torchrun ended with {ending}{when}: {tail}",
            ending=_ending(self._torchrun.returncode),
            when=self._when(),
            tail=_tail(self._torchrun_log),
        )
        raise TrainingError(found, RESUME)

    def stop(self) -> None:
        """End every process: with SIGTERM, and with SIGKILL after the grace period. Idempotent."""
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
            # Workers have sessions of their own and survive a killed torchrun; otherwise it has waited for them.
            with suppress(ProcessLookupError):
                self._torchrun.kill()
            self.follow(  # for the pids of workers that have just started
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
        """Return the error of the rank that died first, as torchrun logged it; None if no rank died."""
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

    def _when(self) -> str:
        return "" if self._step is None else message(" after step {step}", step=self._step)


def _ending(code: int) -> str:
    if code >= 0:
        return message("exit code {code}", code=code)
    return message("signal {name}", name=signal.Signals(-code).name)


def _tail(path: Path | None, lines: int = 10) -> str:
    """Return the last lines of a log."""
    if path is None or not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").strip().splitlines()[-lines:])[-2000:]
