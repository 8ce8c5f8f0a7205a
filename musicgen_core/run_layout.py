"""Layout of a run directory: the names of its files, and its config.json.

Whatever reads or writes a run directory takes the names from here. Imports no torch, so that forms, summaries and the
command line can use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from upath import UPath

from musicgen_core import storage

LATEST = "latest.pt"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
LOSS_PLOT, PERPLEXITY_PLOT, LEARNING_RATE_PLOT = "loss.png", "perplexity.png", "learning_rate.png"
ADAPTERS = "lora_weights"
FULL_MODELS = "full_models"
OWED = "owed"
SAMPLES = "samples"
PROMPTS = "prompts.json"
"""In `SAMPLES`: the prompts of the samples, by number."""
PRIOR = "prior"
SUPERSEDED = "superseded"
EVALUATION = "evaluation"
EVALUATION_REPORT, EVALUATION_DATA = "report.html", "evaluation.json"
"""In `EVALUATION`, or wherever an evaluation is written."""
WANDB = "wandb"
BEST_ADAPTER, FINAL_ADAPTER, LATEST_ADAPTER = "best_lora", "final_lora", "latest_lora"
EMA_ADAPTER = "ema_lora"
"""Moving average of the weights up to `LATEST_ADAPTER`, with `ema`."""
EPOCH_ADAPTER = "lora_epoch_"
"""Stems in `ADAPTERS`; that of an epoch is followed by its number."""
BEST_MODEL, FINAL_MODEL = "best_model", "final_model"
"""Stems in `FULL_MODELS`, beside those that start with `EPOCH_CHECKPOINT`."""
EMA_MODEL = "ema_model"
"""The same of the moving average, with `train all` and `ema`."""
STEP_CHECKPOINT, EPOCH_CHECKPOINT = "checkpoint_step_", "checkpoint_epoch_"
"""Prefixes of step checkpoints, and of full models with a checkpoint; the number follows."""
WEIGHT_FOLDERS = (FULL_MODELS, ADAPTERS, OWED)
"""Folders of weights and checkpoints."""

SHARDS = "shards"
HELD_OUT = "held_out_fraction"
SPLIT_BY = "split_by"
"""Keys of config.json: fingerprints of the shards by stem, and the held-out fraction of the clips where
`validation_fraction` would have held out too few."""

_SAMPLE = re.compile(r"epoch_(\d+)_(\d+)\.wav")


@dataclass(frozen=True)
class RunLayout:
    """Paths of the files of a run directory, whether or not they exist."""

    root: UPath

    @property
    def latest(self) -> UPath:
        return self.root / LATEST

    @property
    def config(self) -> UPath:
        return self.root / CONFIG

    @property
    def metrics(self) -> UPath:
        return self.root / METRICS

    @property
    def samples(self) -> UPath:
        return self.root / SAMPLES

    @property
    def prior(self) -> UPath:
        """The base model's own clips, as a directory of tokens."""
        return self.root / PRIOR

    def evaluation(self, adapter: str) -> UPath:
        """The directory of an adapter's evaluation: a subdirectory for any but the best."""
        folder = self.root / EVALUATION
        return folder if adapter in (BEST_ADAPTER, BEST_MODEL) else folder / adapter

    def learned(self, adapter: str, model: str) -> UPath:
        """What the run has learned: an adapter of this stem or, if there is none, with `train all` a full model."""
        found = self.adapter(adapter)
        return found if found.exists() or not self.full_model(model).exists() else self.full_model(model)

    def adapter(self, stem: str) -> UPath:
        return self.root / ADAPTERS / f"{stem}.pt"

    def full_model(self, stem: str) -> UPath:
        return self.root / FULL_MODELS / f"{stem}.pt"

    def step_checkpoint(self, step: int) -> UPath:
        return self.root / f"{STEP_CHECKPOINT}{step}.pt"

    def owed(self, step: int) -> UPath:
        """The checkpoint of a step whose full models have yet to be written."""
        return self.root / OWED / f"{STEP_CHECKPOINT}{step}.pt"


