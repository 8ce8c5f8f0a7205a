"""One process of a training run on several GPUs, as torchrun starts it.

On one machine `launch` starts torchrun. Across machines, start it by hand, with the same command on each:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id NAME --rdzv-endpoint FIRST_HOST:29500 \
        -m musicgen_core.training.processes.worker REQUEST.json

REQUEST.json is a TrainRequest: `{"tokens": "gs://…", "run_dir": "gs://…", "model": "facebook/musicgen-large",
"settings": {"num_epochs": 5}}`, with paths that every machine sees; `write_request` makes one from Python. Machines
with several network interfaces may need GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.

SIGTERM, SIGINT and SIGHUP to torchrun on any of the machines end the run after the current step, with `latest.pt`
saved. Exit code 0: done; 143: stopped by a signal; 1: failed, with the reason as the last line on stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from musicgen_core.errors import Cancelled, MusicgenError
from musicgen_core.stages import heard_by
from musicgen_core.training.processes.ipc import RESULT, ReportHandler, Reports, read_request
from musicgen_core.training.request import TrainResult

ORPHAN_GRACE = 5.0
"""Seconds that a worker without its launcher has for the current step and latest.pt: its run directory stays locked
until then, and the run may be restarted soon."""
CAUSE_FIRST = 5.0
"""Seconds that a rank waits after it lost the others: torchrun reports the first rank that ends as the cause."""
STOPPED = 128 + signal.SIGTERM

logger = logging.getLogger(__name__)


class _Stop:
    """A request to end this process. Not a threading.Event, whose lock could be held when a signal arrives."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self, *_: object) -> None:
        self._asked = True

    def is_asked(self) -> bool:
        return self._asked


def main(arguments: Sequence[str] | None = None, train: Callable[..., TrainResult] | None = None) -> int:
    """Run this process's part of a training run.

    Args:
        train: the function that trains; by default `training.train.train`, whose signature it must have.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m musicgen_core.training.processes.worker")
    parser.add_argument("request", type=Path, help="a TrainRequest as JSON")
    parser.add_argument("--reports", type=Path, help="given by launch(), which reads this file and holds stdin open")
    given = parser.parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    stop = _Stop()
    for chosen in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # those that torchrun passes on
        signal.signal(chosen, stop.ask)
    _end_with_parents(stop, has_lifeline=given.reports is not None)
    reports = Reports(given.reports, rank) if given.reports else None
    if reports is not None:
        reports.send("process", pid=os.getpid())
    _set_up_logging(rank, reports)
    # torch takes seconds to import: only now, when signals are handled and the process ends with its parents
    from musicgen_core.training.processes.distributed import LostRank

    try:
        _train(given.request, reports, stop, train)
    except Cancelled as error:
        _report(error, rank, reports)
        return STOPPED
    except LostRank as error:
        traceback.print_exc()
        _report(error, rank, reports, is_consequence=True)
        deadline = time.monotonic() + CAUSE_FIRST
        while not stop.is_asked() and time.monotonic() < deadline:
            time.sleep(0.1)
        return 1
    except MusicgenError as error:
        _report(error, rank, reports)
        return 1
    except Exception:  # its traceback goes to stderr, of which launch() shows the end
        traceback.print_exc()
        return 1
    return 0


def _train(path: Path, reports: Reports | None, stop: _Stop, train: Callable[..., TrainResult] | None) -> None:
    from musicgen_core.devices import pick_device
    from musicgen_core.training.processes.distributed import World

    request = read_request(path)
    if train is None:
        from musicgen_core.training import train as train_module

        train = train_module.train
    with World.from_environment(pick_device(request.device)) as world:

        def send(event: str, **values: Any) -> None:
            if reports is not None and world.is_main:
                reports.send(event, **values)

        with heard_by(lambda stage: send("stage", stage=asdict(stage))):
            result = train(
                request,
                on_start=lambda done, total: send("start", done=done, total=total),
                on_step=lambda row: send("step", row=row),
                cancelled=stop.is_asked,
                world=world,
                on_wait=lambda reason: send("wait", reason=reason),
                on_prior=lambda done, total: send("prior", done=done, total=total),
            )
        send("result", result=RESULT.dump_python(result, mode="json"))


def _report(error: MusicgenError | Cancelled, rank: int, reports: Reports | None, is_consequence: bool = False) -> None:
    if reports is not None:
        reports.send_error(error, is_consequence)
    else:
        print(f"error: rank {rank}: {error}", file=sys.stderr)


def _set_up_logging(rank: int, reports: Reports | None) -> None:
    """Log from INFO on rank 0; on the others only warnings, with their rank."""
    handler = ReportHandler(reports) if reports is not None else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if rank == 0:
        logging.getLogger("musicgen_core").setLevel(logging.INFO)


def _end_with_parents(stop: _Stop, has_lifeline: bool) -> None:
    """End this process soon after torchrun, or the process that launched torchrun, has ended.

    torchrun gives each worker a session of its own and passes on no file but stdin, of which launch() holds the other
    end: it closes when that process ends.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    torchrun = os.getppid()

    def watch() -> None:
        while os.getppid() == torchrun:
            if has_lifeline and select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
                break
            if not has_lifeline:
                time.sleep(1.0)
        stop.ask()
        time.sleep(ORPHAN_GRACE)
        os.killpg(0, signal.SIGKILL)  # data loaders too

    threading.Thread(target=watch, name="end with parents", daemon=True).start()


def end(exit_code: int) -> NoReturn:
    """End this process; after a failure without cleaning up, since NCCL's threads may wait for ranks that ended."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code:
        os._exit(exit_code)
    sys.exit(0)


if __name__ == "__main__":
    end(main())
