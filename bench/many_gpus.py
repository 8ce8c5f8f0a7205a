"""Training on one and on several GPUs: speed-up, equality of the losses, and recovery from a killed process.

    python -m bench.random_large MODEL
    python -m bench.many_gpus MODEL --workdir DIR [--gpus 2] [--steps 24] [--kill-at 12]

Trains on random codes, 30 s per clip, as `train --gpus N` does, with the same 16 clips per step. Then starts a run on
all GPUs, kills its last process (SIGKILL), and resumes it on one. Losses are compared step by step.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench.load_tokens import make_shards
from musicgen_core.config import TrainSettings
from musicgen_core.errors import MusicgenError
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import find_model
from musicgen_core.training.processes.launch import launch
from musicgen_core.training.request import TrainRequest

Rows = list[dict[str, float]]


def settings(gpus: int, given: argparse.Namespace) -> TrainSettings:
    return TrainSettings(
        gpus=gpus,
        max_steps=given.steps,
        base_precision=given.base_precision,
        lora_dropout=given.dropout,
        full_models="none",
        validation_fraction=0.02,
        sample_prompts=[],
        save_every_steps=max(2, given.kill_at // 2),
        **{"batch_size": given.batch_size, "gradient_accumulation_steps": 16 // gpus // given.batch_size}
        if given.batch_size
        else {},
    )


def trained(gpus: int, run_dir: Path, given: argparse.Namespace, kill_at: int | None = None) -> Rows:
    """Train and return a row per step; optionally kill one of the processes at a step."""
    rows: Rows = []

    def on_step(row: dict[str, float]) -> None:
        rows.append(row)
        if row["step"] == kill_at:
            os.kill(_worker(gpus - 1), signal.SIGKILL)

    request = TrainRequest(
        tokens=str(given.workdir / "tokens"),
        run_dir=str(run_dir),
        model=given.model,
        settings=settings(gpus, given),
        device=given.device,
    )
    began = time.monotonic()
    try:
        result = launch(request, gpus, on_step=on_step)
        print(f"{gpus} GPUs: {result.ending}, steps {result.resumed_from} to {result.steps}", flush=True)
    except MusicgenError as error:
        print(f"{gpus} GPUs: after {time.monotonic() - began:.0f} s: {error}", flush=True)
    return rows


def _worker(local_rank: int) -> int:
    """Return the process id of a rank: the first with its environment, which its children inherit."""
    found = []
    for process in psutil.process_iter(["pid", "environ"]):
        if (process.info["environ"] or {}).get("LOCAL_RANK") == str(local_rank):
            found.append(process.info["pid"])
    return min(found)


def speed(rows: Rows) -> float:
    """Return the median audio-s/s of the steps after compilation, without the last one, which validates."""
    return statistics.median(row["train/audio_seconds_per_sec"] for row in rows[4:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--kill-at", type=int, default=12)
    parser.add_argument("--batch-size", type=int, help="by default that of the GPU's preset")
    parser.add_argument("--base-precision", default="bf16")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--twice", action="store_true", help="train on one GPU twice, too")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tokens = given.workdir / "tokens"
    if not tokens.exists():
        tokens.mkdir(parents=True)
        clips = 16 * given.steps + 32
        make_shards(tokens, shards=1, clips=clips, codec=codec_identity(find_model(given.model)), words=4)
    runs = given.workdir / f"runs-{time.time_ns()}"
    alone = trained(1, runs / "one", given)
    together = trained(given.gpus, runs / "all", given)
    print(f"one GPU {speed(alone):.0f} audio-s/s, {given.gpus} GPUs {speed(together):.0f}: ", end="")
    print(f"{speed(together) / speed(alone):.3f} times", flush=True)
    report_losses("on all GPUs", alone, together)
    killed = trained(given.gpus, runs / "killed", given, kill_at=given.kill_at)
    resumed = trained(1, runs / "killed", given)
    print(f"killed at step {given.kill_at}; on one GPU it resumed at step {resumed[0]['step']:.0f}")
    report_losses("killed, then on one GPU", alone, killed + resumed)
    if given.twice:
        report_losses("on one GPU again", alone, trained(1, runs / "again", given))


def report_losses(how: str, alone: Rows, other: Rows) -> None:
    """Print the losses of both runs."""
    by_step = {row["step"]: row["train/loss"] for row in other}
    pairs = [(row["train/loss"], by_step[row["step"]]) for row in alone]
    print(f"losses on one GPU, and {how}:", *(f"{one:.5f} {that:.5f}" for one, that in pairs), sep="\n  ")
    print(f"never further apart than {max(abs(one - that) for one, that in pairs):.6f}", flush=True)


if __name__ == "__main__":
    main()
