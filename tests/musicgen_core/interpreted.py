"""Runs a script on the CPU, where Triton interprets its kernels: TRITON_INTERPRET=1 python interpreted.py SCRIPT …"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def let_tensors_bound_loops() -> None:
    """Triton 3.6's interpreter makes integers of arrays with one element, which NumPy 2.4 refuses."""
    own: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        own(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def round_integers_to_bf16() -> None:
    """Triton 3.6's interpreter takes an integer for the bits of a bf16."""
    own: Any = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar.is_int():
            source = own(self, source, tl.float32)
        return own(self, source, target)

    interpreter.InterpreterBuilder.cast_impl = cast


if __name__ == "__main__":
    let_tensors_bound_loops()
    round_integers_to_bf16()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
