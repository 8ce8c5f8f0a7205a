"""A step of a single piece as one CUDA kernel, which NVRTC, a part of PyTorch's, compiles once a process."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from musicgen_core.devices import shared_memory_bytes
from musicgen_core.model.decoder import DecoderConfig

logger = logging.getLogger(__name__)
HEAD = 64
"""Entries of a head; the kernel knows no other size."""
WARPS = 8
"""That multiply; one more asks for weights."""
RESULTS = 128
"""Slices of a matrix, [dim] each, that a program multiplies at most"""
LEAST_STAGES = 3


class CudaError(RuntimeError):
    """CUDA's compiler or driver said no."""


def megakernel(
    config: DecoderConfig, matrices: Sequence[Tensor], scales: Sequence[Tensor], norms: Tensor
) -> Megakernel | None:
    """The kernel for a model, if it is for such a model and such a GPU; see `Megakernel`."""
    if not _fits(config, norms):
        return None
    try:
        return Megakernel(config, matrices, scales, norms)
    except (ImportError, CudaError) as error:
        logger.warning("the GPU's kernel for single pieces can't be used, so these take a third longer: %s", error)
        return None


def _fits(config: DecoderConfig, norms: Tensor) -> bool:
    if not norms.is_cuda or norms.dtype is not torch.bfloat16:
        return False
    if config.dim != HEAD * config.heads or config.dim % 512 or config.ffn_dim != 4 * config.dim:
        return False
    gpu = torch.cuda.get_device_properties(norms.device)
    widest = max(config.ffn_dim, config.codebooks * config.cardinality)
    has_programs = widest <= RESULTS * gpu.multi_processor_count
    return (gpu.major, gpu.minor) >= (9, 0) and has_programs and _stages(config.dim, 1, norms.device) >= LEAST_STAGES


class Megakernel:
    """The kernel with the weights that it reads, and room for what its programs tell each other.

    One step at a time: the room is for one. All its programs wait for each other, so that each must have a
    multiprocessor to itself.

    Args:
        matrices: of each layer [out, in] in the order of their use, then the heads'; bf16, or int8 with
        scales: a row of each, fp32.
        norms: [3 layers + 1, 2, dim], weights and biases in the order of their use, bf16.

    Raises:
        CudaError: the kernel couldn't be compiled or loaded.
    """

    def __init__(
        self, config: DecoderConfig, matrices: Sequence[Tensor], scales: Sequence[Tensor], norms: Tensor
    ) -> None:
        device, dim, weight_bytes = norms.device, config.dim, matrices[0].itemsize
        self._layers, self._matrices, self._norms = config.layers, list(matrices), norms
        self._addresses = torch.tensor([matrix.data_ptr() for matrix in matrices], device=device)
        self._scales = torch.cat(list(scales)) if scales else torch.empty(0, device=device)
        self._room = [
            torch.empty(2, dim, device=device),  # queries
            torch.empty(2, dim, dtype=torch.int16, device=device),  # what cross-attention gives, in bf16 or fp16
            torch.empty(2 * config.heads, 2, HEAD, device=device),  # what each split of attention gives
            torch.empty(2 * config.heads, 2, 2, device=device),  # and with what weight
            torch.empty(2, config.ffn_dim, dtype=torch.int16, device=device),  # what fc2 reads, in bf16 or fp16
            torch.zeros(2, dtype=torch.int32, device=device),  # programs that have arrived
        ]
        self._programs = torch.cuda.get_device_properties(device).multi_processor_count
        self._kernel, self._shared = _loaded(device, dim, config.codebooks * config.cardinality, weight_bytes)

    def __call__(
        self, x: Tensor, caches: Tensor, text: Tensor, words: Tensor, position: Tensor, logits: Tensor
    ) -> None:
        """Logits [2, codebooks, cardinality] of x [2, dim], both fp32; x is changed, and caches get a position.

        Args:
            caches: [layers, 2, 2, heads, positions, 64].
            text: [layers, 2, 2, heads, longest, 64], of which
            words: [2] count.
            position: [], int64.
        """
        from cuda.bindings import driver

        tensors = [self._addresses, self._scales, self._norms, x, caches, text, words, position, logits, *self._room]
        values = (*(tensor.data_ptr() for tensor in tensors), self._layers, caches.shape[4], text.shape[4])
        kinds = (*(ctypes.c_void_p for _ in tensors), ctypes.c_int, ctypes.c_int, ctypes.c_int)
        stream, grid, block = torch.cuda.current_stream(x.device).cuda_stream, self._programs, 32 * (WARPS + 1)
        launch = driver.cuLaunchCooperativeKernel  # all programs at once or none, whoever else is on the GPU
        _check(launch(self._kernel, grid, 1, 1, block, 1, 1, self._shared, stream, (values, kinds)))


