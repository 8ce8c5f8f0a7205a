"""Time each stage of the pipeline, archives → tokens → adapter → music, with the core alone.

    python -m bench.chain MODEL --device cuda --workdir DIR [--steps 6] [--batch-size 4] [--seconds 30]

Prints a table with the time of each stage and, on a GPU, its peak memory.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import SamplingSettings, TrainSettings
from musicgen_core.data.archive import find_archives
from musicgen_core.data.captions import load_captions
from musicgen_core.demo_data import make_demo_archives
from musicgen_core.devices import pick_device
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import find_model
from musicgen_core.tokenizing import Tokenizer
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train


@dataclass
class Timings:
    rows: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, audio_seconds: float) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        text = f"{took:8.1f} s   {audio_seconds / took:8.2f} × real time"
        if torch.cuda.is_available():
            text += f"   {torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB at most"
        self.rows.append((name, text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--archives", default=None, help="by default made-up music")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each made-up clip, and of the music generated")
    parser.add_argument("--generate-seconds", type=float, default=4.0)
    given = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "disabled")

    tokens, run_dir, music = (given.workdir / name for name in ("tokens", "run", "music"))
    if given.archives is None:
        given.archives = str(given.workdir / "archives")
        make_demo_archives(Path(given.archives), archives=2, clips=16, seconds=given.seconds)
    measured = Timings()
    model = find_model(given.model)
    metadata = storage.as_path(given.archives) / "metadata.jsonl"
    captions = load_captions(metadata) if metadata.exists() else None
    tokenizer = Tokenizer(Codec(model, pick_device(given.device)), storage.as_path(tokens), metadata=captions)
    for archive in find_archives(given.archives):
        with measured.part(f"tokenize {archive.name}", 16 * given.seconds):
            report = tokenizer.tokenize(archive)
        print(archive.name, report.clips, "clips", len(report.rejected), "rejected", flush=True)
    del tokenizer

    rows: list[dict[str, float]] = []
    settings = TrainSettings(num_epochs=1000, max_steps=given.steps, batch_size=given.batch_size)
    with measured.part(f"train {given.steps} steps, batch {given.batch_size}", given.steps * 16 * given.seconds):
        training = TrainRequest(
            tokens=str(tokens), run_dir=str(run_dir), model=given.model, settings=settings, device=given.device
        )
        train(training, on_step=rows.append)
    for row in rows:
        speed = row["train/audio_seconds_per_sec"]
        print(f"step {row['step']}: loss {row['train/loss']:.4f}, {speed:.0f} audio-seconds/s", flush=True)
    sampling = SamplingSettings(duration=given.generate_seconds)
    request = RenderRequest(
        out=str(music),
        prompts=[Prompt(prompt="calm strings")],
        model=given.model,
        settings=sampling,
        adapters=[WeightedAdapter(str(run_dir))],
        device=given.device,
    )
    with measured.part("generate one prompt, loading included", given.generate_seconds):
        render(request)
    print()
    for name, text in measured.rows:
        print(f"{name:<45} {text}")
    for file in sorted(run_dir.rglob("*.pt")):
        print(f"{file.relative_to(run_dir)!s:<45} {file.stat().st_size / 2**20:10.1f} MiB")


if __name__ == "__main__":
    main()