def run_of(weights: UPath) -> UPath | None:
    """Return the run directory that an adapter or a full model is in; None if it is elsewhere."""
    return weights.parent.parent if weights.parent.name in (ADAPTERS, FULL_MODELS) else None


def epoch_adapter(epoch: int) -> str:
    """Return the stem of an epoch's adapter."""
    return f"{EPOCH_ADAPTER}{epoch}"


def sample_name(epoch: int, prompt: int) -> str:
    """Return the name of a sample in `SAMPLES`; epoch 0 is the base model."""
    return f"epoch_{epoch:03d}_{prompt:02d}.wav"


def parse_sample_name(name: str) -> tuple[int, int] | None:
    """Return epoch and number of the prompt of a sample; None if it isn't the name of one."""
    match = _SAMPLE.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class RunConfig:
    """The content of a run's config.json: its settings, and what it was trained on.

    Every version of this project wrote one, and people edit them, so each value is checked where it is read.

    Attributes:
        values: the whole content.
    """

    values: Mapping[str, Any]

    @property
    def is_training(self) -> bool:
        """Whether a training run wrote it, rather than another program."""
        return "lora_r" in self.values or self.trains_all

    @property
    def trains_all(self) -> bool:
        """Whether the run trains the whole model, with `train all`, rather than an adapter."""
        return self.values.get("train") == "all"

    @property
    def model(self) -> str:
        """Name of the base model, as given to the run; empty if unknown."""
        return self._text("model")

    @property
    def model_dir(self) -> str:
        """Directory of the base model on the machine of the run; empty if unknown."""
        return self._text("model_dir")

    @property
    def tokens(self) -> str:
        """Location of the shards; empty if unknown."""
        return self._text("tokens")

    @property
    def shards(self) -> Mapping[str, str] | None:
        """Fingerprint of each shard, by stem; None if unknown, as in early versions."""
        found = self.values.get(SHARDS)
        return found if isinstance(found, dict) else None

    @property
    def held_out_fraction(self) -> float | None:
        """Fraction of the clips that was held out; None if unknown."""
        found = self.values.get(HELD_OUT, self.values.get("validation_fraction"))
        return found if isinstance(found, int | float) and 0 <= found < 1 else None

    @property
    def split_by(self) -> Literal["any_level", "near_duplicates", "groups", "clips"]:
        """What validation held out as a whole, see `SplitBy`; single clips in runs that didn't record it."""
        found = self.values.get(SPLIT_BY)
        return found if found in ("any_level", "near_duplicates", "groups") else "clips"

    @property
    def wandb_id(self) -> str:
        """Id of the run at WandB, which also identifies the run itself; empty if unknown."""
        return self._text("wandb_id")

    @property
    def init_adapter(self) -> str:
        """The adapter that the run started from; empty if none."""
        return self._text("init_adapter")

    @property
    def origin(self) -> dict[str, str] | None:
        """The checkpoint that `--resume` named last, under the key `checkpoint`; None if none was."""
        found = self.values.get("origin")
        return found if isinstance(found, dict) and isinstance(found.get("checkpoint"), str) else None

    def _text(self, name: str) -> str:
        found = self.values.get(name)
        return found if isinstance(found, str) else ""


def load_config(run_dir: UPath) -> RunConfig:
    """Read a run's config.json.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be read.
        ValueError: it is damaged.
    """
    values = json.loads(storage.read_text(run_dir / CONFIG))
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}")
    return RunConfig(values)


def find_config(run_dir: UPath) -> RunConfig | None:
    """Read a run's config.json; None if there is none, or none that can be read."""
    try:
        return load_config(run_dir)
    except (OSError, ValueError):
        return None


def short_name(path: str) -> str:
    """Return the name of an adapter's file behind that of its run or directory: `jazz/best_lora.pt`."""
    return "/".join([part for part in PurePosixPath(path).parts if part != ADAPTERS][-2:])
