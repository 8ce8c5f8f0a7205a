"""Batched resampling to 32 kHz on the GPU."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_core.codes import SAMPLE_RATE

MAX_TAPS = 2**21
"""Limit of filter taps: 44.1 kHz takes 0.2 M; rates with a small common divisor with 32 kHz would take gigabytes."""


class Resampler(nn.Module):
    """Windowed-sinc resampling with torchaudio's version of the kaiser_best filter of librosa and resampy.

    torchaudio applies it as a convolution with one input channel, which takes cuDNN a fifth of the codec's time. Here
    it is one GEMM: rows of overlapping samples times the filter. The filter is repeated and shifted until a row holds
    at least as many new samples as it shares with the next.
    """

    filter: Tensor

    def __init__(self, rate: int) -> None:
        import torchaudio

        super().__init__()
        made = torchaudio.transforms.Resample(
            rate,
            SAMPLE_RATE,
            resampling_method="sinc_interp_kaiser",
            lowpass_filter_width=64,
            rolloff=0.9475937167399596,
            beta=14.769656459379492,
        )
        common = math.gcd(rate, SAMPLE_RATE)
        self.old, self.new, self.width = rate // common, SAMPLE_RATE // common, made.width
        kernel = made.kernel[:, 0]  # [new, taps]: a row gives one of the `new` samples made from `old` ones
        self.repeats = math.ceil(kernel.shape[1] / self.old)
        shifted = [F.pad(kernel, (i * self.old, (self.repeats - 1 - i) * self.old)) for i in range(self.repeats)]
        self.register_buffer("filter", torch.cat(shifted).T.contiguous())  # [taps of a row, repeats · new]

    def forward(self, wav: Tensor) -> Tensor:
        """Resample wav [B, samples] to [B, ⌈samples · 32,000 / rate⌉], fp32."""
        samples = wav.shape[-1]
        step = self.repeats * self.old
        rows = math.ceil((samples // self.old + 1) / self.repeats)
        padded = F.pad(wav, (self.width, (rows - 1) * step + self.filter.shape[0] - self.width - samples))
        resampled = padded.unfold(-1, self.filter.shape[0], step) @ self.filter  # [B, rows, repeats · new]
        return resampled.flatten(1)[:, : math.ceil(samples * self.new / self.old)]


@lru_cache(maxsize=16)
def resampler_of(rate: int, device: torch.device) -> Resampler | None:
    """Return a resampler, or None if the CPU should do it: there is no GPU, or the filter would be huge."""
    common = math.gcd(rate, SAMPLE_RATE)
    taps = (rate // common) * (SAMPLE_RATE // common)
    if device.type != "cuda" or rate == SAMPLE_RATE or taps > MAX_TAPS:
        return None
    return Resampler(rate).to(device)
