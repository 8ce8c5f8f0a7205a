"""Music taggers: musicnn's networks in PyTorch, with the weights of its package.

Two networks of one architecture, trained on MagnaTagATune (MTT) and on the Million Song Dataset (MSD), give 50 tags
each. Source: Pons & Serra 2019, "musicnn: Pre-trained convolutional neural networks for music audio tagging",
arXiv:1909.06654, and its code, https://github.com/jordipons/musicnn (ISC licence). That code needs TensorFlow and is
never imported.

Computation. Nearly all of it is in two convolutions over time and mel bands with one input channel, each followed by
ReLU, batch norm and a maximum over the bands. A convolution library stores what it computes for each band before it
takes the maximum. Here the seven frames of each row are laid out band by band, `rows[time, band · 7 + frame]`, so the
input of a kernel at any band is a slice of columns, and each band is one GEMM whose output is merged into the running
maximum. Bias, ReLU and batch norm are monotonic and come after the maximum; where batch norm has a negative scale, the
kernel's sign is flipped, as the maximum then is the minimum. The three convolutions over time alone are GEMMs with a
kernel repeated at `SHIFTS` positions, so that input windows overlap less. All of it is fp32: cuDNN's convolutions in
TF32 would change probabilities by 5e-4. The figures are in bench/RESULTS.md.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from musicgen_core.captioning.tensorflow_checkpoint import read_checkpoint
from musicgen_core.errors import ModelError
from musicgen_core.language import message

SAMPLE_RATE = 16_000
WINDOW = 512
HOP = 256
BANDS = 96
FRAMES = 187
"""Frames of a patch: 3 s"""
PATCH_SAMPLES = (FRAMES - 1) * HOP
"""Samples of the shortest clip that has a patch"""
KERNEL_FRAMES = 7  # but for the temporal kernels
SHIFTS = 11  # a divisor of FRAMES
EPSILON = 1e-3  # of batch norm
PATCHES_AT_ONCE = {"cpu": 32, "cuda": 512}
"""So many that synchronizing threads costs little, so few that the values of a layer take 0.2 GB, or 3 GB of a GPU"""


@dataclass(frozen=True)
class Tagging:
    """What the two networks give for B clips: means over a clip's patches.

    Attributes:
        mtt: probabilities of `music_tags.MTT_TAGS`, [B, 50].
        msd: probabilities of `music_tags.MSD_TAGS`, [B, 50].
        features: activations of the penultimate layers, [B, 400]: 200 of MTT, then 200 of MSD.
    """

    mtt: Tensor
    msd: Tensor
    features: Tensor


class Musicnn:
    """The two taggers on a device, in fp32.

    Raises:
        ModelError: the package `musicnn` is missing or damaged.
    """

    def __init__(self, device: torch.device) -> None:
        directory = _package_directory()
        self.device = device
        self._mtt, self._msd = (
            _Network(f"{directory / name}/").to(device).eval() for name in ("MTT_musicnn", "MSD_musicnn")
        )
        self._bands = _mel_bands().to(device)

    @torch.inference_mode()
    def predict(self, audio: Tensor) -> Tagging:
        """Tag clips by the mean over their patches of 3 s, which don't overlap.

        As in the original, a remainder of less than a patch at a clip's end is not used. A clip shorter than a patch
        is repeated until it fills one, as in the networks' training.

        Args:
            audio: mono at 16 kHz, [B, samples], on any device.

        Raises:
            ValueError: the shape isn't [B, samples] with at least one of both.
        """
        if audio.ndim != 2 or not audio.numel():
            raise ValueError(f"audio has the shape {tuple(audio.shape)}, not [B, samples]")
        patches = _patches(log_mel(audio.to(self.device), self._bands))  # [B, P, 187, 96]
        parts = patches.flatten(0, 1).split(PATCHES_AT_ONCE[self.device.type])
        outputs = [[network(part) for part in parts] for network in (self._mtt, self._msd)]
        (mtt, mtt_features), (msd, msd_features) = (
            [torch.cat(values).unflatten(0, patches.shape[:2]).mean(1) for values in zip(*output, strict=True)]
            for output in outputs
        )
        return Tagging(mtt, msd, torch.cat((mtt_features, msd_features), dim=1))


def log_mel(audio: Tensor, bands: Tensor | None = None) -> Tensor:
    """Return the networks' input: log10(10,000 · mel + 1) of the power mel spectrogram, [B, frames, 96].

    The spectrogram is librosa's of 2019: Hann window, frames centred on multiples of 256 samples, the signal reflected
    at its ends, Slaney's mel scale and area norm, 0 to 8,000 Hz. The networks were trained on spectrograms stored in
    fp16, so it is rounded to fp16.

    Args:
        audio: [B, samples] at 16 kHz, repeated to `PATCH_SAMPLES` if it is shorter.
        bands: the mel filters, [257, 96], if they are already on the device.
    """
    if audio.shape[1] < PATCH_SAMPLES:
        audio = audio.repeat(1, -(-PATCH_SAMPLES // audio.shape[1]))[:, :PATCH_SAMPLES]
    bands = _mel_bands().to(audio.device) if bands is None else bands
    window = torch.hann_window(WINDOW, device=audio.device)
    spectrum = torch.stft(audio.float(), WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()  # [B, 257, frames]
    mel = (power.transpose(1, 2) @ bands).clamp(max=torch.finfo(torch.float16).max)
    return torch.log10(10_000 * mel.half().float() + 1)


def _patches(spectrogram: Tensor) -> Tensor:
    """Cut a spectrogram [B, frames, 96] into patches [B, P, 187, 96]."""
    number = spectrogram.shape[1] // FRAMES
    return spectrogram[:, : number * FRAMES].unflatten(1, (number, FRAMES))


def _mel_bands() -> Tensor:
    banks: Tensor = melscale_fbanks(
        WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return banks


def _package_directory() -> Path:
    """Return the directory of the package `musicnn`, which isn't imported."""
    spec = importlib.util.find_spec("musicnn")
    if spec is None or spec.origin is None:
        raise ModelError(
            message("{package} is not installed", package="musicnn"),
            message("Install what pyproject.toml asks for: uv sync"),
        )
    return Path(spec.origin).parent


