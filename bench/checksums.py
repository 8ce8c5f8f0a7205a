"""Cost of verifying checksums and checking for NaN, at the size of musicgen-large's adapter.

python -m bench.checksums
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.model.adapted_layers import LINEARS
from musicgen_core.model.adapter_values import check_adapter_values
from musicgen_core.model.adapters import Adapter, AdapterConfig, load_adapter, save_adapter
from musicgen_core.training.files.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint

LAYERS, WIDTH, FEED_FORWARD, RANK = 48, 2048, 8192, 8
REPEATS = 7


def main() -> None:
    adapter = Adapter(
        lora=tensors(),
        config=AdapterConfig(RANK, 32).plain(),
        epoch=1,
        global_step=1,
        loss=1.0,
        base_model="debug@sha256:0",
    )
    moments = {i: {"exp_avg": one.clone(), "exp_avg_sq": one.square()} for i, one in enumerate(adapter.lora.values())}
    checkpoint = Checkpoint(adapter, {"state": moments, "param_groups": [{}]}, Progress(1, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        small, large = (storage.as_path(Path(folder) / name) for name in ("latest_lora.pt", "latest.pt"))
        for enabled in (False, True):
            torch.serialization.set_crc32_options(enabled)
            report(f"save the adapter, checksums {enabled}", lambda: save_adapter(adapter, small))
            report(f"save latest.pt, checksums {enabled}", lambda: save_checkpoint(checkpoint, large))
        report("look for NaN in the adapter", lambda: check_adapter_values(vars(adapter)))
        loads: list[tuple[UPath, Callable[[UPath], object]]] = [(small, load_adapter), (large, load_checkpoint)]
        for path, load in loads:
            local = Path(str(path))
            print(f"{path.name}: {local.stat().st_size / 1e6:.0f} MB")
            report("  compare checksums", partial(tensor_files.verify_records, local))
            report("  load with both checks", partial(load, path))


def tensors() -> dict[str, Tensor]:
    """Return an adapter of all linear layers, [r, in] and [out, r] each."""
    sizes = dict.fromkeys(LINEARS, (WIDTH, WIDTH)) | {"fc1": (WIDTH, FEED_FORWARD), "fc2": (FEED_FORWARD, WIDTH)}
    found = {}
    for layer in range(LAYERS):
        for name, (inner, outer) in sizes.items():
            module = f"base_model.model.model.decoder.layers.{layer}.{name}"
            found[f"{module}.lora_A.weight"] = torch.randn(RANK, inner)
            found[f"{module}.lora_B.weight"] = torch.randn(outer, RANK)
    return found


def report(what: str, work: Callable[[], object]) -> None:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    print(f"{what}: {min(seconds):.3f} s (shortest of {REPEATS}; median {sorted(seconds)[REPEATS // 2]:.3f})")


if __name__ == "__main__":
    main()
