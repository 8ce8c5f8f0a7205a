"""The evaluated adapter and its training run, if known."""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.errors import RunDirectoryError
from musicgen_core.evaluation.request import EvaluatedAdapter
from musicgen_core.language import message
from musicgen_core.model.adapters import Adapter, displayed_path, find_adapter, hub_name, load_adapter
from musicgen_core.run_layout import BEST_ADAPTER, CONFIG, EVALUATION, RunConfig, RunLayout, load_config, run_of


@dataclass(frozen=True)
class Subject:
    """An adapter with its origin.

    Attributes:
        path: path of the weights.
        run_dir: its run directory; None for an adapter elsewhere.
        config: the run's config.json; None for an adapter elsewhere.
    """

    path: UPath
    adapter: Adapter
    run_dir: UPath | None
    config: RunConfig | None

    @property
    def output(self) -> UPath:
        """Return the default output directory.

        It is the run directory for the best adapter and a subfolder of it for others; beside the adapter without a run
        directory; the working directory for an adapter on the Hub.
        """
        if self.run_dir is None:
            if (name := hub_name(self.path)) is not None:
                return storage.as_path(f"{name.partition('@')[0].partition('/')[2]}_{EVALUATION}")
            if self.path.suffix == ".pt":
                return self.path.with_name(f"{self.path.stem}_{EVALUATION}")
            directory = self.path.parent  # of peft
            return directory.with_name(f"{directory.name}_{EVALUATION}")
        folder = RunLayout(self.run_dir).evaluation
        return folder if self.path.stem == BEST_ADAPTER else folder / self.path.stem

    def described(self) -> EvaluatedAdapter:
        return EvaluatedAdapter(
            path=displayed_path(self.path),
            sha256=storage.content_sha256(self.path),
            epoch=self.adapter.epoch,
            global_step=self.adapter.global_step,
        )

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows of its run's metrics.jsonl, if any."""
        metrics = RunLayout(self.run_dir).metrics if self.run_dir is not None else None
        if metrics is None or not metrics.exists():
            return []
        with storage.staged(metrics) as local:
            return tracking.read_metrics(local)


def find_subject(location: storage.Location) -> Subject:
    """Return the adapter at a location: a `*_lora.pt`, a run directory (its best) or a PEFT directory.

    Raises:
        AdapterError: no adapter was found.
        RunDirectoryError: the run directory's config.json is damaged.
    """
    path = find_adapter(location)
    run_dir = run_of(path)
    if run_dir is None or not (run_dir / CONFIG).exists():
        return Subject(path, load_adapter(path), run_dir=None, config=None)
    try:
        config = load_config(run_dir)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            message("{run_dir}/config.json is damaged ({error})", run_dir=run_dir, error=error),
            message("Copy the adapter to another directory and evaluate it there"),
        ) from error
    return Subject(path, load_adapter(path), run_dir=run_dir, config=config)
