"""Train the codec: audiocraft's EnCodec at a twentieth of its size, on procedural music.

    python -m demo_model.train_codec WORK [--steps 5000] [--clips 8000]

Writes WORK/model/compression_state_dict.bin in audiocraft's format. If interrupted, it resumes from WORK/codec.pt.

A quarter of the steps train the autoencoder alone, so that k-means starts from meaningful latents; then the residual
vector quantizer is trained with it. The loss is the scale-invariant SDR, which compares waveforms, plus mel
spectrograms at five resolutions, which compare timbre where the waveform can't be coded (Défossez et al. 2022, section
3.4). There is no discriminator: these notes have little of the noise that only a discriminator helps to render.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from demo_model import codebooks
from demo_model.training import Run, adamw, as_graph, device_with_tf32, set_learning_rate, update
from musicgen_core.analysis.features import si_sdr
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.model.audiocraft_format import codec_settings, save_checkpoint
from musicgen_core.model.local_files import CODEC_FILE
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import HELD_OUT

SETTINGS = codec_settings(dimension=64, filters=12, decoder_filters=16, bins=512)
FIRST_SEED = 10_000_000  # of the clips; other scripts use other ranges
CLIP_FRAMES = 300
CROP_FRAMES = 64  # 1.28 s
LEARNING_RATE = 1e-3
WITHOUT_QUANTIZER = 0.25  # of the steps
SI_SDR_WEIGHT = 0.1  # per dB
WINDOWS = (128, 256, 512, 1024, 2048)
KMEANS_FRAMES = 24_000
REPORTS = 20


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel spectrograms at several resolutions."""

    def __init__(self, windows: tuple[int, ...] = WINDOWS) -> None:
        super().__init__()
        self.windows = windows
        for window in windows:
            bands = melscale_fbanks(window // 2 + 1, 30.0, 16_000.0, min(64, window // 16), SAMPLE_RATE).T
            self.register_buffer(f"bands_{window}", bands)
            self.register_buffer(f"hann_{window}", torch.hann_window(window))

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """Compare audio [B, samples]; a loss of about 0.1 is audible as a change of timbre."""
        both = torch.cat([reference, estimate])
        total = torch.zeros((), device=both.device)
        for window in self.windows:
            hann, bands = getattr(self, f"hann_{window}"), getattr(self, f"bands_{window}")
            spectrum = torch.stft(both, window, window // 4, window=hann, return_complex=True)
            power = torch.view_as_real(spectrum).square().sum(-1) / hann.sum().square()
            levels = (bands @ power + 1e-7).log10()
            total = total + (levels[: len(reference)] - levels[len(reference) :]).abs().mean()
        return total / len(self.windows)


def render_clips(count: int, first_seed: int, device: torch.device, frames: int, workers: int) -> Tensor:
    """Return clips, [count, samples] in fp16: three quarters in base styles, the others in held-out ones.

    A codec should generalize to any audio; only the language model must not be trained on the held-out styles. A codec
    trained only on notes of the twelve pitch classes turns slides into steps.
    """
    held_out = count // (4 * len(HELD_OUT))
    clips = compose_many(count - held_out * len(HELD_OUT), first_seed, frames=frames, workers=workers)
    for number, style in enumerate(HELD_OUT, start=1):
        clips += compose_many(held_out, first_seed + number * count, style, frames, workers=workers)
    bank = SoundBank(device)
    return torch.cat([bank.render(clips[start : start + 256], frames).half() for start in range(0, count, 256)])


def train(work: Path, steps: int, clips: int, batch: int, workers: int) -> None:
    torch.manual_seed(1)
    device = device_with_tf32()
    audio = render_clips(clips, FIRST_SEED, device, CLIP_FRAMES, workers)
    print(f"{clips} clips of {CLIP_FRAMES / 50:g} s rendered", flush=True)
    codec = build().to(device)
    books = [layer._codebook for layer in codec.quantizer.vq.layers]
    mel_loss = MelLoss().to(device)
    optimizer = adamw([codec.encoder, codec.decoder], LEARNING_RATE, betas=(0.8, 0.99), weight_decay=0.0)
    run = Run(work / "codec.pt", {"codec": codec, "optimizer": optimizer}, steps)
    within = torch.arange(CROP_FRAMES * SAMPLES_PER_FRAME, device=device)

    def draw() -> Tensor:
        """Return random crops aligned to frames, as notes are, [B, 1, samples]."""
        start = torch.randint(CLIP_FRAMES - CROP_FRAMES, (batch, 1), device=device) * SAMPLES_PER_FRAME
        rows = torch.randint(clips, (batch, 1), device=device)
        return audio[rows, start + within].float()[:, None]

    def losses_of(wav: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        decoded = codec.decoder(latents)[:, 0]
        return si_sdr(wav[:, 0], decoded).mean(), mel_loss(wav[:, 0], decoded)

    def step_of(quantized: bool) -> Tensor:
        """Run a step; return the SI-SDR in dB, the mel loss and the commitment loss."""
        wav = draw()
        latents = codec.encoder(wav)
        commitment = torch.zeros((), device=device)
        if quantized:
            latents, commitment = codebooks.quantize(books, latents)
        sdr, mel = losses_of(wav, latents)
        update(optimizer, mel - SI_SDR_WEIGHT * sdr + commitment)
        return torch.stack([sdr, mel, commitment]).detach()

    boundary = round(WITHOUT_QUANTIZER * steps)
    for last, quantized in ((boundary, False), (steps, True)):
        if run.step >= last:
            continue
        if quantized and run.step == boundary:
            with torch.no_grad():
                batches = -(-KMEANS_FRAMES // (batch * CROP_FRAMES))
                latents = torch.cat([codec.encoder(draw()) for _ in range(batches)])
            codebooks.initialize(books, latents.transpose(1, 2).flatten(0, 1))
        step = as_graph(partial(step_of, quantized), device)
        began = time.monotonic()
        for done, number in enumerate(run.until(last), start=1):
            set_learning_rate(optimizer, LEARNING_RATE, number, steps)
            values = step()
            if (number + 1) % max(1, steps // REPORTS) == 0:
                sdr, mel, commitment = values.tolist()
                milliseconds = 1000 * (time.monotonic() - began) / done
                shown = f"SI-SDR {sdr:5.2f} dB, mel {mel:.3f}, commitment {commitment:.3f}"
                print(f"step {number + 1:6d} of {steps}: {shown} ({milliseconds:.1f} ms a step)", flush=True)
    save(codec, work / "model" / CODEC_FILE)


def build() -> Any:
    """Return the untrained codec, audiocraft's `EncodecModel`."""
    return import_audiocraft("audiocraft.models.builders").get_compression_model(OmegaConf.create(SETTINGS))


def save(codec: nn.Module, path: Path) -> None:
    """Write audiocraft's checkpoint, in fp16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, SETTINGS, halved(codec))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def halved(module: nn.Module) -> dict[str, Tensor]:
    """Return the state with matrices and vectors in fp16, on the CPU."""
    return {
        name: tensor.detach().cpu().to(torch.float16 if tensor.ndim else tensor.dtype).clone()
        for name, tensor in module.state_dict().items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--clips", type=int, default=8_000)
    parser.add_argument("--batch", type=int, default=64, help="crops of 1.28 s a step")
    parser.add_argument("--workers", type=int, default=1, help="processes that compose")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    train(given.work, given.steps, given.clips, given.batch, given.workers)


if __name__ == "__main__":
    main()
