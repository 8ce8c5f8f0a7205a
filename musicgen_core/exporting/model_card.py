"""Model card of an export (`README.md`), in the format of the Hugging Face Hub, with the adapter's provenance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.shards import ShardReport, shard_paths
from musicgen_core.escaping import markdown_code, markdown_text, one_line
from musicgen_core.model.adapted_layers import class_of_weights, transformers_class
from musicgen_core.model.adapters import Adapter, AdapterConfig, hub_id
from musicgen_core.model.local_files import DEMO
from musicgen_core.model.trained_model import Learned
from musicgen_core.model.weighted_adapters import shown_strength
from musicgen_core.model.weights import BUILT_IN, PUBLISHED
from musicgen_core.run_layout import EVALUATION_DATA, PROMPTS, RunConfig, RunLayout, find_config, run_of, sample_name
from musicgen_core.tracking import read_metrics
from musicgen_core.wording import counted, lasting

ExportKind = Literal["peft", "audiocraft", "huggingface"]
CARD = "README.md"
MOST_SAMPLES = 3
LIBRARIES: dict[ExportKind, str] = {"peft": "peft", "audiocraft": "audiocraft", "huggingface": "transformers"}
"""The library that loads each format, by its name on the Hub"""
TAGS = ["musicgen", "lora", "text-to-music", "music"]
_NAMES = {  # of metrics; the loss of a single step is too noisy
    "train/epoch_loss": "training loss of the epoch, nats",
    "val/loss": "validation loss, nats",
    "val/perplexity": "validation perplexity",
}
_OF_CODEBOOK = re.compile(r"val/perplexity_codebook_\d+")
_OF_TRAINING = (  # fields of a run's config.json, without those about the machine or its paths
    *("learning_rate", "warmup_steps", "schedule", "weight_decay", "batch_size", "gradient_accumulation_steps"),
    *("clips_per_step", "num_epochs", "max_steps", "early_stopping", "max_grad_norm", "base_precision"),
    *("segment_seconds", "validation_fraction", "cfg_dropout", "word_dropout", "seed"),
    *("train", "layers", "ranks", "optimizer_name", "ema"),
)


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
class MixedAdapter:
    """An adapter in a mix, with its name and strength."""

    name: str
    strength: float
    adapter: Learned


@dataclass(frozen=True)
class Origin:
    """Provenance of an adapter; empty outside of a run directory. A mix has only the adapters that it is the sum of."""

    config: RunConfig = field(default_factory=lambda: RunConfig({}))
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    evaluated: Evaluated | None = None
    data: Data | None = None
    samples: tuple[RenderedSample, ...] = ()
    mixed: tuple[MixedAdapter, ...] = ()


def read_origin(weights: UPath, adapter: Learned) -> Origin:
    """Read the provenance from the run directory of a `*_lora.pt`; unreadable parts are left out."""
    root = run_of(weights)
    config = find_config(root) if root is not None else None
    if root is None or config is None:
        return Origin()
    layout = RunLayout(root)
    return Origin(
        config=config,
        metrics=_read_metrics(layout.metrics, adapter.global_step),
        evaluated=_read_evaluation(layout, weights, config),
        data=_read_data(config),
        samples=_read_samples(layout.samples, adapter),
    )


def _read_json(path: UPath) -> dict[str, Any]:
    try:
        values = json.loads(storage.read_text(path))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_metrics(path: UPath, last_step: int) -> dict[str, MetricValue]:
    """Return the newest value of each metric up to the adapter's step."""
    if not path.exists():
        return {}
    newest: dict[str, MetricValue] = {}
    with storage.staged(path) as local:
        for row in read_metrics(local):
            if row["step"] <= last_step:
                for name, value in row.items():
                    if name in _NAMES or _OF_CODEBOOK.fullmatch(name):
                        newest[name] = MetricValue(value, int(row["step"]))
    return newest


def _read_evaluation(layout: RunLayout, weights: UPath, config: RunConfig) -> Evaluated | None:
    """Return the result of the evaluation of exactly these weights, if any."""
    found = _read_json(layout.evaluation(weights.stem) / EVALUATION_DATA)
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


def _read_data(config: RunConfig) -> Data | None:
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


def _read_samples(folder: UPath, adapter: Learned) -> tuple[RenderedSample, ...]:
    prompts = _read_json(folder / PROMPTS).get("prompts") or []
    found = []
    for i, prompt in enumerate(prompts[:MOST_SAMPLES]):
        adapted, base = (folder / sample_name(epoch, i) for epoch in (adapter.epoch, 0))
        if adapted.exists():
            found.append(RenderedSample(str(prompt), adapted, base if base.exists() else None))
    return tuple(found)


