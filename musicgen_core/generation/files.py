"""The files of a generated sample: wav, FLAC, MP3, spectrogram, codes, and a sidecar that marks it as complete."""

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
"""Endings of the optional files beside STEM.wav and STEM.json."""
MP3_COMPRESSION = 0.4  # of libsndfile's 0 to 1: LAME's constant 192 kbit/s at 32 kHz
FULL_SCALE = 1 << 15  # of 16 bits


@dataclass(frozen=True)
class GeneratedSample:
    """One generated sample of music.

    Attributes:
        stem: name of its files without the ending, such as `generated_000`.
        audio: float32 [samples], 32 kHz mono, loudness-normalised, within [-1, 1].
        codes: uint16 [4, frames] to save as `.npy`, or None.
        sidecar: JSON values.
    """

    stem: str
    audio: NDArray[np.float32]
    codes: NDArray[np.uint16] | None
    sidecar: dict[str, Any]


def write_sample(
    out: storage.Location,
    sample: GeneratedSample,
    formats: Sequence[Format] = (),
    spectrogram: bool = True,
    copy_to: storage.Location | None = None,
) -> list[UPath]:
    """Write a sample's files, and a copy if `copy_to` is given, and return their paths, the sidecar's last.

    The sidecar of an older sample of this name is deleted before anything else changes, so that the files beside a
    sidecar always belong together, even if a writer was killed. Each file is written atomically.

    Args:
        out: the directory.
        sample: the sample.
        formats: formats beside wav.
        spectrogram: whether to draw a spectrogram, as `.png`.
        copy_to: a second directory, or None.

    Raises:
        ValueError: the audio is empty, leaves [-1, 1] or isn't finite.
    """
    _check(sample)
    sidecar = strict_json(sample.sidecar, indent=1, ensure_ascii=False)
    contents = {"wav": _encode(sample.audio, "WAV")}
    for format in formats:
        contents[format] = _encode_mp3(sample.audio) if format == "mp3" else _encode(sample.audio, format.upper())
    if spectrogram:
        contents["png"] = draw_spectrogram(sample.audio, SAMPLE_RATE, sample.stem)
    if sample.codes is not None:
        contents["npy"] = _encode_codes(sample.codes)
    written = _publish(storage.as_path(out) / sample.stem, contents, sidecar)
    if copy_to is not None:
        _publish(storage.as_path(copy_to) / sample.stem, contents, sidecar)
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


def _check(sample: GeneratedSample) -> None:
    peak = float(np.abs(sample.audio).max(initial=0.0))
    if sample.audio.ndim != 1 or not len(sample.audio) or not peak <= 1:  # a peak of NaN isn't
        raise ValueError(f"{sample.stem} is no mono audio within [-1, 1]: shape {sample.audio.shape}, peak {peak}")


def _beside(base: UPath, ending: str) -> UPath:
    return base.with_name(f"{base.name}.{ending}")


def _encode(audio: NDArray[np.float32], format: str) -> bytes:
    """Encode audio in 16 bits, rounded here: from floats, libsndfile writes wav and FLAC that differ by one."""
    pcm = np.clip(np.round(audio * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, subtype="PCM_16", format=format)
    return buffer.getvalue()


def _encode_mp3(audio: NDArray[np.float32]) -> bytes:
    """Encode audio at about 192 kbit/s, attenuated until the decoded audio, which differs, doesn't clip."""
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
