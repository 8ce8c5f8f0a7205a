"""Model card of an export (`README.md`), in the format of the Hugging Face Hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from musicgen_core.escaping import markdown_code, markdown_text, one_line
from musicgen_core.exporting.origin import Origin, RenderedSample
from musicgen_core.model.adapters import PUBLISHED, Adapter, AdapterConfig, hub_id
from musicgen_core.model.local_files import DEMO
from musicgen_core.model.weights import BUILT_IN
from musicgen_core.wording import counted, lasting

ExportKind = Literal["peft", "audiocraft"]
CARD = "README.md"
_TAGS = ["musicgen", "lora", "text-to-music", "music"]
_NAMES = {
    "train/loss": "training loss of the step, nats",
    "train/epoch_loss": "training loss of the epoch, nats",
    "val/loss": "validation loss, nats",
    "val/perplexity": "validation perplexity",
}
_OF_TRAINING = (  # fields of a run's config.json, without those about the machine or its paths
    *("learning_rate", "warmup_steps", "schedule", "weight_decay", "batch_size", "gradient_accumulation_steps"),
    *("clips_per_step", "num_epochs", "max_steps", "early_stopping", "max_grad_norm", "base_precision"),
    *("segment_seconds", "validation_fraction", "cfg_dropout", "word_dropout", "seed"),
)


def write_card(
    folder: Path,
    name: str,
    kind: ExportKind,
    adapter: Adapter,
    origin: Origin,
    text_encoder: str | None,
    samples: Mapping[str, RenderedSample],
) -> None:
    """Write the model card.

    Args:
        folder: directory of the export.
        name: final name of the directory.
        kind: format of the export.
        adapter: the exported adapter.
        origin: provenance of the adapter.
        text_encoder: audiocraft's name of the T5 that is part of the export; None: it is loaded from the Hub.
        samples: exported samples, by the suffix of their file names.
    """
    base = hub_id(adapter.base_model)
    recorded = adapter.base_model.partition("@sha256:")[0]
    settings = AdapterConfig.from_plain(adapter.config)
    loader = PackageLoader("musicgen_core.exporting", package_path="")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "plain": markdown_text,
        "code": markdown_code,
        "label": one_line,
        "lasting": lasting,
        "counted": counted,
    }
    text = environment.get_template("model_card.md.j2").render(
        front_matter=_front_matter(kind, adapter.base_model),
        name=name,
        kind=kind,
        base=base,
        of=base or (f"the model {recorded}" if recorded in BUILT_IN else "a MusicGen"),
        base_to_load=base or "path/to/the/base/model",
        licence=_licence(adapter.base_model),
        adapter=adapter,
        variety=" and ".join([*["rsLoRA"] * settings.rslora, *["DoRA"] * settings.dora]),
        data=origin.data,
        settings=_settings(adapter, origin),
        metrics=_metrics(adapter, origin),
        samples=samples,
        text_encoder=text_encoder,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _licence(base_model: str) -> str | None:
    """Return the Hub's identifier of the base model's licence, or None if unknown."""
    if (hub_id(base_model) or "").startswith(PUBLISHED):
        return "cc-by-nc-4.0"
    return "cc0-1.0" if base_model.partition("@sha256:")[0] == DEMO else None


def _front_matter(kind: ExportKind, base_model: str) -> str:
    from huggingface_hub import ModelCardData

    base, licence = hub_id(base_model), _licence(base_model)
    relation: dict[str, Any] = {"base_model_relation": "adapter" if kind == "peft" else "finetune"} if base else {}
    return ModelCardData(
        base_model=base,
        license=licence or "other",
        license_name=None if licence else "that-of-the-base-model",
        library_name=kind,
        pipeline_tag="text-to-audio",
        tags=_TAGS,
        **relation,
    ).to_yaml()


def _settings(adapter: Adapter, origin: Origin) -> dict[str, Any]:
    """Return the training settings by their names in this project."""
    lora = {
        "lora_r": adapter.config["r"],
        "lora_alpha": adapter.config["lora_alpha"],
        "lora_dropout": adapter.config["lora_dropout"],
        "lora_targets": ", ".join(adapter.config["target_modules"]),
        "lora_rslora": adapter.config.get("use_rslora", False),
        "lora_dora": adapter.config.get("use_dora", False),
    }
    given = {name: origin.config.values.get(name) for name in _OF_TRAINING}
    if given["base_precision"] != "fp8":  # bf16 may have been fp16 or fp32, depending on the device
        del given["base_precision"]
    return {**lora, **{name: value for name, value in given.items() if value is not None}}


def _metrics(adapter: Adapter, origin: Origin) -> dict[str, str]:
    if not origin.metrics and not origin.evaluated and math.isfinite(adapter.loss):
        return {_NAMES["train/loss"]: f"{adapter.loss:.4g}"}
    rows = {}
    for name, measured in origin.metrics.items():
        codebook = re.fullmatch(r"val/perplexity_codebook_(\d+)", name)
        words = f"validation perplexity of codebook {codebook[1]}" if codebook else _NAMES[name]
        earlier = f", at step {measured.step:,}" if measured.step != adapter.global_step else ""
        rows[words + earlier] = f"{measured.value:.4g}"
    if found := origin.evaluated:
        clips = counted(found.clips, "held-out clip")
        rows[f"evaluation: loss of the base model on {clips}, nats"] = f"{found.base_loss:.4g}"
        rows["evaluation: loss with the adapter on the same, nats"] = f"{found.adapter_loss:.4g}"
    return rows
