"""The samples that a rendering makes, and how they are batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE
from musicgen_core.encoding import encode_clips
from musicgen_core.errors import ClipRejected, ConfigError, DeviceError
from musicgen_core.generation.engine import frames_of
from musicgen_core.generation.loops import Loop
from musicgen_core.generation.melody import Melody, read_melody
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.redone import Piece, Redo, read_piece
from musicgen_core.generation.request import RenderRequest
from musicgen_core.generation.seam_settings import parse_stretch
from musicgen_core.generation.sound_file import read_sound, refused
from musicgen_core.language import message
from musicgen_core.model.decoder import DecoderConfig
from musicgen_core.model.weighted_adapters import Mix
from musicgen_core.seeds import repetitions, stream_of, stream_seed
from musicgen_core.separation.separator import Separator

ENGINE_BATCH_SIZES = (1, 8, 32)
"""Batch sizes on a GPU, whose results depend on them: few, so that a sample can be reproduced."""
SHARE_FOR_CACHES = 0.7
"""Fraction of the GPU's free memory for key-value caches; the rest is for activations and for decoding."""
TEXT_POSITIONS = 128
"""More than most texts take in front of the codes of a model that takes a melody; longer ones take of the rest."""


@dataclass(frozen=True)
class Continuation:
    """The audio that a sample continues.

    Attributes:
        codes: [K, frames], empty for a sample that continues nothing.
        path: the sound file.
        sha256: hash of its content.
    """

    codes: Tensor
    path: str | None = None
    sha256: str | None = None

    @property
    def frames(self) -> int:
        return self.codes.shape[-1]


@dataclass(frozen=True)
class PlannedSample:
    """One sample to render.

    Attributes:
        number: its number, from 0, over all prompts, variations, mixes of adapters and candidates that are kept.
        prompt_number: its prompt's number, from 0.
        prompt: the text that the model reads.
        variation: how many earlier samples have its prompt and seed; `--variations` gives it for a single prompt.
        seed: the seed in the settings or of the prompt.
        stream: the seed of its random stream, derived from seed, prompt and variation.
        frames: its length, including the continued part.
        continuation: the audio that it continues.
        melody: what it follows, or None.
        mix: the adapters that it is rendered with.
        negative_prompt: the text that guidance leads away from; None for the null condition.
        fields: the prompt as it was given, and the fields that were added to it; None if the text is the prompt.
        sample: the number of the sample, which its candidates have in common.
        candidate: its number among them, from 0.
        candidates: how many there are, of which the best is kept.
        sections: texts that the model reads, with the frames at which they begin; none: it reads the prompt.
        seam: a loop to close, or a stretch of a piece to make again, whose last frame is the sample's; or None.
    """

    number: int
    prompt_number: int
    prompt: str
    variation: int
    seed: int
    stream: int
    frames: int
    continuation: Continuation
    melody: Melody | None = None
    mix: Mix = ()
    negative_prompt: str | None = None
    fields: Mapping[str, Any] | None = None
    sections: tuple[tuple[int, str], ...] = ()
    sample: int = 0
    candidate: int = 0
    candidates: int = 1
    seam: Loop | Redo | None = None

    @property
    def new_frames(self) -> int:
        return self.frames - self.continuation.frames

    @property
    def first_text(self) -> str:
        """The text that the model reads from the beginning on."""
        return self.sections[0][1] if self.sections else self.prompt

    def text_at(self, frame: int) -> str:
        """Return the text that the model reads at a frame."""
        return [self.first_text, *(text for begin, text in self.sections if begin <= frame)][-1]

    @property
    def changes(self) -> dict[int, str]:
        """The texts that follow, by the frames at which they begin."""
        return dict(self.sections[1:])

    @property
    def described(self) -> dict[str, Any]:
        """The part of its sidecar that is known before it is rendered."""
        return {
            "prompt": self.prompt,
            "fields": self.fields,
            "negative_prompt": self.negative_prompt,
            "sections": [{"start": frame / FRAME_RATE, "prompt": text} for frame, text in self.sections] or None,
            "seed": self.seed,
            "variation": self.variation,
            "stream": self.stream,
            "continued_from": self.continuation.path,
            "continued_from_sha256": self.continuation.sha256,
            "melody": self.melody and self.melody.path,
            "melody_sha256": self.melody and self.melody.sha256,
            "melody_separator": self.melody and self.melody.separator,
        }


