"""Training steps with random weights of musicgen-large's shape, beside audiocraft + peft and Hugging Face + peft.

    python -m bench.train [--subjects bf16 fp8 audiocraft huggingface] [--batches 1 2 4 8 16] [--checkpointing]
                         [--stereo] [--melody] [--deterministic]
    python -m bench.train --train all [--optimizer adamw adamw8bit] [--batches 1 2 4 8] [--checkpointing]

A step is forward, loss and backward of one micro-batch of 30 s clips with LoRA of rank 8 and dropout 0.1, including the
optimizer update after every 16 clips. peft can't reach audiocraft's q, k and v: there LoRA is only on out_proj, linear1
and linear2. With --stereo the shape is that of musicgen-stereo-large, with --melody that of musicgen-melody-large; the
latter's peers get melody and text as states that are projected already. Last, the losses of fp8 and bf16 over the same
clips are compared. With --train all every weight is trained, in fp32 with bf16 blocks, once for each optimizer.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import MONO, STEREO, CodeShape
from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.configuration import chroma_frames as melody_frames
from musicgen_core.model.debug_model import LM_CONFIG
from musicgen_core.model.decoder import Condition, DecoderConfig, MusicgenLM, teacher_forcing
from musicgen_core.model.local_files import TEXT_ENCODER
from musicgen_core.model.lora import add_lora
from musicgen_core.model.weights import find_model
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.full_model import FullTrainingModel
from musicgen_core.training.compute.losses import clip_losses
from musicgen_core.training.compute.model import TrainingModel

FRAMES, SECONDS = 1500, 30.0
TEXT_LENGTH = 32
Losses = Callable[[Tensor, Condition], Tensor]
"""Takes codes [B, K, T] and text; returns losses [B, K]"""


@dataclass
class Implementation:
    """An implementation to measure.

    Attributes:
        parameters: trainable parameters.
        step: accumulates the gradients of a micro-batch's mean loss times a factor, and returns its losses.
        zero_grad: clears the gradients.
    """

    parameters: list[Any]
    step: Callable[[Tensor, Condition, float], Tensor]
    zero_grad: Callable[[], None]


def by_autograd(parameters: list[Any], losses: Losses) -> Implementation:
    def step(codes: Tensor, text: Condition, factor: float) -> Tensor:
        of_clips = losses(codes, text)
        (of_clips.mean() * factor).backward()
        return of_clips.detach()

    def zero_grad() -> None:
        for parameter in parameters:
            parameter.grad = None

    return Implementation(parameters, step, zero_grad)


def large(layers: int, codes: CodeShape = MONO, chroma_frames: int = 0) -> DecoderConfig:
    return DecoderConfig(
        dim=2048, layers=layers, heads=32, ffn_dim=8192, text_dim=768, codes=codes, chroma_frames=chroma_frames
    )


def random_lm(shape: DecoderConfig, device: torch.device) -> MusicgenLM:
    torch.manual_seed(0)
    with torch.device("meta"):
        lm = MusicgenLM(shape)
    lm = lm.to_empty(device=device).to(torch.bfloat16)
    for name, parameter in lm.named_parameters():
        parameter.data.normal_(0, 0.02)
        if "norm" in name:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    return lm


def project(shape: DecoderConfig, device: torch.device, execution: Execution) -> Implementation:
    peft_model = add_lora(random_lm(shape, device), AdapterConfig(8, 32, 0.1))
    model = TrainingModel(peft_model, 0.1, execution)

    def step(codes: Tensor, text: Condition, factor: float) -> Tensor:
        seeds = clip_seeds(0, 1, range(len(codes))).to(device, non_blocking=True)
        frames = torch.full((len(codes),), codes.shape[2], device=device)
        return model.step(codes, frames, text, seeds, factor / len(codes))

    return Implementation([model.trained.whole], step, model.zero_grad)


def all_weights(shape: DecoderConfig, device: torch.device, execution: Execution) -> Implementation:
    model = FullTrainingModel(random_lm(shape, device).float(), execution)

    def step(codes: Tensor, text: Condition, factor: float) -> Tensor:
        frames = torch.full((len(codes),), codes.shape[2], device=device)
        return model.step(codes, frames, text, frames, factor / len(codes))

    return Implementation(list(model.trained.tensors), step, model.zero_grad)


def _with_peft(model: Any, targets: list[str]) -> tuple[Any, list[Any]]:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=targets))
    return adapted.train(), [one for one in adapted.parameters() if one.requires_grad]


def _pattern(codes: Tensor, shape: DecoderConfig) -> tuple[Tensor, Tensor, Tensor]:
    return teacher_forcing(codes, torch.full((len(codes),), codes.shape[2], device=codes.device), shape.codes)


def _projected(text: Condition, shape: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Return states [B, chroma frames + L, dim] and their mask, as peers get them in the place of melody and text."""
    mask = torch.cat([text.mask.new_ones(len(text.mask), shape.chroma_frames), text.mask], dim=1)
    return text.states.new_zeros(*mask.shape, shape.dim, dtype=torch.bfloat16), mask


