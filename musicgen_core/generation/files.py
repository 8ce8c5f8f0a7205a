"""The files of a piece of music: wav, FLAC, MP3, spectrogram, codes, and the sidecar that says that it is whole."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import Format
from musicgen_core.generation.spectrogram import draw_spectrogram
from musicgen_core.strict_json import strict_json

COMPANIONS = ("flac", "mp3", "png", "npy")
"""What may stand beside STEM.wav and STEM.json, as the rendering's options have it."""
MP3_COMPRESSION = 0.4  # of libsndfile's 0 to 1: LAME's constant 192 kbit/s at 32 kHz
FULL_SCALE = 1 << 15  # of 16 bits


@dataclass(frozen=True)
class Piece:
    """One piece of music as it was made.

    Attributes:
        stem: its files' name without the ending: `generated_000`.
        audio: float32 [samples], 32 kHz mono, loudness-normalised, within [-1, 1].
        codes: uint16 [4, frames] to keep as `.npy`, or None.
        sidecar: JSON values.
    """

    stem: str
    audio: NDArray[np.float32]
    codes: NDArray[np.uint16] | None
    sidecar: dict[str, Any]


def write_piece(
    out: storage.Location,
    piece: Piece,
    formats: Sequence[Format] = (),
    spectrogram: bool = True,
    copy_to: storage.Location | None = None,
) -> list[UPath]:
    """Write a piece's files, and the same to a second place if there is one → their paths, the sidecar's the last.

    An older piece of this name loses its sidecar before anything else changes, so a sidecar's presence means that
    all that stands beside it belongs together, whenever a writer was killed. Each file appears whole.

    Raises:
        ValueError: the audio is empty, leaves [-1, 1] or isn't finite.
    """
    _check(piece)
    sidecar = strict_json(piece.sidecar, indent=1, ensure_ascii=False)
    contents = {"wav": _encode(piece.audio, "WAV")}
    for format in formats:
        contents[format] = _encode_mp3(piece.audio) if format == "mp3" else _encode(piece.audio, format.upper())
    if spectrogram:
        contents["png"] = draw_spectrogram(piece.audio, SAMPLE_RATE, piece.stem)
    if piece.codes is not None:
        contents["npy"] = _encode_codes(piece.codes)
    written = _publish(storage.as_path(out) / piece.stem, contents, sidecar)
    if copy_to is not None:
        _publish(storage.as_path(copy_to) / piece.stem, contents, sidecar)
    return written


def _publish(base: UPath, contents: Mapping[str, bytes], sidecar: str) -> list[UPath]:
    _beside(base, "json").unlink(missing_ok=True)
    for stale in set(COMPANIONS) - set(contents):
        _beside(base, stale).unlink(missing_ok=True)
    for ending, content in contents.items():
        with storage.publish(_beside(base, ending)) as path:
            path.write_bytes(content)
    storage.write_text(_beside(base, "json"), sidecar)
    return [_beside(base, ending) for ending in (*contents, "json")]


def _check(piece: Piece) -> None:
    peak = float(np.abs(piece.audio).max(initial=0.0))
    if piece.audio.ndim != 1 or not len(piece.audio) or not peak <= 1:  # a peak of NaN isn't
        raise ValueError(f"{piece.stem} is no mono audio within [-1, 1]: shape {piece.audio.shape}, peak {peak}")


def _beside(base: UPath, ending: str) -> UPath:
    return base.with_name(f"{base.name}.{ending}")


def _encode(audio: NDArray[np.float32], format: str) -> bytes:
    """In 16 bits. Rounded here: from floats, libsndfile writes wavs and FLAC that differ by one."""
    samples = np.clip(np.round(audio * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, subtype="PCM_16", format=format)
    return buffer.getvalue()


def _encode_mp3(audio: NDArray[np.float32]) -> bytes:
    """With about 192 kbit/s. What is decoded differs from what was encoded: made softer until nothing clips."""
    level = 1.0
    while True:
        buffer = io.BytesIO()
        soundfile.write(
            buffer,
            audio * np.float32(level),
            SAMPLE_RATE,
            format="MP3",
            subtype="MPEG_LAYER_III",
            bitrate_mode="CONSTANT",
            compression_level=MP3_COMPRESSION,
        )
        encoded = buffer.getvalue()
        decoded, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
        peak = np.abs(decoded).max(initial=0.0)
        if peak <= 1:
            return encoded
        level *= 0.99 / peak


def _encode_codes(codes: NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, codes.astype(np.uint16, casting="same_kind"))
    return buffer.getvalue()
