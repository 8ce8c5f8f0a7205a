"""Optimizers of adapters on one GPU: time and memory of an update, resuming to the same bits, and learning.

uv run --extra optimizers python -m bench.optimizers [--layers 48] [--steps 30] [--options layers=24-47 ranks=24-47=16]

On random weights of musicgen-large's shape, for each of `--optimizer`'s values: milliseconds of an update and of the
other part of a step, MiB of the optimizer's state, the loss at the first and at the last step, and whether a second
trainer that took over the checkpoint halfway ends with the same bits.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, get_args

import torch
from torch import Tensor

from bench.train import large, random_lm
from musicgen_core.config import TrainSettings
from musicgen_core.learning_settings import OptimizerName
from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.decoder import Condition
from musicgen_core.model.lora import add_lora
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.model import TrainingModel
from musicgen_core.training.files.checkpoint import snapshot
from musicgen_core.training.optimization import RunOptimizer

RATES = {"adamw": 1e-3, "prodigy": 1.0, "schedulefree": 1e-3, "adamw8bit": 1e-3}
CLIPS, FRAMES, TOKENS = 4, 500, 16


class Run:
    """A model with an adapter, its optimizer, and one batch that it learns by heart."""

    def __init__(self, settings: TrainSettings, layers: int, device: torch.device) -> None:
        config = AdapterConfig.of(settings, settings.lora_r)
        is_gpu = device.type == "cuda"
        execution = Execution("bf16" if is_gpu else "fp32", compile=is_gpu, checkpointing=False)
        self.model = TrainingModel(add_lora(random_lm(large(layers), device), config), 0.0, execution)
        self.optimizer = RunOptimizer(self.model.trained, settings)
        self.rate, self.device, self.update_s = settings.learning_rate, device, 0.0
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(2048, (CLIPS, 4, FRAMES), generator=generator).to(device)
        states = torch.randn(CLIPS, TOKENS, 768, generator=generator).to(device, torch.bfloat16)
        self.text = Condition(states, torch.ones(CLIPS, TOKENS, dtype=torch.bool, device=device))
        self.frames = torch.full((CLIPS,), FRAMES, device=device)

    def step(self, number: int) -> float:
        self.model.zero_grad()
        seeds = clip_seeds(0, 1, range(CLIPS)).to(self.device)
        losses = self.model.step(self.codes, self.frames, self.text, seeds, 1 / CLIPS)
        torch.nn.utils.clip_grad_norm_(self.model.trained.whole, 1.0)
        loss = losses.mean().item()  # synchronizes
        started = time.monotonic()
        self.optimizer.set_rate(self.rate)
        self.optimizer.step()
        self.optimizer.update_average(number)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.update_s = time.monotonic() - started
        return loss


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in nested dicts."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(size_of, value.values())) if isinstance(value, dict) else 0


def measure(settings: TrainSettings, layers: int, steps: int, device: torch.device) -> str:
    run, half = Run(settings, layers, device), steps // 2
    losses, updates, whole, saved = [], [], [], None
    for number in range(1, steps + 1):
        started = time.monotonic()
        losses.append(run.step(number))
        updates.append(run.update_s)
        whole.append(time.monotonic() - started)
        if number == half:
            saved = snapshot(run.model.trained.whole.detach()), snapshot(run.optimizer.state())
    assert saved is not None
    resumed = Run(settings, layers, device)
    resumed.model.trained.whole.data.copy_(saved[0])
    resumed.optimizer.restore(saved[1])
    for number in range(half + 1, steps + 1):
        resumed.step(number)
    is_same = torch.equal(resumed.model.trained.whole, run.model.trained.whole)
    update, step = (1e3 * sorted(times[3:])[len(times[3:]) // 2] for times in (updates, whole))
    state = size_of(saved[1]["state"]) + size_of(saved[1].get("of_all", {}))
    return (
        f"update {update:7.2f} ms, rest of the step {step - update:8.1f} ms, state {state / 2**20:7.1f} MiB, "
        f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, resumed to the same bits: {is_same}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of training")
    given = parser.parse_args()
    options: dict[str, Any] = dict(option.split("=", 1) for option in given.options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in get_args(OptimizerName):
        settings = TrainSettings(**{"optimizer_name": name, "learning_rate": RATES[name], **options})
        print(f"{name:12} {measure(settings, given.layers, given.steps, device)}", flush=True)


if __name__ == "__main__":
    main()
