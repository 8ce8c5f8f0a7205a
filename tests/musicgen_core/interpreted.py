"""Runs a script on the CPU, where Triton interprets its kernels: TRITON_INTERPRET=1 python interpreted.py SCRIPT …"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from triton.runtime import interpreter


def let_tensors_bound_loops() -> None:
    """Triton 3.6's interpreter makes integers of arrays with one element, which NumPy 2.4 refuses."""
    own: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        own(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if __name__ == "__main__":
    let_tensors_bound_loops()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
