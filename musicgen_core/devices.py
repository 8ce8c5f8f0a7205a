"""Selection of the compute device and precision."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from musicgen_core.errors import DeviceError
from musicgen_core.language import message

logger = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        DeviceError: `cuda` was requested and no usable GPU was found.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(message("there is no device {name!r}", name=name), message("Use auto, cpu or cuda"))
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise DeviceError(
            message(
                "cuda was asked for, but torch {version} (built for {build}) finds no GPU on this machine",
                version=torch.__version__,
                build=build,
            ),
            message(
                "Check with nvidia-smi that there is one and its driver is new enough for that CUDA, or use "
                "--device cpu"
            ),
        )
    return torch.device("cuda")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 for GPUs of compute capability 8.0 and newer, fp16 for older ones, fp32 for a CPU."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def check_fp8(device: torch.device) -> None:
    """Check that a device has FP8 Tensor Cores.

    Raises:
        DeviceError: the device can't multiply in FP8.
    """
    if device.type != "cuda":
        raise DeviceError(
            message("base_precision fp8 needs a GPU, and the device is a CPU"), message("Give --base-precision bf16")
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise DeviceError(
            message(
                "base_precision fp8 needs compute capability 8.9 (H100, L4, RTX 4090 and newer), and {gpu} has "
                "{major}.{minor}",
                gpu=torch.cuda.get_device_name(device),
                major=capability[0],
                minor=capability[1],
            ),
            message("Give --base-precision bf16"),
        )


def memory_gib(device: torch.device) -> float:
    """Return the total memory of a GPU in GiB."""
    return torch.cuda.get_device_properties(device).total_memory / 2**30


def release_memory(device: torch.device) -> None:
    """Return unused cached memory to the GPU, so that the next stage sees it as free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@cache
def shared_memory_bytes(device: torch.device) -> int:
    """Return the shared memory per SM that one Triton program instance may use; an H100's if Triton interprets."""
    if device.type != "cuda":
        return 227 * 1024
    import triton  # not everywhere

    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])  # what Triton itself compares with


def can_compile() -> bool:
    """Return whether Triton can compile, which takes a C compiler and Python's headers; log it if not."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler and _has_headers():
        return True
    missing = "Python.h (Debian: python3-dev)" if compiler else "C compiler"
    logger.warning("there is no %s, which the GPU's fast kernels need: all is computed plainly, and slower", missing)
    return False


def _has_headers() -> bool:
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()


def start_to_host(values: Tensor) -> Tensor:
    """Start copying a tensor to the host; on a GPU it is there once all work queued before is done."""
    if values.device.type != "cuda":
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