def audiocraft(shape: DecoderConfig, device: torch.device) -> Implementation:
    import_audiocraft("audiocraft.modules.transformer").set_efficient_attention_backend("torch")
    config = OmegaConf.create(LM_CONFIG)
    config.transformer_lm.update(
        {"dim": 2048, "num_layers": shape.layers, "num_heads": 32, "dropout": 0.0, "n_q": shape.codebooks}
    )
    config.codebooks_pattern.delay.delays = list(shape.codes.delays)
    if shape.takes_melody:
        config.fuser.update({"prepend": ["description"], "cross": []})
    config.device = str(device)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # its T5 by a name that it knows
        Path("t5-small").symlink_to(find_model("debug").directory / TEXT_ENCODER)
        lm = import_audiocraft("audiocraft.models.builders").get_lm_model(config)
    adapted, parameters = _with_peft(lm.to(torch.bfloat16), ["out_proj", "linear1", "linear2"])

    def losses(codes: Tensor, text: Condition) -> Tensor:
        inputs, targets, valid = _pattern(codes, shape)
        with torch.autocast(codes.device.type, torch.bfloat16):
            logits = adapted(inputs, [], condition_tensors={"description": _projected(text, shape)})
        return clip_losses(logits, targets, valid)

    return by_autograd(parameters, losses)


def huggingface(shape: DecoderConfig, device: torch.device) -> Implementation:
    import transformers

    kind = "MusicgenMelody" if shape.takes_melody else "Musicgen"
    config = getattr(transformers, f"{kind}DecoderConfig")(
        vocab_size=2048,
        hidden_size=2048,
        num_hidden_layers=shape.layers,
        num_attention_heads=32,
        ffn_dim=8192,
        dropout=0.0,
        num_codebooks=shape.codebooks,
        audio_channels=shape.codes.channels,
    )
    config._attn_implementation = "sdpa"
    with torch.device(device):
        lm = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    adapted, parameters = _with_peft(lm, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])

    def losses(codes: Tensor, text: Condition) -> Tensor:
        inputs, targets, valid = _pattern(codes, shape)
        states, mask = _projected(text, shape)
        with torch.autocast(codes.device.type, torch.bfloat16):
            logits = adapted(
                input_ids=inputs.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask.long()
            ).logits
        logits = logits[:, -inputs.shape[-1] :]  # without those of the states in front
        return clip_losses(logits.unflatten(0, (-1, shape.codebooks)), targets, valid)

    return by_autograd(parameters, losses)


def clips(batch: int, device: torch.device, shape: DecoderConfig, seed: int = 0) -> tuple[Tensor, Condition]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2048, (batch, shape.codebooks, FRAMES), generator=generator)
    states = torch.randn(batch, TEXT_LENGTH, 768, generator=generator)
    mask = torch.arange(TEXT_LENGTH) < torch.randint(4, TEXT_LENGTH, (batch, 1), generator=generator)
    chroma = torch.randint(0, 12, (batch, shape.chroma_frames), generator=generator).to(device)
    return codes.to(device), Condition(states.to(device), mask.to(device), chroma if shape.takes_melody else None)


def useful_flops(shape: DecoderConfig, trains_all: bool = False) -> float:
    """Return the FLOPs of a clip: forward, backward to activations and, if all weights are trained, to weights."""
    dim, ffn, positions = shape.dim, shape.ffn_dim, FRAMES
    projections = 6  # of positions: self-attention's four, cross-attention's two
    if shape.takes_melody:
        projections, positions = 4, FRAMES + shape.chroma_frames + TEXT_LENGTH // 2
    linear = 2 * (projections * dim * dim + 2 * dim * ffn) * positions
    attention = 2 * positions * positions * dim  # causal: half of 2 matrix multiplications of 2 · S² · D FLOPs
    heads = 2 * shape.codebooks * shape.cardinality * dim * FRAMES
    passes = 3 if trains_all else 2
    return shape.layers * (passes * linear + 3 * attention) + passes * heads


