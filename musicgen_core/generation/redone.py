"""A piece of which a stretch is made again: its codes and sound, and the new sound within it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import CONTEXT_SECONDS, Codec
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data.audio import resample
from musicgen_core.encoding import encode_clips
from musicgen_core.errors import ClipRejected, ConfigError
from musicgen_core.generation.loudness import Audio, limit
from musicgen_core.generation.seam_settings import Stretch
from musicgen_core.generation.sound_file import read_sound, refused
from musicgen_core.language import message

CROSSFADE = 4 * SAMPLES_PER_FRAME
"""Samples on each side of a new stretch over which the sounds change: 80 ms, as far as a code is heard through the
decoder's convolutions (measured: 60 to 80 ms), so that both sounds agree where the fade meets the rest"""
_UNAFFECTED = SAMPLE_RATE // 4
"""Samples beyond which decoding is hardly affected by a code"""


@dataclass(frozen=True)
class Piece:
    """A sound file with its codes.

    Attributes:
        codes: [K, frames], int64.
        sound: [samples], or [samples, 2] of stereo, at 32 kHz.
        path: of the sound file.
        sha256: hash of its content.
        has_saved_codes: whether the codes are those that its samples were generated from, rather than encoded.
    """

    codes: Tensor
    sound: Audio
    path: str
    sha256: str
    has_saved_codes: bool

    @property
    def frames(self) -> int:
        return self.codes.shape[-1]


@dataclass(frozen=True)
class Redo:
    """A stretch to make again.

    Attributes:
        piece: the piece that it is part of.
        stretch: its frames.
        candidates: how many stretches are tried.
    """

    piece: Piece
    stretch: Stretch
    candidates: int

    @property
    def following(self) -> Tensor:
        """The codes [K, frames] after the stretch."""
        return self.piece.codes[:, self.stretch.end :]


def read_piece(file: str, codec: Codec) -> Piece:
    """Read a sound file, and the codes beside it (`--save-codes`) if there are any that fit; otherwise it is encoded.

    Raises:
        ConfigError: it can't be read or encoded.
    """
    path = storage.as_path(file)
    clip = read_sound(file, _cannot_be_redone, codec.shape.channels == 2)
    sound = np.ascontiguousarray(resample(clip.samples, clip.rate).T.astype(np.float32))
    codes = _saved_codes(path, codec, len(sound))
    has_saved_codes = codes is not None
    if codes is None:
        with refused(file, _cannot_be_redone):
            [(_, encoded)] = encode_clips(codec, [(None, clip)])
            if isinstance(encoded, ClipRejected):
                raise encoded
            codes = torch.from_numpy(encoded.codes.astype(np.int64))
    return Piece(codes, sound, str(path), storage.content_sha256(path), has_saved_codes)


def _saved_codes(wav: UPath, codec: Codec, samples: int) -> Tensor | None:
    """Return the codes beside a sound file; None if there are none, or they aren't of this codec and length."""
    path, shape = wav.with_suffix(".npy"), (codec.shape.codebooks, samples // SAMPLES_PER_FRAME)
    if wav.suffix == ".npy" or samples % SAMPLES_PER_FRAME:
        return None
    try:
        with path.open("rb") as opened:
            codes = np.load(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint16 or codes.shape != shape:
        return None
    return torch.from_numpy(codes.astype(np.int64)) if codes.max() < codec.shape.cardinality else None


def check_stretch(file: str, seconds: float, stretch: Stretch) -> None:
    """Check that a stretch is a part of a sound file of these seconds.

    Raises:
        ConfigError: it ends later, or is all of it.
    """
    named = {"begin": stretch.begin / FRAME_RATE, "end": stretch.end / FRAME_RATE, "file": file, "seconds": seconds}
    frames = -(-round(seconds * SAMPLE_RATE) // SAMPLES_PER_FRAME)
    if stretch.end > frames:
        raise ConfigError(
            message("{begin:g}-{end:g} s can't be made again: {file} lasts {seconds:g} s", **named),
            message("Give a part of it with --redo"),
        )
    if stretch.begin == 0 and stretch.end == frames:
        raise ConfigError(
            message("{begin:g}-{end:g} s is all of {file}: nothing would stay", **named),
            message("Give a part of it with --redo, or generate without --redo and --continue-from"),
        )


def piece_seconds(file: str) -> float:
    """Return the duration of a sound file at 32 kHz. Raises as `read_piece`."""
    return read_sound(file, _cannot_be_redone).seconds


def _cannot_be_redone(file: str, error: Exception) -> ConfigError:
    return ConfigError(
        message("no part of {file} can be made again: {error}", file=file, error=error),
        message("Give the path of a sound file with --continue-from"),
    )


def decode_around(codec: Codec, codes: Tensor, stretch: Stretch) -> Tensor:
    """Decode a stretch of codes [K, frames] with up to 5 s on each side to wav [channels, samples]."""
    context = CONTEXT_SECONDS * FRAME_RATE
    return codec.decode(codes[None, :, max(0, stretch.begin - context) : stretch.end + context])[0]


def splice(redo: Redo, decoded: Audio) -> Audio:
    """Return the piece's sound with that of its new stretch.

    Outside the stretch and a crossfade of 80 ms on each side the samples stay as they are. The new sound has the level
    at which the piece has its own: what is around the stretch is as loud as in the piece.

    Args:
        redo: the stretch.
        decoded: [samples], or [samples, 2], as `decode_around` decodes it.
    """
    sound, stretch = redo.piece.sound, redo.stretch
    first = max(0, stretch.begin - CONTEXT_SECONDS * FRAME_RATE) * SAMPLES_PER_FRAME
    begin, end = stretch.begin * SAMPLES_PER_FRAME, min(stretch.end * SAMPLES_PER_FRAME, len(sound))
    decoded = decoded[: len(sound) - first]
    place = np.arange(first, first + len(decoded))
    is_around = (place < begin - _UNAFFECTED) | (place >= end + _UNAFFECTED)
    new = limit(decoded * _gain(decoded[is_around], sound[place[is_around]]))
    weight = np.minimum(place - (begin - CROSSFADE), (end + CROSSFADE) - 1 - place) / CROSSFADE
    weight = weight.clip(0, 1).reshape(-1, *(1,) * (sound.ndim - 1))
    result = sound.copy()
    changed = (weight > 0).reshape(len(place))
    mixed = sound[place] * (1 - weight) + new * weight
    result[place[changed]] = mixed[changed]
    return result


def _gain(decoded: Audio, sound: Audio) -> float:
    """Return the gain with which decoded audio is as loud as sound after the limiter; 1 where either is silent."""
    gain, wanted = 1.0, _rms(sound)
    for _ in range(6):
        level = _rms(limit(decoded * gain))
        if not level or not wanted:
            return 1.0
        gain *= wanted / level
    return gain


def _rms(sound: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if sound.size else 0.0