def plan(request: RenderRequest, codec: Codec, separator: Separator | None = None) -> list[PlannedSample]:
    """Return all samples to render, prompt after prompt; a variation's mixes of adapters follow each other.

    A separator takes melodies without drums and bass.

    Raises:
        ConfigError: a sound file can't be read, or one to continue isn't shorter than its sample; or an adapter can't
            be parsed.
    """
    prompts = [
        prompt.with_defaults(request.control).with_seams(request.seams, request.continue_from)
        for prompt in request.prompts
    ]
    settings, variations = request.settings, request.variations
    mixes = [request.mixes(prompt) for prompt in prompts]
    numbers = [number for number in range(len(prompts)) for _ in range(variations)]
    seeds = [settings.seed if prompt.seed is None else prompt.seed for prompt in prompts]
    wanted = [(seeds[number], prompts[number].text) for number in numbers]
    nothing = torch.zeros(codec.shape.codebooks, 0, dtype=torch.int64)
    read: dict[str | None, Continuation] = {None: Continuation(nothing)}
    melodies: dict[str | None, Melody | None] = {None: None}
    pieces_read: dict[str, Piece] = {}
    pieces: list[PlannedSample] = []
    written = sample = 0
    for number, (seed, text), variation in zip(numbers, wanted, repetitions(wanted), strict=True):
        prompt = prompts[number]
        seconds = settings.duration if prompt.duration is None else prompt.duration
        seam, source = _seam_of(prompt, request.seams.seam_candidates, codec, pieces_read), prompt.continue_from
        if isinstance(seam, Redo):
            frames, continuation = seam.stretch.end, _before(seam)
            seconds = seam.piece.frames / FRAME_RATE
        else:
            if source not in read:
                read[source] = _read(str(source), seconds, codec)
            _check_longer(seconds, source, read[source].frames / FRAME_RATE)
            frames, continuation = frames_of(seconds), read[source]
        followed = prompt.melody or request.melody
        if followed not in melodies:
            melodies[followed] = read_melody(str(followed), separator)
        for mix in mixes[number]:
            piece = PlannedSample(
                number=written,
                prompt_number=number,
                prompt=text,
                variation=variation,
                seed=seed,
                stream=stream_seed(seed, text, variation),
                sample=sample,
                candidates=prompt.best_of or 1,
                frames=frames,
                continuation=continuation,
                melody=melodies[followed],
                mix=mix,
                negative_prompt=prompt.negative_prompt or None,
                sections=_sections_of(prompt, seconds),
                fields={"prompt": prompt.prompt, **prompt.fields} if prompt.is_composed else None,
                seam=seam,
            )
            found = _candidates_of(piece, request.keep_candidates)
            pieces += found
            written, sample = found[-1].number + 1, sample + 1
    return pieces


def _candidates_of(piece: PlannedSample, keep_all: bool) -> list[PlannedSample]:
    """Return the candidates of a sample, the first of which is the sample that there is without others."""
    others = range(1, piece.candidates)
    streams = [piece.stream, *(stream_of(piece.stream, candidate) for candidate in others)]
    return [
        replace(piece, number=piece.number + keep_all * candidate, candidate=candidate, stream=stream)
        for candidate, stream in enumerate(streams)
    ]


def _sections_of(prompt: Prompt, seconds: float) -> tuple[tuple[int, str], ...]:
    sections = prompt.section_texts
    if sections and sections[-1].start >= seconds:
        raise ConfigError(
            message(
                "a section starts at {start:g} s, and the sample lasts {seconds:g} s",
                start=sections[-1].start,
                seconds=seconds,
            ),
            message("Give a longer duration, or leave out the section"),
        )
    return tuple((round(section.start * FRAME_RATE), section.prompt) for section in sections)


