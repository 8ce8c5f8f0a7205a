"""Compile kernels for GPUs that aren't present."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
"""That a program may have, by compute capability (CUDA C++ programming guide, technical specifications)"""


def shared_bytes(
    kernel: Any, capability: int, types: Mapping[str, str], constants: Mapping[str, Any], warps: int
) -> int:
    """Return the bytes of shared memory per SM that a kernel uses.

    Args:
        types: of parameters; those that are neither here nor in `constants` are pointers to bf16.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*bf16") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return int(compiled.metadata.shared)