def write_card(
    folder: Path,
    name: str,
    kind: ExportKind,
    adapter: Learned,
    origin: Origin,
    text_encoder: str | None,
    samples: Mapping[str, RenderedSample],
    repo: str | None = None,
) -> None:
    """Write the model card.

    Args:
        folder: directory of the export.
        name: final name of the directory.
        kind: format of the export.
        adapter: the exported adapter, or the model that was trained whole.
        origin: provenance of the adapter.
        text_encoder: audiocraft's name of the T5 that is part of the export; None: it is loaded from the Hub.
        samples: exported samples, by the suffix of their file names.
        repo: `USER/NAME` on the Hub, if the export is for it: the card then has players, which need whole addresses.
    """
    base = hub_id(adapter.base_model)
    recorded = adapter.base_model.partition("@sha256:")[0]
    settings = AdapterConfig.from_plain(adapter.config) if isinstance(adapter, Adapter) else None
    variety = [*["rsLoRA"] * settings.rslora, *["DoRA"] * settings.dora] if settings is not None else []
    loader = PackageLoader("musicgen_core.exporting", package_path="")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": markdown_text, "code": markdown_code, "label": one_line}
    environment.filters |= {"lasting": lasting, "counted": counted}
    text = environment.get_template("model_card.md.j2").render(
        front_matter=_front_matter(kind, adapter.base_model, samples if repo else {}),
        name=repo.rpartition("/")[2] if repo else name,
        to_load=repo or name,
        repo=repo,
        kind=kind,
        base=base,
        of=base or (f"the model {recorded}" if recorded in BUILT_IN else "a MusicGen"),
        model_class=_model_class(adapter),
        is_whole=settings is None,
        base_to_load=base or "path/to/the/base/model",
        licence=_licence(adapter.base_model),
        adapter=adapter,
        # The varieties of several adapters are in their table.
        variety="" if origin.mixed else " and ".join(variety),
        data=origin.data,
        settings={} if origin.mixed else _settings(adapter, origin),
        metrics={} if origin.mixed else _metric_rows(adapter, origin),
        mixed=_mixed_rows(origin),
        samples=samples,
        text_encoder=text_encoder,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _model_class(learned: Learned) -> str:
    return transformers_class(vars(learned)) if isinstance(learned, Adapter) else class_of_weights(learned.weights)


def _licence(base_model: str) -> str | None:
    """Return the Hub's identifier of the base model's licence, or None if unknown."""
    if (hub_id(base_model) or "").startswith(PUBLISHED):
        return "cc-by-nc-4.0"
    return "cc0-1.0" if base_model.partition("@sha256:")[0] == DEMO else None


def _front_matter(kind: ExportKind, base_model: str, players: Mapping[str, RenderedSample]) -> str:
    from huggingface_hub import ModelCardData

    base, licence = hub_id(base_model), _licence(base_model)
    relation: dict[str, Any] = {"base_model_relation": "adapter" if kind == "peft" else "finetune"} if base else {}
    if players:
        relation["widget"] = [
            {"text": one_line(sample.prompt), "output": {"url": f"samples/adapter_{file}"}}
            for file, sample in players.items()
        ]
    return ModelCardData(
        base_model=base,
        license=licence or "other",
        license_name=None if licence else "that-of-the-base-model",
        library_name=LIBRARIES[kind],
        pipeline_tag="text-to-audio",
        tags=TAGS,
        **relation,
    ).to_yaml()


def _settings(adapter: Learned, origin: Origin) -> dict[str, Any]:
    """Return the training settings by their names in this project."""
    lora = (
        {}
        if not isinstance(adapter, Adapter)
        else {
            "lora_r": adapter.config["r"],
            "lora_alpha": adapter.config["lora_alpha"],
            "lora_dropout": adapter.config["lora_dropout"],
            "lora_targets": ", ".join(adapter.config["target_modules"]),
            "lora_rslora": adapter.config.get("use_rslora", False),
            "lora_dora": adapter.config.get("use_dora", False),
        }
    )
    given = {name: origin.config.values.get(name) for name in _OF_TRAINING}
    if given["base_precision"] != "fp8":  # bf16 may have been fp16 or fp32, depending on the device
        del given["base_precision"]
    return {**lora, **{name: value for name, value in given.items() if value is not None}}


def _mixed_rows(origin: Origin) -> list[tuple[str, str, str, str]]:
    """Return name, strength, rank and steps of each adapter of a mix."""
    rows = []
    for mixed in origin.mixed:
        steps, strength = mixed.adapter.global_step, shown_strength(mixed.strength)
        rank = "all weights"
        if isinstance(mixed.adapter, Adapter):
            settings = AdapterConfig.from_plain(mixed.adapter.config)
            rank = "".join([str(settings.r), *[", rsLoRA"] * settings.rslora, *[", DoRA"] * settings.dora])
        rows.append((mixed.name, strength, rank, f"{steps:,}" if steps else "unknown"))
    return rows


def _metric_rows(adapter: Learned, origin: Origin) -> dict[str, str]:
    if not origin.metrics and not origin.evaluated and math.isfinite(adapter.loss):
        return {"training loss of the step, nats": f"{adapter.loss:.4g}"}
    rows = {}
    for name, measured in origin.metrics.items():
        words = _NAMES.get(name) or f"validation perplexity of codebook {name.rpartition('_')[2]}"
        earlier = f", at step {measured.step:,}" if measured.step != adapter.global_step else ""
        rows[words + earlier] = f"{measured.value:.4g}"
    if found := origin.evaluated:
        clips = counted(found.clips, "held-out clip")
        rows[f"evaluation: loss of the base model on {clips}, nats"] = f"{found.base_loss:.4g}"
        rows["evaluation: loss with the adapter on the same, nats"] = f"{found.adapter_loss:.4g}"
    return rows
