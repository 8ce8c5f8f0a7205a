"""One generation step of one sample as a single CUDA kernel, `megakernel.cu`, which explains its algorithm.

NVRTC, which comes with PyTorch, compiles it once per process.
"""

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
"""Width of a head; the kernel supports no other."""
WARPS = 8
"""Consumer warps of a thread block; one more warp is the producer."""
RESULTS = 128
"""The most slices of a matrix, [dim] each, that a thread block owns."""
MIN_STAGES = 3
"""Stages of the ring below which copies and multiplications no longer overlap."""


class CudaError(RuntimeError):
    """An error of CUDA's compiler or driver."""


def megakernel(
    config: DecoderConfig, matrices: Sequence[Tensor], scales: Sequence[Tensor], norms: Tensor
) -> Megakernel | None:
    """Return the kernel for a model, see `Megakernel`; None if it doesn't support the model or the GPU."""
    if not _fits(config, norms):
        return None
    try:
        return Megakernel(config, matrices, scales, norms)
    except (ImportError, CudaError) as error:
        logger.warning("the GPU's kernel for single samples can't be used, so these take a third longer: %s", error)
        return None


def _fits(config: DecoderConfig, norms: Tensor) -> bool:
    if not norms.is_cuda or norms.dtype is not torch.bfloat16:
        return False
    if config.takes_melody or config.dim != HEAD * config.heads or config.dim % 512 or config.ffn_dim != 4 * config.dim:
        return False
    gpu = torch.cuda.get_device_properties(norms.device)
    widest = max(config.ffn_dim, config.codebooks * config.cardinality)
    has_blocks = widest <= RESULTS * gpu.multi_processor_count
    return (gpu.major, gpu.minor) >= (9, 0) and has_blocks and _stages(config.dim, 1, norms.device) >= MIN_STAGES


class Megakernel:
    """The kernel with the weights that it reads and its scratch memory, which serves one step at a time.

    The kernel has grid barriers, so that all its thread blocks must be resident: it is launched cooperatively, with one
    thread block per SM.

    Args:
        config: the shape of the model.
        matrices: those of each layer [out, in] in the order of their use, then the output layers; bf16 or int8.
        scales: one fp32 per row of each int8 matrix; empty for bf16.
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
        self._scratch = [
            torch.empty(2, dim, device=device),  # queries
            torch.empty(2, dim, dtype=torch.int16, device=device),  # output of cross-attention, in bf16 or fp16
            torch.empty(2 * config.heads, 2, HEAD, device=device),  # numerators of the splits of self-attention
            torch.empty(2 * config.heads, 2, 2, device=device),  # their largest scores and denominators
            torch.empty(2, config.ffn_dim, dtype=torch.int16, device=device),  # input of fc2, in bf16 or fp16
            torch.zeros(2, dtype=torch.int32, device=device),  # counters of the grid barrier
        ]
        self._blocks = torch.cuda.get_device_properties(device).multi_processor_count
        self._kernel, self._shared = _loaded(device, dim, config.codebooks * config.cardinality, weight_bytes)

    def __call__(
        self, x: Tensor, caches: Tensor, text_cache: Tensor, text_lengths: Tensor, position: Tensor, logits: Tensor
    ) -> None:
        """Run one step: store its logits, and add the keys and values of `position` to the caches.

        Args:
            x: [2, dim], fp32, the embedded codes; overwritten.
            caches: [layers, 2, 2, heads, positions, 64], bf16.
            text_cache: [layers, 2, 2, heads, max_length, 64], bf16, keys and values of the texts.
            text_lengths: [2], int32, tokens of each text.
            position: [], int64.
            logits: [2, codebooks, cardinality], fp32, the output.
        """
        from cuda.bindings import driver

        inputs = [self._addresses, self._scales, self._norms, x, caches, text_cache, text_lengths, position]
        tensors = [*inputs, logits, *self._scratch]
        values = (*(tensor.data_ptr() for tensor in tensors), self._layers, caches.shape[4], text_cache.shape[4])
        kinds = (*(ctypes.c_void_p for _ in tensors), ctypes.c_int, ctypes.c_int, ctypes.c_int)
        stream, grid, block = torch.cuda.current_stream(x.device).cuda_stream, self._blocks, 32 * (WARPS + 1)
        launch = driver.cuLaunchCooperativeKernel  # all blocks resident at once, or an error
        _check(launch(self._kernel, grid, 1, 1, block, 1, 1, self._shared, stream, (values, kinds)))


def sizes(dim: int, width: int, weight_bytes: int, stages: int) -> dict[str, int]:
    """Return the compile-time sizes of the kernel; see the head of `megakernel.cu`."""
    of_model = {"D": dim, "FFN": 4 * dim, "WIDTH": width}
    return of_model | {"BYTES": weight_bytes, "STAGES": stages, "WARPS": WARPS, "RESULTS": RESULTS}


def _stage_bytes(dim: int, weight_bytes: int) -> int:
    """Return the shared memory of a stage of the ring, as `megakernel.cu` lays it out."""
    return 16 // weight_bytes * (dim * weight_bytes + 64)


def _other_bytes(dim: int) -> int:
    """Return the shared memory beside the ring, as `megakernel.cu` lays it out."""
    rows, softmax_states, results, barriers = 2 * 2 * dim, WARPS * 8 * 10 * 4, WARPS * RESULTS * 2 * 4, 16 * 16
    return rows + softmax_states + results + barriers


def _stages(dim: int, weight_bytes: int, device: torch.device) -> int:
    return min(16, (shared_memory_bytes(device) - _other_bytes(dim)) // _stage_bytes(dim, weight_bytes))


def compiled(architecture: str, defined: Mapping[str, int]) -> bytes:
    """Return the kernel's binary for a GPU, which need not be present.

    Args:
        architecture: as NVIDIA's compilers name it, such as `sm_90`.
        defined: the result of `sizes`.

    Raises:
        CudaError: with the compiler's own message.
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
    except RuntimeError as error:  # raised by cuda.bindings if NVRTC is not installed
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
    """Return the kernel on a GPU and its shared memory in bytes; cached, as each epoch's samples build an engine."""
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
    """Return the results of a CUDA call without its error code, which must be 0."""
    error, *rest = result
    if int(error):
        raise CudaError(f"CUDA answered {error.name}")
    return tuple(rest)
