"""From a `.wav` to what the codec takes: mono, fp32, and then 32 kHz."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.data.wav_header import WavHeader, id3_bytes, read_wav_header
from musicgen_core.errors import ClipRejected

Samples = NDArray[np.float32]

_BLOCK = 1 << 20  # samples of all channels decoded at once, 4 MiB: larger ones leave the cache before they are added
_COPY_BYTES = 1 << 20
_TAGS_BYTES = 4096  # what may follow the last frame of an MP3
_LOUDEST = 2.0**32  # floats on the scale of 32-bit integers, and some more; beyond, the codec gives nonsense
_FRAMES_UNKNOWN = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX


@dataclass(frozen=True)
class Clip:
    """Decoded audio.

    Attributes:
        samples: [samples], fp32, mono, at the file's own rate.
        rate: Hz.
    """

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def decode(file: BinaryIO, max_bytes: int = 2 << 30) -> Clip:
    """Decode a file and mix it down by the mean of its channels. Many threads can do so at once.

    What isn't a wav but another format that libsndfile reads is decoded as what it is.

    Args:
        file: has a real descriptor, through which it is read; so nothing else may read it meanwhile.
        max_bytes: the most that the mono audio may take, at its own rate and at 32 kHz.

    Raises:
        ClipRejected: not decodable, shorter than its header says, empty, shorter than one frame of codes, silent,
            not finite, or larger than `max_bytes`.
    """
    descriptor = file.fileno()
    header = read_wav_header(descriptor)
    if header:
        header.check()
    try:
        with _open(descriptor, header) as sound:
            _check_size(sound, max_bytes)
            clip = Clip(_mix_down(sound), sound.samplerate)
    except soundfile.LibsndfileError as error:
        reason = " ".join(error.error_string.split()).rstrip(". ")
        raise ClipRejected(f"not decodable as audio ({reason}; {os.fstat(descriptor).st_size:,} bytes)") from error
    if len(clip.samples) * FRAME_RATE < clip.rate:
        raise ClipRejected(f"it lasts {clip.seconds:.4f} s, less than one frame of codes ({1 / FRAME_RATE} s)")
    return clip


def resample(samples: Samples, rate: int) -> Samples:
    """To 32 kHz: [samples] → [samples · 32,000 / rate], by soxr's high quality."""
    return samples if rate == SAMPLE_RATE else cast(Samples, soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ"))


def _open(descriptor: int, header: WavHeader | None) -> soundfile.SoundFile:
    """By its descriptor, so that libsndfile reads in C and other threads run meanwhile.

    It stumbles over some wavs that are sound (a length of 0 or in a ds64 chunk of zeros, fmt behind data, an odd chunk
    without its pad byte, BW64). Of those it gets a copy with a plain header.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)  # libsndfile takes the place where it stands for the beginning
    try:
        sound = soundfile.SoundFile(descriptor, closefd=False)
    except soundfile.LibsndfileError:
        if header is None:
            raise
    else:
        if header is None or header.frames in (None, sound.frames):
            return sound
        sound.close()
    sound = _open_plain_copy(descriptor, header)
    if header.frames in (None, sound.frames):
        return sound
    sound.close()
    counts = f"{header.frames:,} frames by its header, {sound.frames:,} by libsndfile"
    raise ClipRejected(f"not decodable as audio ({counts})")


def _open_plain_copy(descriptor: int, header: WavHeader) -> soundfile.SoundFile:
    with tempfile.TemporaryFile() as copy:
        copy.write(header.plain())
        end = header.start + header.audio_bytes
        for position in range(header.start, end, _COPY_BYTES):
            copy.write(os.pread(descriptor, min(_COPY_BYTES, end - position), position))
        copy.seek(0)
        return soundfile.SoundFile(os.dup(copy.fileno()))  # which closes the duplicate, and with it the file


def _check_size(sound: soundfile.SoundFile, max_bytes: int) -> None:
    if sound.frames == _FRAMES_UNKNOWN:
        raise ClipRejected(f"its header doesn't declare its length, which libsndfile needs to decode {sound.format}")
    needed = 4 * sound.frames * max(1.0, SAMPLE_RATE / sound.samplerate)
    if needed > max_bytes:
        raise ClipRejected(
            f"it lasts {sound.frames / sound.samplerate:,.0f} s, which takes {needed / 2**30:,.2f} GiB as mono fp32, "
            f"more than max_clip_gib ({max_bytes / 2**30:g})",
            "Cut it into shorter clips, or raise max_clip_gib",
        )


def _mix_down(sound: soundfile.SoundFile) -> Samples:
    """The mean of the channels, [frames], decoded block by block, so that many channels don't take as many times the
    memory. What is wrong with single samples shows in the mean too, which is quicker to search."""
    mono = np.empty(sound.frames, dtype=np.float32)
    buffer = np.empty((min(sound.frames, max(1, _BLOCK // sound.channels)), sound.channels), dtype=np.float32)
    decoded = not_finite = 0
    peak, cancelled = 0.0, False
    # libsndfile may have more than it declares of a damaged MP3.
    while decoded < sound.frames and len(block := sound.read(out=buffer[: sound.frames - decoded])):
        mean = mono[decoded : decoded + len(block)]
        _mean_of_channels(block, mean)
        low, high = float(mean.min()), float(mean.max())  # NaN where any is
        peak = max(peak, -low, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            not_finite += int(np.count_nonzero(~np.isfinite(block)))
        elif low == high == 0:
            cancelled |= bool(block.any())
        decoded += len(block)
    _check_complete(sound, decoded)
    if not decoded:
        raise ClipRejected("it holds no samples")
    if not_finite:
        raise ClipRejected(f"{not_finite:,} of its samples are not finite")
    if peak > _LOUDEST:
        raise ClipRejected(f"its samples reach {peak:.3g}, which is no audio")
    if not peak:
        raise ClipRejected("its channels cancel each other out" if cancelled else "all its samples are zero")
    return mono[:decoded]


def _mean_of_channels(block: Samples, out: Samples) -> None:
    """[frames, channels] → [frames]. Column by column: `mean(axis=1)` over few channels is 20 times slower."""
    channels = block.shape[1]
    if channels == 1:
        out[:] = block[:, 0]
        return
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(block[:, 0], block[:, 1], out=out)
        for channel in range(2, channels):
            out += block[:, channel]
        out /= channels


def _check_complete(sound: soundfile.SoundFile, decoded: int) -> None:
    if sound.format == "MP3" and not _mp3_declares_length(sound.name):
        # libsndfile guesses the length from the bitrate of the first frame, and reads no further than that.
        left = os.fstat(sound.name).st_size - os.lseek(sound.name, 0, os.SEEK_CUR)
        if left > _TAGS_BYTES:
            raise ClipRejected(f"it is an MP3 that doesn't declare its length, and {left:,} bytes of it can't be read")
    elif decoded < sound.frames:
        raise ClipRejected(f"it breaks off: its header declares {sound.frames:,} frames, {decoded:,} are there")


def _mp3_declares_length(descriptor: int) -> bool:
    """In the tag that encoders put into the first frame."""
    head = os.pread(descriptor, 1024, id3_bytes(descriptor))
    return b"Xing" in head or b"Info" in head
