"""Check that the disks have room for tokens, a model and a training run with the default settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.checks.finding import Finding
from deployments.checks.model_size import ModelSize
from deployments.parameters import ASSUMED_CLIPS
from musicgen_core import storage
from musicgen_core.config import EFFECTIVE_BATCH, TrainSettings
from musicgen_core.language import message
from musicgen_core.wording import counted, joined, sized

DISK = message("disk")
RUN_DIRECTORY = message("a run directory")

_LEAST = TrainSettings(keep_last=1, full_models="best_and_final")
_LEAST_OPTIONS = "--keep-last 1 --full-models best_and_final"


@dataclass(frozen=True)
class _Need:
    """Disk space that something needs under a path."""

    what: str
    path: Path
    bytes: int


def check_disk(size: ModelSize, places: Mapping[str, str], clips: int | None) -> list[Finding]:
    """Return a finding for each disk of this machine that jobs will write to.

    Args:
        places: locations of `tokens` and `runs`. By default, directories of these names in the working directory.
        clips: number of training clips. None: unknown; a disk without room for the assumed number is no problem as
            long as it has room for a single clip.
    """
    wanted, least = ASSUMED_CLIPS if clips is None else clips, _by_disk(size, places, 1)
    return [
        _compare(size, needs, wanted, clips is None and _fits(least.get(disk, ())))
        for disk, needs in _by_disk(size, places, wanted).items()
    ]


def _by_disk(size: ModelSize, places: Mapping[str, str], clips: int) -> dict[int, list[_Need]]:
    by_disk: dict[int, list[_Need]] = {}
    for need in _needs(size, places, clips):
        if need.bytes > 0:
            by_disk.setdefault(_existing(need.path).stat().st_dev, []).append(need)
    return by_disk


def _needs(size: ModelSize, places: Mapping[str, str], clips: int) -> Iterator[_Need]:
    from huggingface_hub import constants

    from musicgen_core.codes import CODEBOOKS, FRAME_RATE
    from musicgen_core.data.token_cache import default_folder

    runs, tokens = (storage.as_path(places.get(name, name)) for name in ("runs", "tokens"))
    tokens_bytes = 2 * CODEBOOKS * FRAME_RATE * 30 * clips  # uint16, 30 s a clip
    if storage.is_local(runs):
        yield _Need(RUN_DIRECTORY, Path(str(runs)).absolute(), run_directory_bytes(size, TrainSettings(), clips))
    else:
        yield _Need(message("a full model on its way there"), Path(tempfile.gettempdir()), size.file_bytes)
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
    sizes = Sizes(size.file_bytes, 4 * size.lora_parameters)
    return bytes_to_write(RunDirectory(storage.as_path(new), new), settings, sizes, Plan(settings.num_epochs, steps))


def _fits(needs: Sequence[_Need]) -> bool:
    free = [shutil.disk_usage(_existing(need.path)).free for need in needs[:1]]
    return sum(need.bytes for need in needs) <= sum(free)


def _compare(size: ModelSize, needs: Sequence[_Need], clips: int, is_assumed: bool) -> Finding:
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
            least=sized(run_directory_bytes(size, _LEAST, clips)),
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
