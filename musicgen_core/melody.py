"""The chroma that MusicGen's melody models are conditioned on: the strongest pitch class of every frame of the audio.

The frames are spectra of 512 ms every 128 ms, at 7.8125 frames/s. Pitch classes count from C, 0, to B, 11. The chroma
of silence, class 0 throughout, also stands for no melody. Source: audiocraft 1.3.0, `modules/chroma.py` and
`ChromaStemConditioner` in `modules/conditioners.py`, with `argmax` as in Meta's models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.music_theory import PITCH_CLASSES

VERSION = 1
"""Version of how chroma is computed: increase it when the same clip would get another one"""

Chroma = NDArray[np.uint8]
"""Pitch class of each frame, [frames]"""

WINDOW, HOP = 2**14, 2**12  # samples at 32 kHz
CHROMA_RATE = SAMPLE_RATE / HOP  # frames/s
NO_CLASS = 0
"""The pitch class of all frames where there is no melody"""
_MOST_FRAMES = 256  # of one transform: 50 MB, also of long clips


@dataclass(frozen=True)
class Excerpt:
    """The part of a clip that is encoded at once, in whole seconds of the clip.

    Attributes:
        begin: where its audio begins.
        start: from where on its frames count.
        stop: where they stop counting; None for the end of the clip.
    """

    begin: int = 0
    start: int = 0
    stop: int | None = None


WHOLE = Excerpt()


def extract_chroma(wav: Tensor, excerpt: Excerpt = WHOLE) -> Tensor:
    """Return the pitch classes [B, frames], uint8, of clips of one length; a whole clip has samples // HOP + 1.

    Args:
        wav: audio [B, samples], 32 kHz mono fp32. Clips shorter than a window are centred in one.
        excerpt: the part of the clips that it is; excerpts of a clip have together the chroma of the whole. It has at
            least half a window on each side of the frames that count, unless the clip begins or ends there.
    """
    if (missing := WINDOW - wav.shape[-1]) > 0:
        wav = F.pad(wav, (missing // 2, missing - missing // 2))
    padded = F.pad(wav, (WINDOW // 2, WINDOW // 2), mode="reflect")  # frames are centred at multiples of HOP
    offset = excerpt.begin * SAMPLE_RATE
    left = _first_frame(excerpt.start) * HOP - offset
    right = None if excerpt.stop is None else (_first_frame(excerpt.stop) - 1) * HOP - offset + WINDOW
    padded = padded[:, left:right]
    if padded.shape[-1] < WINDOW:  # the clip ends before the next frame
        return torch.zeros(len(wav), 0, dtype=torch.uint8, device=wav.device)
    window, filters = _transform(wav.device)
    parts = []
    for frames in padded.unfold(-1, WINDOW, HOP).split(_MOST_FRAMES, dim=1):  # [B, frames, WINDOW]
        spectra = torch.fft.rfft(frames * window)
        power = spectra.real.square() + spectra.imag.square()
        parts.append((power @ filters).argmax(-1).to(torch.uint8))
    return torch.cat(parts, dim=1)


def chroma_identity(separator: str = "") -> str:
    """Return how the chroma of clips is computed, for comparison with that of existing shards.

    Args:
        separator: identity of the model that leaves the sources of the melody; empty if it is that of the whole clip.
    """
    return f"v{VERSION}/{separator or 'mix'}"


def match_length(chroma: Tensor, frames: int) -> Tensor:
    """Return chroma [..., frames], truncated or repeated from its beginning, as what a model reads."""
    return chroma[..., torch.arange(frames) % chroma.shape[-1]]


def crop_chroma(chroma: Chroma, start: int, frames: int) -> Chroma:
    """Return the chroma of a crop of a clip: `frames` frames of its codes from frame `start` on."""
    first = min(round(start / FRAME_RATE * CHROMA_RATE), len(chroma) - 1)
    return chroma[first : first + int(frames / FRAME_RATE * CHROMA_RATE) + 1]


def _first_frame(second: int) -> int:
    """Return the number of the first frame whose centre is not before a second."""
    return -(-second * SAMPLE_RATE // HOP)


@lru_cache(maxsize=16)
def _transform(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window [WINDOW], and the pitch class filters of its spectrum [WINDOW / 2 + 1, 12]."""
    from transformers.audio_utils import chroma_filter_bank  # takes seconds to import

    filters = chroma_filter_bank(WINDOW, PITCH_CLASSES, SAMPLE_RATE)  # librosa's `filters.chroma`
    return torch.hann_window(WINDOW, device=device), torch.from_numpy(filters).float().T.contiguous().to(device)