def measure(
    subject: Implementation,
    batch: int,
    device: torch.device,
    shape: DecoderConfig,
    seconds: float,
    optimizer_name: str = "adamw",
    trains_all: bool = False,
) -> str:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    optimizer: Any = torch.optim.AdamW(subject.parameters, lr=1e-4, fused=True)
    if optimizer_name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(subject.parameters, lr=1e-4)
    codes, text = clips(batch, device, shape)
    accumulation = max(1, 16 // batch)

    def step(number: int) -> None:
        subject.step(codes, text, 1 / accumulation)
        if number % accumulation == accumulation - 1:
            torch.nn.utils.clip_grad_norm_(subject.parameters, 1.0)
            optimizer.step()
            subject.zero_grad()

    began = time.monotonic()
    subject.zero_grad()
    step(0)
    torch.cuda.synchronize()
    first = time.monotonic() - began
    for number in range(accumulation + 2):  # warm-up, including an update and CUDA graph capture
        step(number)
    torch.cuda.synchronize()
    began, done = time.monotonic(), 0
    while done % accumulation or time.monotonic() - began < seconds:
        step(done)
        done += 1
        if done % accumulation == 0:
            torch.cuda.synchronize()
    took = (time.monotonic() - began) / done
    speed = batch * SECONDS / took
    tflops = batch * useful_flops(shape, trains_all) / took / 1e12
    peak = torch.cuda.max_memory_reserved() / 2**30  # including the CUDA graphs' memory pools
    return f"{speed:8.1f} audio-s/s {tflops:7.1f} TFLOP/s {peak:6.1f} GiB {1e3 * took:8.1f} ms  first {first:5.1f} s"


def loss_curve(
    subject: Implementation, device: torch.device, shape: DecoderConfig, steps: int, batch: int
) -> list[float]:
    """Return the loss of each step while overfitting the same four batches."""
    optimizer = torch.optim.AdamW(subject.parameters, lr=1e-3, fused=True)
    losses = []
    for step in range(steps):
        loss = subject.step(*clips(batch, device, shape, seed=step % 4), 1.0).mean()
        torch.nn.utils.clip_grad_norm_(subject.parameters, 1.0)
        optimizer.step()
        subject.zero_grad()
        losses.append(loss.item())
    return losses


def subjects(
    shape: DecoderConfig, device: torch.device, checkpointing: bool, deterministic: bool
) -> dict[str, Callable[[], Implementation]]:
    bf16 = Execution("bf16", True, checkpointing, deterministic)
    return {
        "bf16": partial(project, shape, device, bf16),
        "fp8": partial(project, shape, device, replace(bf16, precision="fp8")),
        "audiocraft": partial(audiocraft, shape, device),
        "huggingface": partial(huggingface, shape, device),
        "all": partial(all_weights, shape, device, bf16),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=["lora", "all"], default="lora")
    parser.add_argument(
        "--optimizer", nargs="*", default=["adamw"], choices=["adamw", "adamw8bit"], help="of all weights"
    )
    parser.add_argument("--subjects", nargs="*", default=["bf16", "fp8", "audiocraft", "huggingface"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, at least")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--stereo", action="store_true", help="the shape of musicgen-stereo-large")
    parser.add_argument("--melody", action="store_true", help="the shape of musicgen-melody-large")
    parser.add_argument("--deterministic", action="store_true", help="attention that gives equal bits")
    parser.add_argument("--curve", type=int, default=0, metavar="STEPS", help="compare the losses of bf16 and fp8")
    parser.add_argument("--profile", type=int, default=0, metavar="BATCH", help="list the kernels of a step")
    given = parser.parse_args(arguments)
    device = torch.device("cuda")
    shape = large(given.layers, STEREO if given.stereo else MONO, melody_frames(30) if given.melody else 0)
    makers = subjects(shape, device, given.checkpointing, given.deterministic)
    rows: list[str] = []
    trains_all = given.train == "all"
    runs = [("all", one) for one in given.optimizer] if trains_all else [(name, "adamw") for name in given.subjects]
    for name, optimizer in runs:
        subject = makers[name]()
        for batch in given.batches:
            try:
                row = measure(
                    subject,
                    batch,
                    device,
                    shape,
                    given.seconds,
                    optimizer_name=optimizer,
                    trains_all=trains_all,
                )
            except torch.OutOfMemoryError:
                row = "out of memory"
            rows.append(f"{optimizer if trains_all else name:<12} batch {batch:>2} {row}")
            print(rows[-1], flush=True)
        if given.profile and name in ("bf16", "fp8"):
            print_profile(subject, given.profile, device, shape)
        del subject
        gc.collect()
    if given.curve:
        curves = {}
        for name in ("bf16", "fp8"):
            curves[name] = loss_curve(makers[name](), device, shape, given.curve, 4)
            gc.collect()
        print("step   bf16      fp8")
        for step in range(0, given.curve, max(1, given.curve // 20)):
            print(f"{step + 1:>4} {curves['bf16'][step]:8.4f} {curves['fp8'][step]:8.4f}")
        furthest = max(abs(a - b) for a, b in zip(*curves.values(), strict=True))
        print(f"the losses of fp8 and bf16 are never further apart than {furthest:.4f}")
    print("\n" + "\n".join(rows))


def print_profile(subject: Implementation, batch: int, device: torch.device, shape: DecoderConfig) -> None:
    codes, text = clips(batch, device, shape)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        subject.step(codes, text, 1.0)
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) / 1e3
    print(f"kernels of a step, batch {batch}: {total:.1f} ms")
    for event in events[:40]:
        print(f"  {event.self_device_time_total / 1e3:8.2f} ms {event.count:>6}x {event.key[:110]}")


if __name__ == "__main__":
    main()
