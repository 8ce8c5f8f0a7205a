"""Shared parts of both training scripts: optimizer, learning rate schedule, CUDA graphs, and checkpoints.

The networks are so small that launching their kernels takes longer than running them. A whole step, from drawing the
batch to the weight update, is therefore captured as a CUDA graph and replayed. The step must not depend on host values,
nor synchronize with the GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from upath import UPath

from musicgen_core import storage
from musicgen_core.devices import pick_device

CHECKPOINT_SECONDS = 60.0
WARMUP_STEPS = 200
LAST_RATE = 0.02  # of the highest learning rate
_EAGER_STEPS = 3  # warm-up before the capture, in which libraries allocate their workspaces


def adamw(modules: Sequence[nn.Module], learning_rate: float, betas: tuple[float, float], weight_decay: float) -> Any:
    """Return AdamW over the parameters of modules, with weight decay only for matrices."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    on_gpu = parameters[0].is_cuda
    rate = torch.tensor(learning_rate, device=parameters[0].device) if on_gpu else learning_rate
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=on_gpu, capturable=on_gpu)


def update(optimizer: Any, loss: Tensor, largest_norm: float = 1.0) -> None:
    """Backpropagate, clip gradients to a norm, and update the weights."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, largest_norm, foreach=parameters[0].is_cuda)
    optimizer.step()


def set_learning_rate(optimizer: Any, highest: float, step: int, steps: int) -> None:
    """Set the learning rate: linear warm-up, then cosine decay to 2 % at the last step."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    rate = highest * min(1.0, (step + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def as_graph(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Capture `step` as a CUDA graph after three warm-up runs; on a CPU return the function itself.

    The result of a call is overwritten by the next one.
    """
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_EAGER_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@dataclass
class Run:
    """A training run that resumes from its checkpoint.

    Attributes:
        path: the checkpoint, written every minute and at the end.
        parts: all objects with a `state_dict` that changes during training.
        steps: total number of steps; a checkpoint with another number is refused.
        step: number of finished steps.
    """

    path: Path
    parts: Mapping[str, Any]
    steps: int
    step: int = 0

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        if state["steps"] != self.steps:
            raise SystemExit(
                f"{self.path} is of a run of {state['steps']} steps; delete it to start one of {self.steps}"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["cpu_rng"])
        if state["gpu_rng"] is not None:
            torch.cuda.set_rng_state(state["gpu_rng"])
        self.step = state["step"]
        print(f"resumes at step {self.step} of {self.steps}", flush=True)

    def until(self, last: int) -> Iterator[int]:
        """Yield the steps up to `last`; each counts as done when the next one is asked for."""
        saved = time.monotonic()
        while self.step < last:
            yield self.step
            self.step += 1
            if self.step == last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "step": self.step,
            "steps": self.steps,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "cpu_rng": torch.get_rng_state(),
            "gpu_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        with storage.publish(UPath(self.path)) as path:
            torch.save(state, path)


def device_with_tf32() -> torch.device:
    """Return the GPU, with TensorFloat-32 enabled, or else the CPU."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return pick_device("auto")
