"""Decode the codes of a sample while it is generated: its sound is heard before its end is known.

The decoder of EnCodec is a convolution, an LSTM, and convolutions that upsample (Défossez et al. 2022, section 3.2).
Decoding windows of codes alone would restart the LSTM in each of them, and it may remember for as long as it likes.
Here its state is carried on, and convolutions see all frames that they reach on both sides. The sound is therefore that
of decoding the whole sample, apart from rounding, and no seam needs a crossfade. `Codec.decode`, which saved files come
from, decodes more than `DECODE_SECONDS` in windows, in each of which the LSTM restarts: those differ by more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE, SAMPLES_PER_FRAME
from musicgen_core.generation.files import FULL_SCALE
from musicgen_core.generation.loudness import limit, sound_of

BEFORE, AFTER = 3, 2
"""Frames that the first convolution, of kernel size 7, and those after the LSTM see on each side of a frame."""
FIRST_FRAMES, MOST_FRAMES = 12, 2 * FRAME_RATE
"""Frames of the first chunk of sound, and of the longest: each is twice as long as the one before it."""


class DecodingStream:
    """Decodes the codes of one sample as they become available.

    Args:
        codec: the codec. On a GPU the stream has a CUDA stream of its own, beside that of the language model.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        first, *rest = codec.decoder_layers
        recurrent = rest[0] if rest and isinstance(getattr(rest[0], "lstm", None), nn.LSTM) else None
        self._first, self._recurrent, self._rest = first, recurrent, rest[1:] if recurrent is not None else rest
        self._memory: tuple[Tensor, Tensor] | None = None  # of the LSTM, after the frames that it has read
        self._vectors: _Frames | None = None  # inputs of the first convolution
        self._states: _Frames | None = None  # inputs of the layers after the LSTM
        self._read = self._decoded = 0  # frames
        self._cuda = torch.cuda.Stream(codec.device) if codec.device.type == "cuda" else None

    def add(self, codes: Tensor) -> Tensor:
        """Return the sound [channels, samples] that is complete with the codes [K, frames] of the next frames.

        It ends `BEFORE` + `AFTER` frames before the codes do, which later codes would change.
        """
        with torch.inference_mode(), self._on_own_stream():
            self._vectors = _extended(self._vectors, self._codec.vectors(codes[None]))
            self._read_up_to(self._vectors.end - BEFORE)
            return self._sound_up_to(self._read - AFTER).cpu()

    def skip(self, codes: Tensor) -> None:
        """Read the codes [K, frames] of the next frames without their sound, in parts that bound the memory."""
        with torch.inference_mode(), self._on_own_stream():
            for part in codes.split(MOST_FRAMES, dim=1):
                self._vectors = _extended(self._vectors, self._codec.vectors(part[None]))
                self._read_up_to(self._vectors.end - BEFORE)
                if self._states is not None:
                    self._states.drop_before(self._read - AFTER)
        self._decoded += codes.shape[-1]

    def finish(self) -> Tensor:
        """Return the sound [channels, samples] that is complete if no more codes follow."""
        with torch.inference_mode(), self._on_own_stream():
            self._read_up_to(self._vectors.end if self._vectors else 0)
            return self._sound_up_to(self._read).cpu()

    def _on_own_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._cuda is None else torch.cuda.stream(self._cuda)

    def _read_up_to(self, end: int) -> None:
        """Pass frames through the first convolution and the LSTM."""
        if end <= self._read or self._vectors is None:
            return
        self._vectors.drop_before(self._read - BEFORE)
        begin = self._vectors.begin
        states = self._first(self._vectors.values[:, :, : end + BEFORE - begin])
        states = states[:, :, self._read - begin : end - begin]
        if self._recurrent is not None:
            steps = states.permute(2, 0, 1)
            found, self._memory = self._recurrent.lstm(steps, self._memory)
            states = (found + steps if getattr(self._recurrent, "skip", True) else found).permute(1, 2, 0)
        self._states, self._read = _extended(self._states, states), end

    def _sound_up_to(self, end: int) -> Tensor:
        if end <= self._decoded or self._states is None:
            return torch.empty(self._codec.shape.channels, 0)
        self._states.drop_before(self._decoded - AFTER)
        begin = self._states.begin
        wav = self._states.values[:, :, : end + AFTER - begin]
        for layer in self._rest:
            wav = layer(wav)
        skipped, taken = (self._decoded - begin) * SAMPLES_PER_FRAME, (end - self._decoded) * SAMPLES_PER_FRAME
        self._decoded = end
        return wav[:, 0, skipped : skipped + taken]


class _Frames:
    """Values [B, D, frames] of neighbouring frames, the first of which is frame `begin`."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.begin = values, 0

    @property
    def end(self) -> int:
        return self.begin + self.values.shape[-1]

    def drop_before(self, frame: int) -> None:
        if frame > self.begin:
            self.values, self.begin = self.values[:, :, frame - self.begin :], frame


def _extended(frames: _Frames | None, values: Tensor) -> _Frames:
    if frames is None:
        return _Frames(values)
    frames.values = torch.cat([frames.values, values], dim=2)
    return frames


def stream_sound(codec: Codec, codes: Iterable[Tensor], known: Tensor | None = None) -> Iterator[NDArray[np.int16]]:
    """Yield the sound of a sample in chunks [samples, channels] of 16 bits, from its codes as they become available.

    The chunks grow, so that the first one is early and later ones are efficient. The level is the decoder's own with
    the limiter of saved files: the gain to −14 LUFS, which saved files have, is known only at the end.

    Args:
        codec: decodes the codes.
        codes: [K, new frames] each.
        known: [K, frames], codes before them that the sample continues; their sound is left out.
    """
    stream, frames = DecodingStream(codec), FIRST_FRAMES
    if known is not None:
        stream.skip(known)
    waiting: list[Tensor] = []
    wanted = frames + BEFORE + AFTER
    for new in codes:
        waiting.append(new)
        if sum(part.shape[-1] for part in waiting) >= wanted:
            yield _pcm(stream.add(torch.cat(waiting, dim=1)))
            wanted = frames = min(2 * frames, MOST_FRAMES)
            waiting = []
    if waiting:
        yield _pcm(stream.add(torch.cat(waiting, dim=1)))
    yield _pcm(stream.finish())


def _pcm(wav: Tensor) -> NDArray[np.int16]:
    return np.round(limit(sound_of(wav)) * FULL_SCALE).astype(np.int16)
