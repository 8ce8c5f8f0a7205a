"""How a training run computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """Precision, compilation and activation checkpointing of a training run.

    Attributes:
        precision: bf16, fp8 (in the GEMMs with frozen weights), fp16 or fp32.
        compile: whether to compile; on a GPU that supports them, use fused kernels and CUDA graphs.
        checkpointing: whether to keep only the blocks' inputs and recompute the rest in the backward pass.
        deterministic: whether equal steps on the same GPU have equal bits.
    """

    precision: str
    compile: bool
    checkpointing: bool
    deterministic: bool = False
