"""Which pieces a rendering makes, and which of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.data.audio import decode, resample
from musicgen_core.errors import ClipRejected, ConfigError
from musicgen_core.generation.engine import frames_of
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.streams import streams_of
from musicgen_core.model.decoder import DecoderConfig

ENGINE_BATCH_SIZES = (1, 8, 32)
"""On a GPU, whose results depend on it: few sizes, so that a piece can be made again."""


@dataclass(frozen=True)
class PlannedPiece:
    """One piece of one prompt.

    Attributes:
        number: from 0, over all prompts and variations.
        prompt_number: of its prompt, from 0.
        seed: of the sidecar, from which
        stream: the seed of its random stream is made.
        frames: of the whole piece.
        known: [4, frames], the codes that it begins with.
    """

    number: int
    prompt_number: int
    prompt: Prompt
    variation: int
    seed: int
    stream: int
    frames: int
    known: Tensor


def plan(
    prompts: Sequence[Prompt], settings: SamplingSettings, variations: int, continue_from: str | None, codec: Codec
) -> list[PlannedPiece]:
    """All pieces, prompt after prompt.

    Raises:
        ConfigError: what is to be continued can't be read, or is longer than its piece.
    """
    wanted = [(number, variation) for number in range(len(prompts)) for variation in range(variations)]
    seeds = [settings.seed if prompt.seed is None else prompt.seed for prompt in prompts]
    streams = streams_of((seeds[number], prompts[number].prompt) for number, _ in wanted)
    read: dict[str | None, Tensor] = {None: torch.zeros(4, 0, dtype=torch.int64)}
    pieces: list[PlannedPiece] = []
    for (number, variation), stream in zip(wanted, streams, strict=True):
        prompt = prompts[number].model_copy(update={"continue_from": prompts[number].continue_from or continue_from})
        source = prompt.continue_from
        if source not in read:
            read[source] = _codes_of(str(source), codec)
        seconds = settings.duration if prompt.duration is None else prompt.duration
        known, frames = read[source], frames_of(seconds)
        if known.shape[-1] >= frames:
            raise ConfigError(
                f"{source} lasts {known.shape[-1] / FRAME_RATE:g} s, and the piece that goes on from it {seconds:g} s",
                "Give a longer duration: it is that of the whole piece",
            )
        place = len(pieces)
        pieces.append(PlannedPiece(place, number, prompt, variation, seeds[number], stream, frames, known))
    return pieces


def _codes_of(wav: str, codec: Codec) -> Tensor:
    """[4, frames]"""
    try:
        with storage.staged(storage.as_path(wav)) as local, open(local, "rb") as file:
            clip = decode(file)
    except (OSError, ClipRejected) as error:
        raise ConfigError(f"{wav} can't be continued: {error}", "Give the path of a sound file") from error
    samples = torch.from_numpy(resample(clip.samples, clip.rate))
    return codec.encode(samples[None, None])[0].cpu()


def batches(pieces: Sequence[PlannedPiece], size_for: Callable[[int, int], int]) -> Iterator[list[PlannedPiece]]:
    """Pieces side by side: those that begin with equally much, and of like durations, so that few wait for others.

    Args:
        size_for: how many fit side by side, of so many pieces that are left of so many frames at most; asked for
            each batch anew.
    """

    def known(piece: PlannedPiece) -> int:
        return piece.known.shape[-1]

    for _, alike in groupby(sorted(pieces, key=known), key=known):
        left = sorted(alike, key=lambda piece: piece.frames)
        while left:
            size = size_for(len(left), left[-1].frames)
            yield left[:size]
            del left[:size]


def fitting_size(pieces: int, fitting: int) -> int:
    """The engine's batch size for so many pieces, of which so many fit the memory."""
    sizes = [size for size in ENGINE_BATCH_SIZES if size <= max(1, fitting)]
    return next((size for size in sizes if size >= pieces), sizes[-1])


def bytes_of_caches(config: DecoderConfig, frames: int) -> int:
    """Of one piece's keys and values in 16 bits, under its text and under the null condition."""
    return 2 * 2 * config.layers * config.dim * (frames + config.codebooks) * 2
