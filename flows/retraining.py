"""Scheduled retraining: find the last completed training run, and the archives that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath

from flows.locations import location_of
from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.data.shards import copies_among, read_report
from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.run_layout import CONFIG, FINAL_ADAPTER, FINAL_MODEL, RunConfig, RunLayout, find_config
from tasks.progress import run_logger


@dataclass(frozen=True)
class Training:
    """A completed training run: its run directory and its `config.json`."""

    directory: UPath
    config: RunConfig

    @property
    def final_adapter(self) -> UPath:
        """Return the final adapter, or the final full model of a run with `train all`."""
        layout = RunLayout(self.directory)
        return layout.full_model(FINAL_MODEL) if self.config.trains_all else layout.adapter(FINAL_ADAPTER)

    def lora_differences(self, settings: TrainSettings) -> list[str]:
        """Return the LoRA settings that differ from this run's, so that its adapter can't initialize the new run's."""
        wanted, given = settings.model_dump(mode="json"), self.config.values
        names = ["train", *(name for name in wanted if name.startswith("lora_") and name != "lora_dropout")]
        return [
            f"{name} was {given[name]} and is {wanted[name]}"
            for name in names
            if name in given and given[name] != wanted[name]
        ]


def is_begun(directory: UPath) -> bool:
    """Return whether a training run has started there, so that its initial adapter is already decided."""
    return (directory / CONFIG).exists()


def last_trained(model: str, next_step: str) -> str:
    """Return the run directory of the training run that was completed last, under the variable musicgen_runs.

    Args:
        model: the run's parameter `model`; empty: any.
        next_step: the error's advice if there is no such run.

    Raises:
        ConfigError: there is no completed training run.
    """
    runs = storage.as_path(location_of(None, "musicgen_runs"))
    last = last_completed(runs, model or None, besides=runs)
    if last is None:
        of = f" of {model}" if model else ""
        raise ConfigError(message("there is no completed training{of} in {runs}", of=of, runs=runs), next_step)
    run_logger().info("the adapter is the best of the training that was completed last, %s", last.directory)
    return str(last.directory)


def last_completed(runs: UPath, model: str | None, besides: UPath) -> Training | None:
    """Return the training run that was completed last among the run directories in `runs`; None: there is none.

    Args:
        runs: the directory that holds the run directories.
        model: the run's parameter `model`; None: any.
        besides: a run directory to ignore.
    """
    if not runs.is_dir():
        return None
    if not storage.is_local(runs):
        runs.fs.invalidate_cache(runs.path)  # other machines may have added runs since the last listing
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
    """Return the stems of complete shards that a training run has not seen, or saw with other codes or descriptions.

    Copies of other shards, which a new run would ignore, don't count.
    """
    seen = training.config.shards or {}
    if not storage.is_local(tokens):
        tokens.fs.invalidate_cache(tokens.path)
    markers = [path for path in tokens.iterdir() if path.suffix == ".json"] if tokens.is_dir() else []
    found = {path.stem: read_report(tokens, path.stem) for path in markers}
    reports = {stem: report for stem, report in sorted(found.items()) if report is not None}
    copies = copies_among(reports)
    return [stem for stem, report in reports.items() if stem not in copies and seen.get(stem) != report.content]
