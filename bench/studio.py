"""The studio's figures: first sound, time to the end, changing a strength, and three clicks at once.

    python -m bench.random_large LARGE
    python -m bench.studio LARGE --workdir DIR [--device cuda] [--seconds 10] [--times 5]
    python -m bench.studio demo --workdir DIR --device cpu

Times what a click does from the request's arrival in the queue: the sound that the page plays, the files, the queue.
Needs no network and no Prefect. The adapter is random, of rank 8 on the attention layers, as training makes them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from deployments.studio.jobs import Job, Studio
from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.request import RenderRequest
from musicgen_core.generation.resident import ResidentModel, load_model
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.lora import adapter_state, add_lora
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import find_model, load_lm

STRENGTHS = (0.25, 1.0, 0.5, 0.0, -0.5)
CLICKS = 3


def write_adapter(model: str, file: Path) -> None:
    """Write an adapter with random matrices, and with small ones for B, as after training."""
    settings = AdapterConfig(8, 32)
    peft_model = add_lora(load_lm(find_model(model)), settings)
    state = {name: 0.01 * torch.randn(tensor.shape) for name, tensor in adapter_state(peft_model).items()}
    save_adapter(Adapter(state, settings.plain(), 1, 1, 1.0, ""), storage.as_path(file))


def request_for(given: argparse.Namespace, adapter: Path, number: int, strength: float = 1.0) -> RenderRequest:
    return RenderRequest(
        out=str(given.workdir / "music"),
        prompts=[Prompt(prompt=f"calm piano, number {number}")],
        model=given.model,
        settings=SamplingSettings(duration=given.seconds, seed=number),
        adapters=(WeightedAdapter(str(adapter), strength),),
        device=given.device,
    )


def wait(jobs: list[Job]) -> None:
    while not all(job.has_ended for job in jobs):
        time.sleep(0.005)


def since_click(job: Job) -> tuple[float, float, float]:
    """Return seconds from the click to the job's begin, to its first sound, and to its end."""
    assert job.state == "done", job.error
    assert job.begun is not None and job.first_sound is not None and job.ended is not None
    return job.begun - job.queued, job.first_sound - job.queued, job.ended - job.queued


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def measure_strengths(model: ResidentModel, adapter: Path, times: int) -> list[float]:
    """Return seconds of changing a strength: the weights, and their packed copies for the decoding kernels."""
    found = []
    for strength in STRENGTHS * times:
        began = time.perf_counter()
        model.engine((WeightedAdapter(str(adapter), strength),))
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    adapter = given.workdir / "random_lora.pt"
    write_adapter(given.model, adapter)
    began = time.perf_counter()
    studio = Studio(lambda: load_model(request_for(given, adapter, 0), keep_base=True))
    studio.start()
    studio.is_ready.wait()
    if studio.model is None:
        raise SystemExit(studio.failure)
    print(f"{given.model} on {studio.model.device}: {given.seconds:g} s of music, median (range) of {given.times}")
    print("| figure | s |\n| --- | ---: |")
    print(f"| loading and warming up | {time.perf_counter() - began:.1f} |", flush=True)

    first = studio.submit(request_for(given, adapter, 0), "first")  # the model's files are hashed once
    wait([first])
    print(f"| first click: first sound, end | {', '.join(f'{t:.2f}' for t in since_click(first)[1:])} |", flush=True)
    alone = []
    for number in range(1, given.times + 1):
        job = studio.submit(request_for(given, adapter, number), "alone")
        wait([job])
        alone.append(since_click(job))
    print(f"| later clicks: first sound | {median([sound for _, sound, _ in alone])} |")
    print(f"| later clicks: end, files written | {median([end for _, _, end in alone])} |", flush=True)
    moved = []
    for number in range(given.times):
        strength = STRENGTHS[number % len(STRENGTHS)] + 0.01
        job = studio.submit(request_for(given, adapter, 100 + number, strength), "strength moved")
        wait([job])
        moved.append(since_click(job)[1])
    print(f"| first sound after a strength was moved | {median(moved)} |")
    print(f"| changing a strength | {median(measure_strengths(studio.model, adapter, given.times))} |", flush=True)

    clicks = [studio.submit(request_for(given, adapter, 200 + number), "together") for number in range(CLICKS)]
    wait(clicks)
    for number, job in enumerate(clicks, 1):
        queued, sound, end = since_click(job)
        texts = f"waited {queued:.2f}, first sound {sound:.2f}, end {end:.2f}"
        print(f"| {CLICKS} clicks at once, number {number} | {texts} |")
    stems = {stem for job in clicks for stem in job.pieces}
    kept = [stem for stem in stems if (given.workdir / "music" / f"{stem}.json").is_file()]
    print(f"| {CLICKS} clicks at once, complete pieces | {len(kept)} of {CLICKS} |")
    studio.stop()


if __name__ == "__main__":
    main()
