"""Decode audio files to mono or stereo fp32, and resample them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import soxr
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.data.decoder_process import decode_in_process
from musicgen_core.data.members import recognise
from musicgen_core.data.mix_down import AudioArray, check_size, check_sound, mix_down
from musicgen_core.data.wav import PcmSound, breaks_off, open_pcm, read_wav_header
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message


@dataclass(frozen=True)
class DecodedClip:
    """Decoded audio.

    Attributes:
        samples: [samples], fp32, mono; [2, samples] if stereo was asked for.
        rate: Hz; the file's own, unless the clip was resampled.
        file_seconds: duration at the file's own rate, if the clip was resampled.
        chroma: pitch classes of the melody, [chroma frames], if they are not those of `samples`.
    """

    samples: AudioArray
    rate: int
    file_seconds: float | None = None
    chroma: NDArray[np.uint8] | None = None

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / self.rate

    @property
    def duration(self) -> float:
        """Seconds at the file's own rate."""
        return self.seconds if self.file_seconds is None else self.file_seconds


def decode(
    file: BinaryIO,
    max_bytes: int = 2 << 30,
    cancelled: Callable[[], bool] = lambda: False,
    stereo: bool = False,
) -> DecodedClip:
    """Decode a file and mix it down by the mean of its channels. Many threads can do so at once.

    Uncompressed wavs are decoded here. Everything else goes to libsndfile in another process with a time limit. Files
    in other formats that libsndfile reads are decoded whatever their names.

    Args:
        file: a file with a descriptor, which nothing else may read in the meantime.
        max_bytes: maximum size of the mono audio, at its own rate and at 32 kHz.
        cancelled: polled while libsndfile decodes.
        stereo: keep both channels. The mean stands for both if there are not two. The same files are rejected.

    Raises:
        ClipRejected: not decodable, shorter than its header says, empty, shorter than one frame of codes, silent,
            not finite, larger than `max_bytes`, or its decoder crashed or took too long.
        Cancelled: `cancelled` returned True.
    """
    descriptor = file.fileno()
    if known := recognise(os.pread(descriptor, 512, 0)):
        raise ClipRejected(message("not decodable as audio: {reason}", reason=known[0]))
    header = read_wav_header(descriptor)
    if header:
        header.check()
    sound = open_pcm(descriptor, header) if header else None
    clip = DecodedClip(
        *(
            decode_in_process(descriptor, max_bytes, cancelled, stereo=stereo)
            if sound is None
            else _decode_pcm(sound, max_bytes, stereo)
        )
    )
    if clip.samples.shape[-1] * FRAME_RATE < clip.rate:
        raise ClipRejected(
            message(
                "it lasts {seconds:.4f} s, less than one frame of codes ({frame} s)",
                seconds=clip.seconds,
                frame=1 / FRAME_RATE,
            )
        )
    return clip


def resample(samples: AudioArray, rate: int, new_rate: int = SAMPLE_RATE) -> AudioArray:
    """Resample [..., samples], of up to two dimensions, to [..., samples · new_rate / rate], with soxr's high quality.

    The codec's rate of 32 kHz is the default.
    """
    if rate == new_rate:
        return samples
    resampled = cast(AudioArray, soxr.resample(samples.T, rate, new_rate, quality="HQ"))
    return np.ascontiguousarray(resampled.T)


def _decode_pcm(sound: PcmSound, max_bytes: int, stereo: bool) -> tuple[AudioArray, int]:
    check_size(sound, max_bytes)
    mono = mix_down(sound, stereo)
    if len(mono.samples) < sound.frames:  # the file was truncated in the meantime
        raise breaks_off(sound.frames, len(mono.samples))
    check_sound(mono)
    return mono.samples if mono.stereo is None else mono.stereo, sound.samplerate
