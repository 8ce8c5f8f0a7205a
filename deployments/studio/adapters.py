"""The adapters that the studio offers: those given, and the best of each run in the folder of training runs."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.run_layout import BEST_ADAPTER, BEST_MODEL, RunLayout, find_config, short_name
from musicgen_core.tracking.metrics import read_metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfferedAdapter:
    """An adapter that people can choose.

    Attributes:
        id: names it in requests, which can name no other file.
        source: its location.
        name: its short name.
        strength: at first.
        validation_loss: the lowest of its run, in nats; None if unknown.
    """

    id: str
    source: str
    name: str
    strength: float = 0.0
    validation_loss: float | None = None


def offered_adapters(given: Sequence[WeightedAdapter], runs: UPath, model: str) -> dict[str, OfferedAdapter]:
    """Return all adapters by id: those given first, then those of runs with the same model, the best first.

    Args:
        given: adapters of the command line.
        runs: the folder of training runs, which need not exist.
        model: name of the base model.
    """
    first = [_offered(one.source, one.source.rstrip("/"), one.strength) for one in given]
    known = {_resolved(one.source) for one in first}
    found = [one for one in _of_runs(runs, model) if _resolved(one.source) not in known]
    found.sort(key=lambda one: (one.validation_loss is None, one.validation_loss, one.name))
    return {one.id: one for one in [*first, *found]}


def _of_runs(runs: UPath, model: str) -> Iterator[OfferedAdapter]:
    try:
        directories = sorted(runs.iterdir(), key=str) if runs.is_dir() else []
    except OSError as error:
        logger.warning("the folder of runs %s can't be read: %s", runs, error)
        return
    for directory in directories:
        config = find_config(directory)
        if (
            config is None
            or config.model not in ("", model)
            or not RunLayout(directory).learned(BEST_ADAPTER, BEST_MODEL).exists()
        ):
            continue
        yield _offered(str(directory), directory.name)


def _offered(source: str, name: str, strength: float = 0.0) -> OfferedAdapter:
    id = hashlib.sha256(source.encode()).hexdigest()[:16]
    return OfferedAdapter(id, source, short_name(name), strength, _validation_loss(storage.as_path(source)))


def _validation_loss(run: UPath) -> float | None:
    """Return the lowest validation loss of a run; None if it has none, or isn't a local run."""
    metrics = RunLayout(run).metrics
    if not storage.is_local(metrics) or not metrics.is_file():
        return None
    file = Path(str(metrics))
    return _lowest_loss(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _lowest_loss(metrics: Path, changed: int) -> float | None:
    """Return the lowest validation loss of a file. `changed` is a key of the cache: each click asks for all runs."""
    losses = [row["val/loss"] for row in read_metrics(metrics) if "val/loss" in row]
    return min((loss for loss in losses if math.isfinite(loss)), default=None)


def _resolved(source: str) -> str:
    path = storage.as_path(source)
    return str(Path(str(path)).resolve()) if storage.is_local(path) and path.exists() else source
