"""Runs that must compute the same bits on a GPU."""

from __future__ import annotations

import pytest
import torch

from musicgen_core.errors import ConfigError
from musicgen_core.training.compute.attention import deterministic_backward
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.model import check_determinism


def test_pytorchs_switch_is_strict_within_the_backward_pass_and_restored_after_an_error() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match="mode 2"), deterministic_backward():
            # Not 1: warnings alone leave flash attention as it is.
            raise RuntimeError(f"mode {torch.get_deterministic_debug_mode()}")
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_the_fused_kernels_determinism_is_refused_on_a_gpu_only() -> None:
    asked = Execution("bf16", compile=True, checkpointing=False, deterministic=True)
    with pytest.raises(ConfigError, match="LoRA on all linear layers") as refused:
        check_determinism(asked, torch.device("cuda"))
    assert refused.value.next_step == "Leave out --deterministic"
    check_determinism(asked, torch.device("cpu"))