class _Weights:
    """The tensors of a checkpoint by their layers' names."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._tensors = read_checkpoint(prefix)

    def __call__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ModelError(
                message("{path} has no tensor {name}", path=self._prefix, name=name),
                message("Install its package again: uv sync --reinstall-package musicnn"),
            )
        return torch.from_numpy(self._tensors[name].copy())

    def norm(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a batch norm as scale and shift."""
        gamma, beta, mean, variance = (
            self(f"{name}/{part}").double() for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / (variance + EPSILON).sqrt()
        return scale.float(), (beta - mean * scale).float()


class _ReluNorm(nn.Module):
    """Bias, ReLU and batch norm over the last dimension."""

    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, bias: Tensor, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        for name, value in (("bias", bias), ("scale", scale), ("shift", shift)):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bias) * self.scale + self.shift


class _Pooled(nn.Module):
    """A convolution over time and bands, ReLU and batch norm, and the maximum over the bands.

    A kernel of as many bands as its input has no maximum to take: it is a convolution over time.

    Args:
        kernel: [frames, bands, channels].
    """

    kernel: Tensor
    sign: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        sign = torch.where(scale < 0, -1.0, 1.0)
        self.frames, _, self.channels = kernel.shape
        self.register_buffer("sign", sign)
        self.register_buffer("kernel", self.laid_out(kernel * sign))
        self.after = _ReluNorm(bias, scale, shift)

    def laid_out(self, kernel: Tensor) -> Tensor:
        return kernel.transpose(0, 1).flatten(0, 1).contiguous()  # [bands · frames, channels]

    def forward(self, rows: Tensor) -> Tensor:
        """Return [N · 187, channels] of the output of `_rows`."""
        size = len(self.kernel)
        highest = rows[:, :size] @ self.kernel
        product = torch.empty_like(highest)
        for start in range(self.frames, rows.shape[1] - size + 1, self.frames):  # the next band
            torch.mm(rows[:, start : start + size], self.kernel, out=product)
            torch.maximum(highest, product, out=highest)
        return self.after(self.sign * highest)


