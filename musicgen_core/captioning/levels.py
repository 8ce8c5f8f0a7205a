"""Loudness, silence and clipping of clips.

These are measured from the samples, not estimated, so they have no confidence.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from musicgen_core.codes import SAMPLE_RATE

BLOCK_SECONDS, BLOCK_STEP = 0.4, 0.25  # gating blocks that overlap by 75 %
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
OFFSET = -0.691  # dB: makes a sine of 997 Hz at full scale -3.01 LUFS
SHELF = (4.0, math.sqrt(0.5), 1500.0)  # gain in dB, Q, Hz: the head's high shelf
HIGH_PASS = (0.5, 38.0)  # Q, Hz
TAIL_SECONDS = 0.25  # the K-weighting's impulse response has decayed by more than 100 dB

FRAME_SECONDS = 0.02
SILENT_DBFS = -60.0

STEP_16_BIT = 2.0**-15
SHORTEST_RUN = 3  # samples
QUIETEST_TOP = 0.1  # of full scale: below it, three equal samples of 16 bits are ordinary
EDGE = 0.003  # of the flat top: a smooth peak that rounding has flattened ends in a smaller step


def integrated_loudness(audio: Tensor, rate: int = SAMPLE_RATE) -> Tensor:
    """Return the integrated loudness in LUFS, [B], of mono audio [B, samples]; -inf for silence.

    ITU-R BS.1770-4: K-weighting, blocks of 400 ms every 100 ms, an absolute gate at -70 LUFS and a relative one 10 LU
    below the loudness of the blocks that pass it. A clip shorter than a block is one block.
    """
    power = _k_weighted(audio, rate).square()
    block = min(BLOCK_SECONDS * rate, audio.shape[-1])
    step = BLOCK_STEP * BLOCK_SECONDS * rate
    blocks = round((audio.shape[-1] - block) / step) + 1
    starts = (torch.arange(blocks, device=audio.device) * step).long()
    sums = torch.nn.functional.pad(power.double().cumsum(-1), (1, 0))
    mean = (sums[:, (starts + int(block)).clamp(max=audio.shape[-1])] - sums[:, starts]).clamp(min=0) / block
    passes = _lufs(mean) >= ABSOLUTE_GATE
    gate = _lufs(_mean_of(mean, passes)) + RELATIVE_GATE
    return _lufs(_mean_of(mean, passes & (_lufs(mean) > gate[:, None]))).float()


def silent_share(audio: Tensor, rate: int = SAMPLE_RATE) -> Tensor:
    """Return the share of a clip's time that is silent, [B], of [B, samples]: frames of 20 ms below -60 dBFS RMS.

    An incomplete frame at the end is ignored, unless the clip has no other.
    """
    frame = min(round(FRAME_SECONDS * rate), audio.shape[-1])
    power = audio.unfold(-1, frame, frame).square().mean(-1)
    return (power < 10 ** (SILENT_DBFS / 10)).float().mean(-1)


def clipped_share(audio: Tensor) -> Tensor:
    """Return the share of a clip's samples that are clipped, [B], of [B, samples] at any rate.

    Clipped samples are runs of three or more on one side of zero, at full scale or at the clip's own highest level on
    that side if it is above -20 dBFS (a recording that was turned down after clipping). Because synthesized square
    waves have such runs, too, a run counts only if the wave climbs to it, or leaves it, over at least two samples, and
    because quantization flattens the peaks of low notes, only if the last step is larger than there.

    Give the samples of the file: resampling, and lossy compression even more, turn flat tops into ripples, and the mean
    of two channels hides the clipping of one, as it does for a model that is trained on the mean.
    """
    return (_flat_top_samples(audio) + _flat_top_samples(-audio)) / audio.shape[-1]


def _flat_top_samples(audio: Tensor) -> Tensor:
    """Return the number of samples in flat tops of the positive half-waves, [B]."""
    top = audio.amax(-1, keepdim=True).clamp(max=1.0)
    padded = torch.nn.functional.pad(audio, (2, 2), value=-torch.inf)  # no run spans two clips
    at_top = ((padded >= top - STEP_16_BIT) & (top >= QUIETEST_TOP)).flatten().nonzero()[:, 0]
    begins = at_top.diff(prepend=at_top[:1] - 2) != 1
    first, length = at_top[begins], begins.nonzero()[:, 0].diff(append=at_top.new_tensor([len(at_top)]))
    clip = first // padded.shape[1]
    wave, level = padded.flatten(), top[clip, 0]

    def climbs(edge: Tensor, inwards: int) -> Tensor:
        before, last = wave[edge - 2 * inwards], wave[edge - inwards]
        return (level - last >= EDGE * level) & (last - before >= (level - last) / 2) & before.isfinite()

    counts = (length >= SHORTEST_RUN) & (climbs(first, 1) | climbs(first + length - 1, -1))
    return torch.zeros(len(audio), device=audio.device).index_add_(0, clip, (length * counts).float())


def _k_weighted(audio: Tensor, rate: int) -> Tensor:
    """Return the K-weighted audio, [B, samples], filtered by its frequency response."""
    samples = audio.shape[-1]
    size = _fast_size(samples + round(TAIL_SECONDS * rate))
    response = _k_response(size, rate).to(audio.device)
    return torch.fft.irfft(torch.fft.rfft(audio, size) * response, size)[:, :samples]


@lru_cache(maxsize=4)
def _k_response(size: int, rate: int) -> Tensor:
    """Return the frequency response of the two biquads at [size / 2 + 1] frequencies."""
    z = torch.exp(-2j * math.pi * torch.arange(size // 2 + 1, dtype=torch.float64) / size)  # of a delay by a sample
    gain, q, hertz = SHELF
    a = 10 ** (gain / 40)
    w = 2 * math.pi * hertz / rate
    alpha, cos = math.sin(w) / (2 * q), math.cos(w)
    root = 2 * math.sqrt(a) * alpha
    shelf = a * (
        (a + 1 + (a - 1) * cos + root) - 2 * (a - 1 + (a + 1) * cos) * z + (a + 1 + (a - 1) * cos - root) * z**2
    )
    shelf = shelf / (
        (a + 1 - (a - 1) * cos + root) + 2 * (a - 1 - (a + 1) * cos) * z + (a + 1 - (a - 1) * cos - root) * z**2
    )
    q, hertz = HIGH_PASS
    w = 2 * math.pi * hertz / rate
    alpha, cos = math.sin(w) / (2 * q), math.cos(w)
    high_pass = (1 + cos) / 2 * (1 - z) ** 2 / (1 + alpha - 2 * cos * z + (1 - alpha) * z**2)
    return (shelf * high_pass).to(torch.complex64)


def _fast_size(samples: int) -> int:
    """Return the next size whose only prime factors are 2, 3 and 5, for which FFTs are fast."""
    return min(
        3**threes * 5**fives * 2 ** max(math.ceil(math.log2(samples / (3**threes * 5**fives))), 0)
        for threes in range(6)
        for fives in range(6)
    )


def _lufs(mean_square: Tensor) -> Tensor:
    return OFFSET + 10 * mean_square.log10()


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values in each row, [B]; 0 where none is."""
    return torch.where(chosen, values, 0).sum(-1) / chosen.sum(-1).clamp(min=1)
