"""The adapter that is evaluated, and the training that it comes from where that is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.errors import RunDirectoryError
from musicgen_core.evaluation.request import EvaluatedAdapter
from musicgen_core.language import message
from musicgen_core.model.hub_adapter import hub_name, shown
from musicgen_core.model.lora import Adapter, find_adapter, load_adapter

FOLDER = "evaluation"
_BEST = "best_lora"


@dataclass(frozen=True)
class Subject:
    """An adapter and where it is from.

    Attributes:
        path: of its weights.
        run_dir: that it lies in, with
        config: the run's config.json; None for one that lies elsewhere.
    """

    path: UPath
    adapter: Adapter
    run_dir: UPath | None
    config: Mapping[str, Any] | None

    @property
    def output(self) -> UPath:
        """Where its evaluation goes by default: to its run directory, those of others than the best in a folder each;
        or beside it; of one on the Hub to the working directory."""
        if self.run_dir is None:
            if (name := hub_name(self.path)) is not None:
                return storage.as_path(f"{name.partition('@')[0].partition('/')[2]}_{FOLDER}")
            if self.path.suffix == ".pt":
                return self.path.with_name(f"{self.path.stem}_{FOLDER}")
            directory = self.path.parent  # of peft
            return directory.with_name(f"{directory.name}_{FOLDER}")
        folder = self.run_dir / FOLDER
        return folder if self.path.stem == _BEST else folder / self.path.stem

    def described(self) -> EvaluatedAdapter:
        return EvaluatedAdapter(
            shown(self.path), storage.content_sha256(self.path), self.adapter.epoch, self.adapter.global_step
        )

    def metrics(self) -> list[dict[str, float]]:
        """The rows of its training's metrics.jsonl, if any."""
        if self.run_dir is None or not (self.run_dir / "metrics.jsonl").exists():
            return []
        with storage.staged(self.run_dir / "metrics.jsonl") as local:
            return tracking.read_metrics(local)


def find_subject(location: storage.Location) -> Subject:
    """What `location` names: a `*_lora.pt`, a run directory (its best) or a PEFT directory.

    Raises:
        AdapterError: there is none.
        RunDirectoryError: its run directory's config.json is damaged.
    """
    path = find_adapter(location)
    run_dir = path.parent.parent if path.parent.name == "lora_weights" else None
    if run_dir is None or not (run_dir / "config.json").exists():
        return Subject(path, load_adapter(path), None, None)
    try:
        config = json.loads(storage.read_text(run_dir / "config.json"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            message("{run_dir}/config.json is damaged ({error})", run_dir=run_dir, error=error),
            message("Copy the adapter to another place and evaluate it there"),
        ) from error
    return Subject(path, load_adapter(path), run_dir, config)