class _PooledOverTime(_Pooled):
    """The same with a kernel of one band, which needs more frames than can be laid out."""

    def laid_out(self, kernel: Tensor) -> Tensor:
        shifted = [F.pad(kernel[:, 0], (0, 0, i, SHIFTS - 1 - i)) for i in range(SHIFTS)]
        return torch.cat(shifted, dim=1)  # [frames + 10, 11 · channels]

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 187, channels] of patches [N, 187, 96]."""
        before = (self.frames - 1) // 2  # as TensorFlow's padding `same`
        padded = F.pad(x.transpose(1, 2), (before, self.frames - 1 - before))
        windows = padded.unfold(2, len(self.kernel), SHIFTS)  # [N, 96, 17, frames + 10]
        highest = (windows @ self.kernel).amax(1)  # [N, 17, 11 · channels]
        return self.after(self.sign * highest.view(len(x), FRAMES, self.channels))


class _Network(nn.Module):
    """One tagger: [N, 187, 96] → probabilities [N, 50] and penultimate activations [N, 200].

    Args:
        prefix: the path of its checkpoint, as for `read_checkpoint`.
    """

    input_scale: Tensor
    input_shift: Tensor
    pooled_scale: Tensor
    pooled_shift: Tensor

    def __init__(self, prefix: str) -> None:
        super().__init__()
        weights = _Weights(prefix)

        def convolution(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            name = f"conv2d_{number}" if number else "conv2d"
            kernel = weights(f"{name}/kernel").squeeze(2)  # [frames, bands or input channels, channels]
            return kernel, weights(f"{name}/bias"), *weights.norm(f"batch_normalization_{number + 1}")

        self.timbral = nn.ModuleList(_Pooled(*convolution(number)) for number in (0, 1))
        self.temporal = nn.ModuleList(_PooledOverTime(*convolution(number)) for number in (2, 3, 4))
        self.middle = nn.ModuleList(_Pooled(*convolution(number)) for number in (5, 6, 7))
        for name, norm in (("input", "batch_normalization"), ("pooled", "batch_normalization_9")):
            for part, value in zip(("scale", "shift"), weights.norm(norm), strict=True):
                self.register_buffer(f"{name}_{part}", value)
        self.dense = _linear(weights("dense/kernel"))
        self.after_dense = _ReluNorm(weights("dense/bias"), *weights.norm("batch_normalization_10"))
        self.output = _linear(weights("dense_1/kernel"), weights("dense_1/bias"))
        self.requires_grad_(False)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = patches * self.input_scale + self.input_shift
        maps = list(self._maps(self._front_end(x)))  # each [N, 187, C]
        found = torch.cat(maps, dim=2)  # [N, 187, 753]
        pooled = torch.stack((found.amax(1), found.mean(1)), dim=2).flatten(1)  # [N, 1,506]
        features = self.after_dense(self.dense(pooled * self.pooled_scale + self.pooled_shift))
        return torch.sigmoid(self.output(features)), features

    def _front_end(self, x: Tensor) -> Tensor:
        """Return [N, 187, 561]: 2 · 204 timbral and 3 · 51 temporal channels."""
        rows = _rows(x)
        timbral = [layer(rows).unflatten(0, (len(x), FRAMES)) for layer in self.timbral]
        return torch.cat([*timbral, *(layer(x) for layer in self.temporal)], dim=2)

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the front end's output and those of the three layers after it, the last two with residuals."""
        yield x
        for number, layer in enumerate(self.middle):
            found = layer(_rows(x)).unflatten(0, (len(x), FRAMES))
            x = x + found if number else found
            yield x


def _rows(x: Tensor) -> Tensor:
    """Lay out seven frames around each of [N, 187, bands]: [N · 187, bands · 7], the frames of a band side by side."""
    half = KERNEL_FRAMES // 2
    return F.pad(x, (0, 0, half, half)).unfold(1, KERNEL_FRAMES, 1).flatten(2).flatten(0, 1)


def _linear(kernel: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(kernel.shape[0], kernel.shape[1], bias=bias is not None)
    layer.weight.data = kernel.T.contiguous()
    if bias is not None:
        layer.bias.data = bias
    return layer