def sizes(dim: int, width: int, weight_bytes: int, stages: int) -> dict[str, int]:
    """What the kernel is compiled with; see its first lines."""
    of_model = {"D": dim, "FFN": 4 * dim, "WIDTH": width}
    return of_model | {"BYTES": weight_bytes, "STAGES": stages, "WARPS": WARPS, "RESULTS": RESULTS}


def _stage_bytes(dim: int, weight_bytes: int) -> int:
    """Of shared memory; these two are what the kernel's text makes of it."""
    return 16 // weight_bytes * (dim * weight_bytes + 64)


def _other_bytes(dim: int) -> int:
    rows, shares, results, barriers = 2 * 2 * dim, WARPS * 8 * 10 * 4, WARPS * RESULTS * 2 * 4, 16 * 16
    return rows + shares + results + barriers


def _stages(dim: int, weight_bytes: int, device: torch.device) -> int:
    return min(16, (shared_memory_bytes(device) - _other_bytes(dim)) // _stage_bytes(dim, weight_bytes))


def compiled(architecture: str, defined: Mapping[str, int]) -> bytes:
    """The kernel for a GPU, which need not be there.

    Args:
        architecture: as NVIDIA's compilers name it, `sm_90`.
        defined: see `sizes`.

    Raises:
        CudaError: with the compiler's own words.
    """
    from cuda.bindings import nvrtc

    source = resources.files(__package__).joinpath("megakernel.cu").read_bytes()
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        *(f"-D{key}={size}" for key, size in defined.items()),
    ]
    try:
        (program,) = _check(nvrtc.nvrtcCreateProgram(source, b"megakernel.cu", 0, [], []))
    except RuntimeError as error:  # of cuda.bindings, where NVRTC is not installed
        raise CudaError(str(error)) from error
    try:
        _check(nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
        (size,) = _check(nvrtc.nvrtcGetCUBINSize(program))
        binary = bytearray(size)
        _check(nvrtc.nvrtcGetCUBIN(program, binary))
        return bytes(binary)
    except CudaError as error:
        (size,) = _check(nvrtc.nvrtcGetProgramLogSize(program))
        log = bytearray(size)
        _check(nvrtc.nvrtcGetProgramLog(program, log))
        raise CudaError(f"{error}: {log.decode().strip(chr(0)).strip()}") from error
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def _loaded(device: torch.device, dim: int, width: int, weight_bytes: int) -> tuple[Any, int]:
    """The kernel on a GPU and its shared memory in bytes, once a process: each epoch's samples make an engine anew."""
    from cuda.bindings import driver

    stages = _stages(dim, weight_bytes, device)
    shared = stages * _stage_bytes(dim, weight_bytes) + _other_bytes(dim)
    with torch.cuda.device(device):
        major, minor = torch.cuda.get_device_capability()
        binary = compiled(f"sm_{major}{minor}", sizes(dim, width, weight_bytes, stages))
        (module,) = _check(driver.cuModuleLoadData(binary))
        (kernel,) = _check(driver.cuModuleGetFunction(module, b"megakernel"))
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(kernel, most, shared))
    return kernel, shared


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of CUDA's gives beside its error code, which must be 0."""
    error, *rest = result
    if int(error):
        raise CudaError(f"CUDA answered {error.name}")
    return tuple(rest)