def _seam_of(prompt: Prompt, candidates: int, codec: Codec, read: dict[str, Piece]) -> Loop | Redo | None:
    """Return what a prompt wants beside music from its beginning to its end; pieces are read once."""
    if prompt.loop:
        return Loop(prompt.tempo, candidates)
    stretch = parse_stretch(prompt.redo or "")
    if stretch is None:
        return None
    file = str(prompt.continue_from)
    if file not in read:
        read[file] = read_piece(file, codec)
    return Redo(read[file], stretch, candidates)


def _before(redo: Redo) -> Continuation:
    return Continuation(redo.piece.codes[:, : redo.stretch.begin], redo.piece.path, redo.piece.sha256)


def check_continued(prompts: Sequence[Prompt], continue_from: str | None) -> None:
    """Check the sound files to continue, before the model that encodes them is loaded.

    Raises:
        ConfigError: one can't be read.
    """
    for wav in dict.fromkeys([*(prompt.continue_from for prompt in prompts), continue_from]):
        if wav:
            read_sound(wav, _cannot_be_continued)


def _read(wav: str, seconds: float, codec: Codec) -> Continuation:
    clip, path = read_sound(wav, _cannot_be_continued, codec.shape.channels == 2), storage.as_path(wav)
    _check_longer(seconds, wav, clip.seconds)  # before it is encoded
    with refused(wav, _cannot_be_continued):
        [(_, encoded)] = encode_clips(codec, [(None, clip)])
        if isinstance(encoded, ClipRejected):
            raise encoded
        return Continuation(torch.from_numpy(encoded.codes.astype(np.int64)), str(path), storage.content_sha256(path))


def _cannot_be_continued(wav: str, error: Exception) -> ConfigError:
    return ConfigError(
        message("{wav} can't be continued: {error}", wav=wav, error=error), message("Give the path of a sound file")
    )


def _check_longer(seconds: float, source: str | None, given: float) -> None:
    if given >= seconds:
        raise ConfigError(
            message(
                "{source} lasts {given:g} s, and the sample that continues it {seconds:g} s",
                source=source,
                given=given,
                seconds=seconds,
            ),
            message("Give a longer duration: it includes the recording"),
        )


def batches(
    pieces: Sequence[PlannedSample], size_for: Callable[[int, int], int]
) -> Iterator[tuple[list[PlannedSample], int]]:
    """Yield the samples of each batch, and the batch's size, which may be larger.

    The samples of a batch continue equally many frames, have sections of equal lengths, and similar lengths themselves,
    because a batch runs until its longest sample is done.

    Args:
        pieces: the samples to render.
        size_for: returns the batch size for a number of samples of at most so many frames; called for each batch.
    """

    def given(piece: PlannedSample) -> tuple[int, list[int]]:
        return piece.continuation.frames, sorted(piece.changes)

    for _, alike in groupby(sorted(pieces, key=given), key=given):
        left = sorted(alike, key=lambda piece: piece.frames)
        while left:
            size = size_for(len(left), left[: ENGINE_BATCH_SIZES[-1]][-1].frames)
            yield left[:size], size
            del left[:size]


def fitting_size(pieces: int, fitting: int) -> int:
    """Return the engine's batch size for a number of samples, if `fitting` of them fit the memory."""
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
            message("not even one sample at a time fits the GPU's memory"),
            message(
                "Stop other programs on the GPU (nvidia-smi shows them), give a shorter --duration, or use --device cpu"
            ),
        )
    return found[-1]


def cache_budget(device: torch.device) -> float:
    """Return how many bytes of a GPU's memory key-value caches may take."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE_FOR_CACHES * free


def cache_bytes(config: DecoderConfig, frames: int, bits: int = 16) -> int:
    """Return the bytes of one sample's key-value caches, for its text and for the null condition.

    With 8 bits each head has a scale. A model that takes a melody keeps it and the text in front of the codes.
    """
    before = config.chroma_frames + TEXT_POSITIONS if config.takes_melody else 0
    of_position = config.dim * 2 if bits == 16 else config.dim + config.heads * 2
    return 2 * 2 * config.layers * (before + frames + config.codebooks) * of_position
