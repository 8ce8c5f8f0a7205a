"""Which pieces a rendering makes, and which of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.encoding import BatchEncoder
from musicgen_core.errors import ClipRejected, ConfigError, DeviceError
from musicgen_core.generation.engine import frames_of
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.random_streams import repetitions, stream_seed
from musicgen_core.language import message
from musicgen_core.model.decoder import DecoderConfig

ENGINE_BATCH_SIZES = (1, 8, 32)
"""On a GPU, whose results depend on it: few sizes, so that a piece can be made again."""
SHARE_FOR_CACHES = 0.7
"""Of the GPU's free memory; the rest is for activations and for decoding"""


@dataclass(frozen=True)
class Beginning:
    """What a piece goes on from.

    Attributes:
        codes: [4, frames]; none for a piece of its own.
        path, sha256: of the sound file.
    """

    codes: Tensor
    path: str | None = None
    sha256: str | None = None

    @property
    def frames(self) -> int:
        return self.codes.shape[-1]


@dataclass(frozen=True)
class PlannedPiece:
    """One piece of one prompt.

    Attributes:
        number: from 0, over all prompts and variations.
        prompt_number: of its prompt, from 0.
        variation: how often its prompt and seed came before: `--variations` reaches it from the prompt alone.
        seed: from which, with prompt and variation,
        stream: the seed of its random stream is made.
        frames: of the whole piece.
    """

    number: int
    prompt_number: int
    prompt: str
    variation: int
    seed: int
    stream: int
    frames: int
    beginning: Beginning


def plan(
    prompts: Sequence[Prompt], settings: SamplingSettings, variations: int, continue_from: str | None, codec: Codec
) -> list[PlannedPiece]:
    """All pieces, prompt after prompt.

    Raises:
        ConfigError: what is to be continued can't be read, or is as long as its piece.
    """
    numbers = [number for number in range(len(prompts)) for _ in range(variations)]
    seeds = [settings.seed if prompt.seed is None else prompt.seed for prompt in prompts]
    wanted = [(seeds[number], prompts[number].prompt) for number in numbers]
    read: dict[str | None, Beginning] = {None: Beginning(torch.zeros(4, 0, dtype=torch.int64))}
    pieces: list[PlannedPiece] = []
    for place, (number, (seed, text), variation) in enumerate(zip(numbers, wanted, repetitions(wanted), strict=True)):
        prompt = prompts[number]
        seconds = settings.duration if prompt.duration is None else prompt.duration
        source = prompt.continue_from or continue_from
        if source not in read:
            read[source] = _read(str(source), seconds, codec)
        _check_longer(seconds, source, read[source].frames / FRAME_RATE)
        stream = stream_seed(seed, text, variation)
        frames = frames_of(seconds)
        pieces.append(PlannedPiece(place, number, text, variation, seed, stream, frames, read[source]))
    return pieces


def check_continued(prompts: Sequence[Prompt], continue_from: str | None) -> None:
    """Check the sound files to continue, before a model is there that encodes them.

    Raises:
        ConfigError: one can't be read.
    """
    for wav in dict.fromkeys([*(prompt.continue_from for prompt in prompts), continue_from]):
        if wav:
            _decoded(wav)


def _read(wav: str, seconds: float, codec: Codec) -> Beginning:
    clip, path = _decoded(wav), storage.as_path(wav)
    _check_longer(seconds, wav, clip.seconds)  # before it is encoded
    with _naming(wav):
        [(_, encoded)] = BatchEncoder(codec).encode([(None, clip)])
        if isinstance(encoded, ClipRejected):
            raise encoded
        return Beginning(torch.from_numpy(encoded.codes.astype(np.int64)), str(path), storage.content_sha256(path))


def _decoded(wav: str) -> DecodedClip:
    path = storage.as_path(wav)
    with _naming(wav):
        storage.require_file(path)
        with storage.staged(path) as local, open(local, "rb") as file:
            return decode(file)


@contextmanager
def _naming(wav: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ClipRejected) as error:
        raise ConfigError(
            message("{wav} can't be continued: {error}", wav=wav, error=error), message("Give the path of a sound file")
        ) from error


def _check_longer(seconds: float, source: str | None, given: float) -> None:
    if given >= seconds:
        raise ConfigError(
            message(
                "{source} lasts {given:g} s, and the piece that continues it {seconds:g} s",
                source=source,
                given=given,
                seconds=seconds,
            ),
            message("Give a longer duration: it is that of the whole piece"),
        )


def batches(
    pieces: Sequence[PlannedPiece], size_for: Callable[[int, int], int]
) -> Iterator[tuple[list[PlannedPiece], int]]:
    """Pieces side by side, and how many places their batch has.

    Those that begin with equally much, and of like durations: the shorter ones of a batch wait for its longest.

    Args:
        size_for: how many places, for so many pieces of so many frames at most; asked for each batch anew.
    """

    def given(piece: PlannedPiece) -> int:
        return piece.beginning.frames

    for _, alike in groupby(sorted(pieces, key=given), key=given):
        left = sorted(alike, key=lambda piece: piece.frames)
        while left:
            size = size_for(len(left), left[: ENGINE_BATCH_SIZES[-1]][-1].frames)
            yield left[:size], size
            del left[:size]


def fitting_size(pieces: int, fitting: int) -> int:
    """The engine's batch size for so many pieces, of which so many fit the memory."""
    sizes = [size for size in ENGINE_BATCH_SIZES if size <= max(1, fitting)]
    return next((size for size in sizes if size >= pieces), sizes[-1])


def smaller_size(size: int) -> int:
    """Return the engine's next smaller batch size.

    Raises:
        DeviceError: there is none.
    """
    found = [smaller for smaller in ENGINE_BATCH_SIZES if smaller < size]
    if not found:
        raise DeviceError(
            message("one piece at a time doesn't fit the GPU's memory"),
            message(
                "Stop other programs on the GPU (nvidia-smi shows them), give a shorter --duration, or use --device cpu"
            ),
        )
    return found[-1]


def room_for_caches(device: torch.device) -> float:
    """Return how many bytes of a GPU's free memory keys and values may take."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE_FOR_CACHES * free


def bytes_of_caches(config: DecoderConfig, frames: int, bits: int = 16) -> int:
    """Of one piece's keys and values, under its text and under the null condition; 8 bits have a scale a head."""
    of_position = config.dim * 2 if bits == 16 else config.dim + config.heads * 2
    return 2 * 2 * config.layers * (frames + config.codebooks) * of_position
