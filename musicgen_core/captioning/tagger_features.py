"""Features of sounds in the space of musicnn, whose weights are installed: those of its penultimate layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from musicgen_core.captioning.musicnn import SAMPLE_RATE as TAGGER_RATE
from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.codes import SAMPLE_RATE

WINDOW_SECONDS = 3
"""Length of musicnn's input"""


def window_features(tagger: Musicnn, sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the features [windows, 400] of mono sounds [samples] at 32 kHz, in windows of 3 s that don't overlap.

    A remainder at a sound's end is not used.
    """
    length = WINDOW_SECONDS * TAGGER_RATE
    heard = [soxr.resample(sound, SAMPLE_RATE, TAGGER_RATE, quality="HQ") for sound in sounds]
    windows = [sound[start : start + length] for sound in heard for start in range(0, len(sound) - length + 1, length)]
    found: NDArray[np.float64] = tagger.predict(torch.from_numpy(np.stack(windows))).features.double().cpu().numpy()
    return found
