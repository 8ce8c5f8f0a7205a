"""A training run as users start it: time to the first step, speed of the steps, behaviour when out of memory.

    python -m bench.start_up MODEL --workdir DIR [--steps 12] [--batch-size N] [--base-precision fp8]

MODEL is a directory written by bench.random_large. Trains on random codes, 30 s per clip, in a new run directory. The
default batch size is the GPU's preset; a given one makes each step a single micro-batch of it. Times are from the
start of this program, including the import of torch.
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import argparse  # noqa: E402
import logging  # noqa: E402
import statistics  # noqa: E402
from pathlib import Path  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--base-precision", default="bf16")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from bench.load_tokens import make_shards
    from musicgen_core.config import TrainSettings
    from musicgen_core.model.compression import codec_identity
    from musicgen_core.model.weights import find_model
    from musicgen_core.training.request import TrainRequest
    from musicgen_core.training.train import train

    tokens = given.workdir / "tokens"
    if not tokens.exists():
        tokens.mkdir(parents=True)
        make_shards(tokens, shards=1, clips=256, codec=codec_identity(find_model(given.model)), words=4)
    one = {} if given.batch_size is None else {"gradient_accumulation_steps": 1, "batch_size": given.batch_size}
    settings = TrainSettings(
        max_steps=given.steps, base_precision=given.base_precision, full_models="none", validation_fraction=0.02, **one
    )
    rows: list[dict[str, float]] = []

    def on_step(row: dict[str, float]) -> None:
        rows.append({**row, "seconds": time.monotonic() - BEGAN})
        print(f"step {row['step']:.0f} after {rows[-1]['seconds']:.1f} s", flush=True)

    run_dir = given.workdir / f"run-{time.time_ns()}"
    request = TrainRequest(
        tokens=str(tokens), run_dir=str(run_dir), model=given.model, settings=settings, device="cuda"
    )
    train(request, on_step=on_step)
    speeds = [row["train/audio_seconds_per_sec"] for row in rows[4:-1]]  # the last one validates
    print(
        f"first step after {rows[0]['seconds']:.1f} s, then {statistics.median(speeds):.0f} audio-s/s, "
        f"{rows[-1]['train/peak_gib']:.1f} GiB at most, all of it {time.monotonic() - BEGAN:.1f} s"
    )


if __name__ == "__main__":
    main()
