"""Check that the memory of the GPU, or of a machine without one, suffices to train with the default settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.checks.finding import Finding
from deployments.checks.model_size import ModelSize
from musicgen_core.language import message

if TYPE_CHECKING:
    import torch

MEMORY = message("memory")

# GiB of musicgen-large for a clip of 30 s, measured on an H200 (bench/RESULTS.md, training/batch_size.py); on a CPU
# 3.4 GiB a clip were measured for musicgen-small's shape, a quarter of the layers × width.
_CLIP_GIB = {"cpu": 13.4, "plain": 6.2, "fused": 3.7, "checkpointing": 0.5}
_BESIDE_WEIGHTS_GIB = {"cpu": 1.5, "cuda": 0.5}
_LARGE_WIDTHS = 48 * 2048


def check_memory(size: ModelSize, device: str) -> list[Finding]:
    """Check the memory of the GPU, or of the machine.

    Args:
        device: `auto`, `cpu` or `cuda`.
    """
    import torch

    if torch.cuda.is_available() and device != "cpu":
        return [_check_gpu(size, torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    return [_check_ram(size)] if device != "cuda" else []


def _check_ram(size: ModelSize) -> Finding:
    import torch

    from musicgen_core.training.batches import preset_of

    needed = needed_gib(size, "cpu", preset_of(torch.device("cpu")).micro)
    there = main_memory_bytes() / 2**30
    found = message(
        "{there:.1f} GiB of main memory; training {model} on the CPU takes about {needed:.1f} GiB",
        there=there,
        model=size.name,
        needed=needed,
    )
    if needed <= there:
        return Finding(MEMORY, "ok", found)
    fix = message(
        "Train on a GPU of 16 GB or more, or look whether another model fits: uv run musicgen-flows doctor --model demo"
    )
    return Finding(MEMORY, "problem", found, fix)


def _check_gpu(size: ModelSize, device: torch.device) -> Finding:
    import torch

    from musicgen_core.training.batches import preset_of

    name = MEMORY if torch.cuda.device_count() == 1 else message("memory of GPU {index}", index=device.index)
    preset = preset_of(device)
    kind = "fused" if torch.cuda.get_device_capability(device) >= (8, 0) else "plain"
    kind = "checkpointing" if preset.checkpointing else kind
    free, total = (count / 2**30 for count in torch.cuda.mem_get_info(device))
    best, least = (needed_gib(size, kind, micro) for micro in (preset.micro, 1))
    found = message(
        "{free:.1f} of {total:.1f} GiB of the GPU are free; training {model} takes about {best:.1f} GiB at "
        "micro-batch {micro}, which this GPU gets, and {least:.1f} GiB at 1",
        free=free,
        total=total,
        model=size.name,
        best=best,
        micro=preset.micro,
        least=least,
    )
    if best <= free:
        return Finding(name, "ok", found)
    if least <= free:
        found = message("{found}, which it falls back to", found=found)
        return Finding(name, "warning", found, message("Stop what holds the rest: nvidia-smi"))
    if least <= total:
        return Finding(name, "problem", found, message("Stop the programs that hold the rest: nvidia-smi names them"))
    fix = message("Take a larger GPU, or a smaller model: --model facebook/musicgen-small")
    return Finding(name, "problem", found, fix)


def needed_gib(size: ModelSize, kind: str, micro: int) -> float:
    """Return the memory in GiB of a training run with micro-batches of `micro` clips of 30 s.

    Args:
        kind: `cpu`, or the kind of blocks on a GPU: `fused`, `plain` or `checkpointing`.
    """
    where, weight_bytes = ("cpu", 4) if kind == "cpu" else ("cuda", 2)
    activations = micro * _CLIP_GIB[kind] * size.widths / _LARGE_WIDTHS
    return _BESIDE_WEIGHTS_GIB[where] + size.parameters * weight_bytes / 2**30 + activations


def main_memory_bytes() -> int:
    """Return the memory of the machine, or the limit of its container."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return there
    return min(there, int(limit)) if limit.isdecimal() else there
