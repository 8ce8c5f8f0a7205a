"""Features of the music that adapters have learned from: of some of the clips in the tokens of their training runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.captioning.tagger_features import WINDOW_SECONDS
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE
from musicgen_core.data.dataset import load_clips
from musicgen_core.errors import MusicgenError
from musicgen_core.generation.loudness import mono_of, sound_of
from musicgen_core.generation.measures import Reference, reference_of
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import find_config, run_of

CLIPS = 24
"""Clips of which features are taken, evenly spaced among all"""
SECONDS = 2 * WINDOW_SECONDS
"""Seconds of each"""


def reference_for(
    adapters: Sequence[UPath], model: BaseModel, codec: Codec, tagger: Callable[[], Musicnn]
) -> Reference | str:
    """Return the features of the music that adapters have learned from, or the reason why there are none.

    Args:
        adapters: the adapters' files, in their run directories.
        model: their base model.
        codec: its codec, which decodes the clips.
        tagger: returns that of the features, which is loaded only if there is training music.
    """
    if not adapters:
        return "the base model has no training music of its own"
    sounds = []
    for tokens in dict.fromkeys(_tokens_of(adapter) for adapter in adapters):
        if not tokens:
            return "the adapter isn't in a run directory, which names its training music"
        try:
            clips = load_clips(storage.as_path(tokens), codec_identity(model))
            long_enough = np.flatnonzero(clips.frames >= WINDOW_SECONDS * FRAME_RATE)
            chosen = long_enough[np.linspace(0, len(long_enough) - 1, min(CLIPS, len(long_enough))).astype(int)]
            parts = [clips.codes_of(int(index))[:, : SECONDS * FRAME_RATE].astype(np.int64) for index in chosen]
        except (MusicgenError, OSError) as error:
            return f"the training music can't be read ({error})"
        sounds += [mono_of(sound_of(codec.decode(torch.from_numpy(part)[None])[0].cpu())) for part in parts]
    if len(sounds) < 2:
        return f"the training music has too few clips of {WINDOW_SECONDS} s"
    return reference_of(sounds, tagger())


def _tokens_of(adapter: UPath) -> str:
    run_dir = run_of(adapter)
    config = None if run_dir is None else find_config(run_dir)
    return "" if config is None else config.tokens
