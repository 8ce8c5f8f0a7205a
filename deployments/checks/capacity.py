"""Check that memory and disks suffice for a model, its tokens and a training run with the default settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.checks.finding import Finding
from deployments.parameters import ASSUMED_CLIPS
from musicgen_core import storage
from musicgen_core.config import Trained, TrainSettings
from musicgen_core.language import message
from musicgen_core.learning_settings import EFFECTIVE_BATCH
from musicgen_core.model.model_size import ModelSize
from musicgen_core.training.memory import LARGE_WIDTHS, checkpoint_bytes, ways
from musicgen_core.wording import counted, joined, sized

if TYPE_CHECKING:
    import torch

DISK = message("disk")
RUN_DIRECTORY = message("a run directory")

_LEAST = TrainSettings(keep_last=1, full_models="best_and_final")
_LEAST_OPTIONS = "--keep-last 1 --full-models best_and_final"

MEMORY = message("memory")

# GiB of musicgen-large for a clip of 30 s, measured on an H200 (bench/RESULTS.md, training/batches.py); on a CPU
# 3.4 GiB a clip were measured for musicgen-small's shape, a quarter of the layers × width.
_CLIP_GIB = {"cpu": 13.4, "plain": 6.2, "fused": 3.7, "checkpointing": 0.5}
_BESIDE_WEIGHTS_GIB = {"cpu": 1.5, "cuda": 0.5}


@dataclass(frozen=True)
class _Need:
    """Disk space that something needs under a path."""

    what: str
    path: Path
    bytes: int


def check_disk(
    size: ModelSize, places: Mapping[str, str], clips: int | None, trained: Trained = "lora"
) -> list[Finding]:
    """Return a finding for each disk of this machine that jobs will write to.

    Args:
        trained: what runs train, an adapter or all weights.
        places: locations of `tokens` and `runs`. By default, directories of these names in the working directory.
        clips: number of training clips. None: unknown; a disk without room for the assumed number is no problem as
            long as it has room for a single clip.
    """
    wanted, least = ASSUMED_CLIPS if clips is None else clips, _by_disk(size, places, 1, trained)
    return [
        _compare(size, needs, wanted, clips is None and _fits(least.get(disk, ())), trained)
        for disk, needs in _by_disk(size, places, wanted, trained).items()
    ]


def _by_disk(size: ModelSize, places: Mapping[str, str], clips: int, trained: Trained) -> dict[int, list[_Need]]:
    by_disk: dict[int, list[_Need]] = {}
    for need in _needs(size, places, clips, trained):
        if need.bytes > 0:
            by_disk.setdefault(_existing(need.path).stat().st_dev, []).append(need)
    return by_disk


def _needs(size: ModelSize, places: Mapping[str, str], clips: int, trained: Trained) -> Iterator[_Need]:
    from huggingface_hub import constants

    from musicgen_core.codes import CODEBOOKS, FRAME_RATE
    from musicgen_core.data.token_cache import default_folder

    runs, tokens = (storage.as_path(places.get(name, name)) for name in ("runs", "tokens"))
    tokens_bytes = 2 * CODEBOOKS * FRAME_RATE * 30 * clips  # uint16, 30 s a clip
    if storage.is_local(runs):
        settings = TrainSettings(train=trained)
        yield _Need(RUN_DIRECTORY, Path(str(runs)).absolute(), run_directory_bytes(size, settings, clips))
    else:
        largest = size.file_bytes if trained == "lora" else checkpoint_bytes(size)
        yield _Need(message("a full model on its way there"), Path(tempfile.gettempdir()), largest)
    if storage.is_local(tokens):
        folder = Path(str(tokens)).absolute()
        yield _Need(message("tokens"), folder, tokens_bytes - _bytes_in(folder))
    cache = default_folder().absolute()
    yield _Need(message("their cache"), cache, tokens_bytes - _bytes_in(cache))
    yield _Need(message("the model"), Path(constants.HF_HUB_CACHE).absolute(), size.download_bytes)


def run_directory_bytes(size: ModelSize, settings: TrainSettings, clips: int) -> int:
    """Return the final size of a new run directory."""
    from musicgen_core.training.batches import DataOrder
    from musicgen_core.training.files.disk_space import Plan, Sizes, bytes_to_write
    from musicgen_core.training.files.run_directory import RunDirectory

    steps = DataOrder(clips, EFFECTIVE_BATCH, settings.num_epochs, settings.max_steps, settings.seed).total_steps
    new = Path(tempfile.gettempdir()) / f"musicgen-doctor-{os.urandom(8).hex()}"  # nothing is there
    sizes = Sizes(size.file_bytes, 4 * (size.lora_parameters if settings.train == "lora" else size.parameters))
    return bytes_to_write(RunDirectory(storage.as_path(new), new), settings, sizes, Plan(settings.num_epochs, steps))


def _fits(needs: Sequence[_Need]) -> bool:
    free = [shutil.disk_usage(_existing(need.path)).free for need in needs[:1]]
    return sum(need.bytes for need in needs) <= sum(free)


def _compare(size: ModelSize, needs: Sequence[_Need], clips: int, is_assumed: bool, trained: Trained) -> Finding:
    place, shown = _existing(needs[0].path), counted(clips, "clip")
    free, needed = shutil.disk_usage(place).free, sum(need.bytes for need in needs)
    found = message(
        "{free} free at {place}; {clips} take up to {needed}: {parts}",
        free=sized(free),
        place=place,
        clips=message("{clips} (assumed; --clips N for yours)", clips=shown) if is_assumed else shown,
        needed=sized(needed),
        parts=joined(message("{what} {size}", what=need.what, size=sized(need.bytes)) for need in needs),
    )
    if needed <= free:
        return Finding(DISK, "ok", found)
    fix = message(
        "Make room at {place}, or name other locations: uv run musicgen-flows up --runs PATH --tokens PATH", place=place
    )
    if any(need.what == RUN_DIRECTORY for need in needs):
        fix = message(
            "{fix}; or train with {options}, where the run directory takes {least}",
            fix=fix,
            options=_LEAST_OPTIONS,
            least=sized(run_directory_bytes(size, _LEAST.model_copy(update={"train": trained}), clips)),
        )
    return Finding(DISK, "warning" if is_assumed else "problem", found, fix)


def _existing(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists and is accessible."""
    return next(one for one in (path, *path.parents) if _is_there(one))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _bytes_in(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # it may not be read, or is being written to
        return 0


def check_memory(size: ModelSize, device: str, trained: Trained = "lora") -> list[Finding]:
    """Check the memory of each GPU, or of the machine.

    Args:
        trained: what runs train, an adapter or all weights.
    """
    import torch

    if trained == "all":
        return [_check_full_training(size, device)]
    if torch.cuda.is_available() and device != "cpu":
        return [_check_gpu(size, torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    return [_check_ram(size)] if device != "cuda" else []


def _check_ram(size: ModelSize) -> Finding:
    import torch

    from musicgen_core.training.batches import preset_of

    needed = needed_gib(size, "cpu", preset_of(torch.device("cpu")).micro)
    there = main_memory_bytes() / 2**30
    found = message(
        "{there:.1f} GiB of main memory; training {model} on the CPU takes about {needed:.1f} GiB",
        there=there,
        model=size.name,
        needed=needed,
    )
    if needed <= there:
        return Finding(MEMORY, "ok", found)
    fix = message(
        "Train on a GPU of 16 GB or more, or look whether another model fits: uv run musicgen-flows doctor --model demo"
    )
    return Finding(MEMORY, "problem", found, fix)


def _check_gpu(size: ModelSize, device: torch.device) -> Finding:
    import torch

    from musicgen_core.training.batches import preset_of

    name = MEMORY if torch.cuda.device_count() == 1 else message("memory of GPU {index}", index=device.index)
    preset = preset_of(device)
    kind = "fused" if torch.cuda.get_device_capability(device) >= (8, 0) else "plain"
    kind = "checkpointing" if preset.checkpointing else kind
    free, total = (count / 2**30 for count in torch.cuda.mem_get_info(device))
    best, least = (needed_gib(size, kind, micro) for micro in (preset.micro, 1))
    found = message(
        "{free:.1f} of {total:.1f} GiB of the GPU are free; training {model} takes about {best:.1f} GiB at "
        "micro-batch {micro}, which this GPU gets, and {least:.1f} GiB at 1",
        free=free,
        total=total,
        model=size.name,
        best=best,
        micro=preset.micro,
        least=least,
    )
    if best <= free:
        return Finding(name, "ok", found)
    if least <= free:
        found = message("{found}, which it falls back to", found=found)
        return Finding(name, "warning", found, message("Stop what holds the rest: nvidia-smi"))
    if least <= total:
        return Finding(name, "problem", found, message("Stop the programs that hold the rest: nvidia-smi names them"))
    fix = message("Take a larger GPU, or a smaller model: --model facebook/musicgen-small")
    return Finding(name, "problem", found, fix)


def _check_full_training(size: ModelSize, device: str) -> Finding:
    """Compare the memory of all GPUs, or of the machine, with that of training all weights."""
    import torch

    if torch.cuda.is_available() and device != "cpu":
        free = [torch.cuda.mem_get_info(index)[0] / 2**30 for index in range(torch.cuda.device_count())]
        of = message("{free:.1f} GiB are free on each of {gpus}", free=min(free), gpus=counted(len(free), "GPU"))
    else:
        free = [main_memory_bytes() / 2**30]
        of = message("there are {free:.1f} GiB of main memory", free=free[0])
    several = list(ways(size))
    found = message(
        "{of}; training all weights of {model} takes about {ways}",
        of=of,
        model=size.name,
        ways=joined(message("{gib:.1f} GiB ({options})", gib=way.gib, options=way.options) for way in several),
    )
    if several[0].gib <= min(free):
        return Finding(MEMORY, "ok", found)
    fitting = [way.options for way in ways(size, len(free)) if way.gib <= min(free)]
    if fitting:
        return Finding(MEMORY, "warning", found, message("Train with {options}", options=fitting[0]))
    fix = message("Train an adapter (--train lora), or take larger GPUs or more of them")
    return Finding(MEMORY, "problem", found, fix)


def needed_gib(size: ModelSize, kind: str, micro: int) -> float:
    """Return the memory in GiB of a training run with micro-batches of `micro` clips of 30 s.

    `kind` is `cpu`, or the kind of blocks on a GPU: `fused`, `plain` or `checkpointing`.
    """
    where, weight_bytes = ("cpu", 4) if kind == "cpu" else ("cuda", 2)
    activations = micro * _CLIP_GIB[kind] * size.widths / LARGE_WIDTHS
    return _BESIDE_WEIGHTS_GIB[where] + size.parameters * weight_bytes / 2**30 + activations


def main_memory_bytes() -> int:
    """Return the memory of the machine, or the limit of its container."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return there
    return min(there, int(limit)) if limit.isdecimal() else there
