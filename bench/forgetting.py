"""Forgetting: how well a new style is learned, and how much of the known styles is retained.

    python -m bench.forgetting WORKDIR --model MODEL [--device auto] [--steps 50 100 200 400] [--rates 1e-4 1e-3]
        [--priors 0 0.5] [--strengths 1 0.5] [--alpha 32] [--rank 8] [--prompts 24] [--out FILE.json]

Trains adapters on clips of the style `theremin`, which slides from note to note, and generates from prompts of it and
of all styles that the base model was trained on. They are recognised by audio analysis alone: styles by a
classifier, slides by the movement of the loudest partial. Each learning rate with each share of prior preservation is
one run, resumed from stage to stage, and each stage's adapter is heard at each strength. The prior's clips are
generated from captions of the old styles.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo_model.measure import SLIDING, Judge, compose_each, fit_judge, generate
from musicgen_core import storage
from musicgen_core.analysis.harmony import slides
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings, TrainSettings
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.devices import pick_device
from musicgen_core.generation.engine import Engine
from musicgen_core.model.adapters import find_adapter, load_adapter
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.synthesis.composing import Clip, compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import STYLES
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train

NEW_STYLE = "theremin"
TRAINING_SEED, PROMPT_SEED = 80_000_000, 90_000_000
PRIOR_SEED, PRIOR_PROMPTS_A_STYLE = 100_000_000, 6
CLIPS, CLIP_FRAMES = 48, 400


@dataclass
class Measures:
    """Prompts to generate from, and the classifiers that judge the result."""

    model: BaseModel
    codec: Codec
    judge: Judge
    new: Sequence[Clip]
    old: Sequence[Clip]
    device: torch.device
    seconds: float

    def of(self, lm: Any) -> dict[str, float]:
        """Return the shares of clips recognised as the requested style, and of clips that slide."""
        engine = Engine(lm, TextEncoder(self.model.text_encoder, self.device), self.model.config.inference_coefficient)
        settings = SamplingSettings(duration=self.seconds)
        new = generate(engine, self.codec, [clip.caption for clip in self.new], settings)
        old = generate(engine, self.codec, [clip.caption for clip in self.old], settings)
        return {
            "new style": self._recognised(new, self.new),
            "old styles": self._recognised(old, self.old),
            "new prompts slide": (slides(new) > SLIDING).float().mean().item(),
            "old prompts slide": (slides(old) > SLIDING).float().mean().item(),
        }

    def _recognised(self, audio: Tensor, asked: Sequence[Clip]) -> float:
        pairs = zip(self.judge.styles(audio), asked, strict=True)
        return sum(style == clip.truth.style for style, clip in pairs) / len(asked)


def write_tokens(directory: Path, codec: Codec, bank: SoundBank) -> None:
    """Encode clips of the new style as one shard."""
    clips = compose_many(CLIPS, TRAINING_SEED, NEW_STYLE, frames=CLIP_FRAMES)
    codes = codec.encode(bank.render(clips, CLIP_FRAMES)[:, None]).to(torch.int16).cpu().numpy().astype("uint16")
    directory.mkdir(parents=True)
    parquet = directory.parent / "theremin.parquet"
    with ShardWriter(parquet, codec.identity, codec.shape) as writer:
        for number, (clip, of_clip) in enumerate(zip(clips, codes, strict=True)):
            writer.add(Row(f"{number:03d}.wav", clip.caption, CLIP_FRAMES / FRAME_RATE, of_clip))
    seconds = CLIPS * CLIP_FRAMES / FRAME_RATE
    report = ShardReport(
        archive="theremin.zip",
        archive_bytes=1,
        fingerprint="synthesized",
        captions_fingerprint="c",
        clips=CLIPS,
        audio_seconds=seconds,
    )
    publish_shard(parquet, report, storage.as_path(directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--model", required=True, help="made by demo_model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 1e-3])
    parser.add_argument("--priors", type=float, nargs="+", default=[0.0], help="of --prior-preservation")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="of the adapter")
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the training")
    parser.add_argument("--prompts", type=int, default=24, help="of the new style, and of all old ones together")
    parser.add_argument("--references", type=int, default=40, help="clips of each style that the judge is fitted to")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    device = pick_device(given.device)
    model, bank = find_model(given.model), SoundBank(device)
    codec = Codec(model, device)
    tokens = given.workdir / "tokens"
    if not tokens.exists():
        write_tokens(tokens, codec, bank)
    per_style = max(1, given.prompts // len(STYLES))
    measures = Measures(
        model=model,
        codec=codec,
        judge=fit_judge(bank, codec, given.references),
        new=compose_many(given.prompts, PROMPT_SEED, NEW_STYLE, full_caption=True),
        old=compose_each(STYLES, per_style, PROMPT_SEED, full_caption=True),
        device=device,
        seconds=given.seconds,
    )
    rows: list[dict[str, float]] = [{"steps": 0, **measures.of(load_lm(model, device))}]
    _print(rows[-1])
    extra = {name: json.loads(value) for name, value in (one.split("=") for one in given.set)}
    general = given.workdir / "general-prompts.txt"
    captions = [clip.caption for clip in compose_each(STYLES, PRIOR_PROMPTS_A_STYLE, PRIOR_SEED)]
    general.write_text("\n".join(captions) + "\n", encoding="utf-8")
    for rate, fraction in product(given.rates, given.priors):
        run_dir = given.workdir / f"lr-{rate:g}-prior-{fraction:g}"
        prior = {"prior_preservation": fraction, "prior_prompts": str(general)} if fraction else {}
        for steps in given.steps:
            began = time.monotonic()
            settings = TrainSettings(
                **{
                    "lora_r": given.rank,
                    "lora_alpha": given.alpha,
                    "learning_rate": rate,
                    "batch_size": 4,
                    "gradient_accumulation_steps": 1,
                    "segment_seconds": 6.0,
                    "num_epochs": 10_000,
                    "max_steps": steps,
                    "validation_fraction": 0.05,
                    "full_models": "none",
                    **prior,
                    **extra,
                }
            )
            train(TrainRequest(str(tokens), str(run_dir), given.model, settings, device=given.device))
            trained = time.monotonic() - began
            adapter = load_adapter(find_adapter(str(run_dir / "lora_weights" / "final_lora.pt")))
            if adapter.global_step != steps:
                raise SystemExit(f"{run_dir} is at step {adapter.global_step}, past {steps}: give another WORKDIR")
            for strength in given.strengths:
                config = {**adapter.config, "lora_alpha": strength * adapter.config["lora_alpha"]}
                lm = load_merged(model, replace(adapter, config=config), device, torch.float32)
                setting = {"learning rate": rate, "prior": fraction, "steps": steps, "strength": strength}
                rows.append({**setting, **measures.of(lm), "seconds of training": trained})
                _print(rows[-1])
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


def _print(row: dict[str, float]) -> None:
    print(
        " | ".join(f"{name} {value:g}" if value >= 1 else f"{name} {value:.4g}" for name, value in row.items()),
        flush=True,
    )


if __name__ == "__main__":
    main()
