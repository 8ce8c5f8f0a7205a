"""Train the language model and its text encoder on the codes of procedural music.

    python -m demo_model.train_language_model WORK [--steps 52000]

Reads WORK/codes-*.pt and writes WORK/model/state_dict.bin and WORK/model/text_encoder. After an interruption it resumes
from WORK/language_model.pt.

The decoder, the delay pattern and the loss are those of fine-tuning: the mean over codebooks of the cross-entropy over
valid positions. Three quarters of the steps use clips of 10 s, the rest 30 s, MusicGen's context. The texts of some
clips are dropped for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from demo_model import dataset, text_encoder
from demo_model.train_codec import halved
from demo_model.training import Run, adamw, as_graph, device_with_tf32, set_learning_rate, update
from musicgen_core.model.audiocraft_format import language_model_settings, save_checkpoint, to_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import Condition, MusicgenLM, teacher_forcing
from musicgen_core.model.local_files import LM_FILE, TEXT_ENCODER

TEXT_DROPOUT = 0.15
GUIDANCE = 2.0  # with MusicGen's 3, fewer notes are in key and fewer clips in the requested metre
SETTINGS = language_model_settings(
    dim=256, layers=6, heads=8, hidden_scale=2, cardinality=512, text_dropout=TEXT_DROPOUT, guidance=GUIDANCE
)
TOKENS_PER_STEP = 64 * 500  # frames
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
ON_SHORT_CLIPS = 0.75  # of the steps
LONGEST_CAPTION = 64  # tokens; longer captions are truncated
REPORTS = 20


class Examples:
    """Codes and tokenized captions, all of them on the device."""

    def __init__(self, codes: Tensor, captions: list[str], tokenizer: Any, device: torch.device) -> None:
        tokens = tokenizer(
            captions, return_tensors="pt", padding="max_length", truncation=True, max_length=LONGEST_CAPTION
        )
        self.codes = codes.to(device)  # [N, 4, frames] int16
        self.ids = tokens["input_ids"].to(device)
        self.mask = tokens["attention_mask"].bool().to(device)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def frames(self) -> int:
        return self.codes.shape[-1]


class Model:
    """The language model and its text encoder, trained together."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lm = MusicgenLM(read_lm_config(SETTINGS, "demo").decoder).to(device)
        self.tokenizer, encoder = text_encoder.build()
        self.encoder = encoder.to(device).train()
        decoder = self.lm.model.decoder
        for embedding in decoder.embed_tokens.children():
            torch.nn.init.normal_(cast(Tensor, embedding.weight), std=0.5)
        for layer in decoder.blocks():  # small initial residual branches
            for linear in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                linear.weight.data *= (2 * len(decoder.layers)) ** -0.5

    def losses(self, examples: Examples, rows: Tensor, text_dropout: float) -> Tensor:
        """Return the mean cross-entropy of each codebook over valid positions, [4], in nats."""
        codes = examples.codes[rows].long()  # [B, 4, T]
        frames = torch.full((len(codes),), codes.shape[-1], device=self.device)
        inputs, targets, valid = teacher_forcing(codes, frames, self.lm.config.codes)
        kept = torch.rand(len(codes), 1, device=self.device) >= text_dropout
        mask = examples.mask[rows]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            states = self.encoder(input_ids=examples.ids[rows], attention_mask=mask).last_hidden_state
            logits = self.lm(inputs, Condition(states, mask & kept))  # [B, 4, T, cardinality]
        targets = targets.masked_fill(~valid, -100)
        return torch.stack([F.cross_entropy(logits[:, k].flatten(0, 1), targets[:, k].flatten()) for k in range(4)])


def train(work: Path, steps: int, tokens_per_step: int) -> None:
    torch.manual_seed(2)
    device = device_with_tf32()
    model = Model(device)
    both = [model.lm, model.encoder]
    optimizer = adamw(both, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    parts = {"lm": model.lm, "encoder": model.encoder, "optimizer": optimizer}
    run = Run(work / "language_model.pt", parts, steps)
    validation = Examples(*dataset.load(work, "validation"), model.tokenizer, device)
    print(f"{sum(p.numel() for part in both for p in part.parameters()):,} parameters", flush=True)
    for name, last in (("short", round(ON_SHORT_CLIPS * steps)), ("long", steps)):
        if run.step >= last:
            continue
        codes, captions = dataset.load(work, name)
        captions = text_encoder.with_unknown_words(captions, seed=3)
        examples = Examples(codes, captions, model.tokenizer, device)
        step = as_graph(_step(model, optimizer, examples, tokens_per_step // examples.frames), device)
        began = time.monotonic()
        for done, number in enumerate(run.until(last), start=1):
            set_learning_rate(optimizer, LEARNING_RATE, number, steps)
            values = step()
            if (number + 1) % max(1, steps // REPORTS) == 0:
                milliseconds = 1000 * (time.monotonic() - began) / done
                shown = f"loss {_shown(values)}, validation {_shown(validate(model, validation, 0.0))}"
                shown += f", without text {_shown(validate(model, validation, 1.1))}"
                print(f"step {number + 1:6d} of {steps}: {shown} ({milliseconds:.1f} ms a step)", flush=True)
    save(model, work / "model")


def _step(model: Model, optimizer: Any, examples: Examples, batch: int) -> Callable[[], Tensor]:
    def step() -> Tensor:
        rows = torch.randint(len(examples), (batch,), device=model.device)
        losses = model.losses(examples, rows, TEXT_DROPOUT)
        update(optimizer, losses.mean())
        return losses.detach()

    return step


@torch.no_grad()
def validate(model: Model, examples: Examples, text_dropout: float) -> Tensor:
    """Return the cross-entropy of each codebook over held-out clips, [4]."""
    rows = torch.arange(len(examples), device=model.device).split(64)
    return torch.stack([model.losses(examples, part, text_dropout) for part in rows]).mean(0)


def save(model: Model, directory: Path) -> None:
    """Write the language model in audiocraft's format and the text encoder in Hugging Face's, in fp16."""
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint(directory / LM_FILE, SETTINGS, to_audiocraft(halved(model.lm)))
    model.encoder.half().save_pretrained(directory / TEXT_ENCODER)
    model.tokenizer.save_pretrained(directory / TEXT_ENCODER)
    total = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{directory}: {total / 1e6:.2f} MB", flush=True)


def _shown(losses: Tensor) -> str:
    return " ".join(f"{loss:.2f}" for loss in losses.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=52_000)
    parser.add_argument("--tokens-per-step", type=int, default=TOKENS_PER_STEP, help="frames of all clips of a step")
    given = parser.parse_args()
    train(given.work, given.steps, given.tokens_per_step)


if __name__ == "__main__":
    main()
