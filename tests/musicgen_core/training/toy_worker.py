"""A worker without a model, for the tests of launching: `tokens` of the request selects its behaviour."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from musicgen_core.errors import Cancelled, TokensError
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.processes.worker import end, main
from musicgen_core.training.request import TrainRequest, TrainResult

logger = logging.getLogger("musicgen_core.toy")


def train(
    request: TrainRequest,
    on_start: Callable[[int, int], None],
    on_step: Callable[[dict[str, float]], None],
    cancelled: Callable[[], bool],
    world: World,
    on_wait: Callable[[str | None], None],
    on_prior: Callable[[int, int], None],
) -> TrainResult:
    """Steps without end, or three of them. In the run directory: `saved`, for latest.pt; `steps`, a dot for each."""
    scenario, run_dir = request.tokens, Path(request.run_dir)
    steps = 3 if scenario == "three steps" else 10_000
    logger.info("rank %d trains", world.rank)
    logger.warning("rank %d warns", world.rank)
    if scenario == "bad tokens" and not world.is_main:
        raise TokensError("no shard in here", "Tokenize first")
    on_prior(1, 2)
    on_start(0, steps)
    for step in range(1, steps + 1):
        if scenario == "deaf":
            time.sleep(0.1)
            on_step({"step": step})
            continue
        if world.any(cancelled()):
            if world.is_main:
                run_dir.joinpath("saved").write_text(str(step - 1))
            raise Cancelled(f"cancelled after step {step - 1}")
        if scenario == "bug" and step == 3 and world.rank == 1:
            raise ValueError("what nobody thought of")
        if scenario == "killed" and step == 3 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks = world.sum(torch.tensor([world.rank + 1.0])).item()
        on_step({"step": step, "ranks": ranks})
        if world.is_main:
            with open(run_dir / "steps", "a") as file:
                file.write(".")
        time.sleep(0.05)
    on_wait("no room")
    on_wait(None)
    return TrainResult(request.run_dir, steps, 1, 0.5, 1, 1.0, 0.5, 0)


if __name__ == "__main__":
    end(main(train=train))
