"""Provenance of an adapter: settings, data, metrics and samples from its run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.shards import ShardReport, shard_paths
from musicgen_core.model.adapters import Adapter
from musicgen_core.run_layout import EVALUATION_DATA, PROMPTS, RunConfig, RunLayout, find_config, run_of, sample_name
from musicgen_core.tracking import read_metrics

MOST_SAMPLES = 3
_METRICS = ("train/epoch_loss", "val/loss", "val/perplexity")  # the loss of a single step is too noisy
_OF_CODEBOOKS = "val/perplexity_codebook_"


@dataclass(frozen=True)
class MetricValue:
    """Value of a metric, and the step at which it was measured."""

    value: float
    step: int


@dataclass(frozen=True)
class RenderedSample:
    """Samples of a training run for one prompt: with the adapter, and of the base model if available."""

    prompt: str
    adapted: UPath
    base: UPath | None


@dataclass(frozen=True)
class Data:
    """Training data of an adapter, including clips held out for validation; unknown values are None."""

    archives: int
    clips: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """Mean losses of both models over the same held-out clips, in nats per code."""

    clips: int
    base_loss: float
    adapter_loss: float


@dataclass(frozen=True)
class Origin:
    """Provenance of an adapter; empty outside of a run directory."""

    config: RunConfig = field(default_factory=lambda: RunConfig({}))
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    evaluated: Evaluated | None = None
    data: Data | None = None
    samples: tuple[RenderedSample, ...] = ()


def read_origin(weights: UPath, adapter: Adapter) -> Origin:
    """Read the provenance from the run directory of a `*_lora.pt`; unreadable parts are left out."""
    root = run_of(weights)
    config = find_config(root) if root is not None else None
    if root is None or config is None:
        return Origin()
    layout = RunLayout(root)
    return Origin(
        config=config,
        metrics=_metrics(layout.metrics, adapter.global_step),
        evaluated=_evaluated(layout, weights, config),
        data=_data(config),
        samples=_samples(layout.samples, adapter),
    )


def _read_json(path: UPath) -> dict[str, Any] | None:
    try:
        values = json.loads(storage.read_text(path))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _metrics(path: UPath, last_step: int) -> dict[str, MetricValue]:
    """Return the newest value of each metric up to the adapter's step."""
    if not path.exists():
        return {}
    newest: dict[str, MetricValue] = {}
    with storage.staged(path) as local:
        for row in read_metrics(local):
            if row["step"] <= last_step:
                for name, value in row.items():
                    if name in _METRICS or name.startswith(_OF_CODEBOOKS):
                        newest[name] = MetricValue(value, int(row["step"]))
    return newest


def _evaluated(layout: RunLayout, weights: UPath, config: RunConfig) -> Evaluated | None:
    """Return the result of the evaluation of exactly these weights, if any."""
    found = _read_json(layout.evaluation(weights.stem) / EVALUATION_DATA) or {}
    try:
        if found["adapter"]["sha256"] != storage.content_sha256(weights):
            return None
        kept = config.held_out_fraction or 0.0
        if not found.get("is_held_out", found.get("validation_fraction", 0.0) <= kept):  # older files lack the field
            return None
        loss = found["loss"]
        return Evaluated(int(found["clips"]), float(loss["base_loss"]), float(loss["adapter_loss"]))
    except (KeyError, TypeError, ValueError):
        return None


def _data(config: RunConfig) -> Data | None:
    shards = config.shards
    if not shards:
        return None
    reports = []
    for stem, content in shards.items():
        try:
            _, marker = shard_paths(storage.as_path(config.tokens), stem)
            report = ShardReport.parse(storage.read_text(marker))
        except (OSError, ValueError, TypeError, KeyError):
            return Data(len(shards))
        if report.content != content:  # tokenized again since
            return Data(len(shards))
        reports.append(report)
    seconds = sum(report.audio_seconds for report in reports)
    return Data(len(shards), sum(report.clips for report in reports), seconds)


def _samples(folder: UPath, adapter: Adapter) -> tuple[RenderedSample, ...]:
    prompts = (_read_json(folder / PROMPTS) or {}).get("prompts") or []
    found = []
    for i, prompt in enumerate(prompts[:MOST_SAMPLES]):
        adapted, base = (folder / sample_name(epoch, i) for epoch in (adapter.epoch, 0))
        if adapted.exists():
            found.append(RenderedSample(str(prompt), adapted, base if base.exists() else None))
    return tuple(found)
