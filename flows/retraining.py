"""What a training that comes again and again asks: which was the last one, and is there anything new since?"""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath

from flows.places import place
from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.data.duplicate_shards import copies_among
from musicgen_core.data.shards import read_report
from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.run_layout import CONFIG, FINAL_ADAPTER, RunConfig, RunLayout, find_config
from tasks.progress import run_logger


@dataclass(frozen=True)
class Training:
    """A completed training: its run directory, and what its config.json says."""

    directory: UPath
    config: RunConfig

    @property
    def final_adapter(self) -> UPath:
        return RunLayout(self.directory).adapter(FINAL_ADAPTER)

    def lora_differences(self, settings: TrainSettings) -> list[str]:
        """What keeps a training with such settings from beginning with this one's adapter."""
        wanted, given = settings.model_dump(mode="json"), self.config.values
        names = [name for name in wanted if name.startswith("lora_") and name != "lora_dropout"]
        return [
            f"{name} was {given[name]} and is {wanted[name]}"
            for name in names
            if name in given and given[name] != wanted[name]
        ]


def is_begun(directory: UPath) -> bool:
    """Whether a training has been at work there, so that what it begins with is decided."""
    return (directory / CONFIG).exists()


def last_trained(model: str, next_step: str) -> str:
    """Return the run directory under the variable musicgen_runs whose training was completed last.

    Args:
        model: as it was given to the training; empty: any.
        next_step: what to do where there is none.

    Raises:
        ConfigError: there is none.
    """
    runs = storage.as_path(place(None, "musicgen_runs"))
    last = last_completed(runs, model or None, besides=runs)
    if last is None:
        of = f" of {model}" if model else ""
        raise ConfigError(message("there is no completed training{of} in {runs}", of=of, runs=runs), next_step)
    run_logger().info("the adapter is the best of the training that was completed last, %s", last.directory)
    return str(last.directory)


def last_completed(runs: UPath, model: str | None, besides: UPath) -> Training | None:
    """The training of a model that was completed last, among the run directories in `runs`.

    Args:
        model: as it was given to the training; None: any.
        besides: a run directory that does not count.
    """
    if not runs.is_dir():
        return None
    if not storage.is_local(runs):
        runs.fs.invalidate_cache(runs.path)  # other machines may have trained since it was last listed
    found = []
    for directory in runs.iterdir():
        training = _completed(directory)
        if training is not None and directory.name != besides.name and model in (None, training.config.model):
            final = training.final_adapter
            found.append((final.fs.modified(final.path), directory.name, training))
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def _completed(directory: UPath) -> Training | None:
    config = find_config(directory)
    if config is None or config.shards is None:
        return None
    training = Training(directory, config)
    return training if training.final_adapter.exists() else None


def new_archives(tokens: UPath, training: Training) -> list[str]:
    """Stems of whole shards that a training has not seen, or has seen with other codes or other descriptions.

    Those that a new training would leave out, as copies of others, don't count.
    """
    seen = training.config.shards or {}
    found = {path.stem: read_report(tokens, path.stem) for path in _markers(tokens)}
    reports = {stem: report for stem, report in sorted(found.items()) if report is not None}
    copies = copies_among(reports)
    return [stem for stem, report in reports.items() if stem not in copies and seen.get(stem) != report.content]


def _markers(tokens: UPath) -> list[UPath]:
    if not storage.is_local(tokens):
        tokens.fs.invalidate_cache(tokens.path)
    return [path for path in tokens.iterdir() if path.suffix == ".json"] if tokens.is_dir() else []
