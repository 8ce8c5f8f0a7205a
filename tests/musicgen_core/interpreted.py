"""Run a script with Triton's interpreter on the CPU: TRITON_INTERPRET=1 python interpreted.py SCRIPT …"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def let_tensors_bound_loops() -> None:
    """Fix loop bounds: Triton 3.6's interpreter converts arrays with one element to int, which NumPy 2.4 refuses."""
    own: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        own(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def round_integers_to_bf16() -> None:
    """Fix integer to bf16 conversion: Triton 3.6's interpreter reinterprets the bits."""
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
