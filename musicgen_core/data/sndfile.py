"""Decoding by libsndfile. It may loop or crash on malformed files, so it runs in a separate process."""

from __future__ import annotations

import os

import soundfile

from musicgen_core.data.concatenated_audio import check_single
from musicgen_core.data.mix_down import Mono, check_size, mix_down
from musicgen_core.data.scratch import scratch
from musicgen_core.data.wav_header import WavHeader, breaks_off, id3_bytes, read_wav_header
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message

_COPY_BYTES = 1 << 20
_TAGS_BYTES = 4096  # tags that may follow the last frame of an MP3
_FRAMES_UNKNOWN = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX


def decode_with_sndfile(descriptor: int, max_bytes: int) -> tuple[Mono, int]:
    """Decode a file to (mono signal, rate in Hz).

    Args:
        descriptor: descriptor of the file.
        max_bytes: maximum size of the mono signal, at its own rate and at 32 kHz.

    Raises:
        ClipRejected: not decodable, shorter than its header says, or larger than `max_bytes`.
    """
    try:
        with _open(descriptor, read_wav_header(descriptor)) as sound:
            if sound.frames == _FRAMES_UNKNOWN:
                raise ClipRejected(
                    message(
                        "its header doesn't declare its length, which libsndfile needs to decode {format}",
                        format=sound.format,
                    )
                )
            check_size(sound, max_bytes)
            mono = mix_down(sound)
            _check_complete(sound, len(mono.samples))
            check_single(descriptor, sound.format, len(mono.samples) / sound.samplerate)
            return mono, sound.samplerate
    except soundfile.LibsndfileError as error:
        reason = " ".join(error.error_string.split()).rstrip(". ")
        raise ClipRejected(
            message("not decodable as audio ({error}; {size:,} bytes)", error=reason, size=os.fstat(descriptor).st_size)
        ) from error


def _open(descriptor: int, header: WavHeader | None) -> soundfile.SoundFile:
    """Open a file by descriptor, so that libsndfile reads in C.

    libsndfile fails on some valid wavs (a length of 0 or in a ds64 chunk of zeros, fmt after data, an odd chunk
    without pad byte, BW64). For those it is given a copy with a plain header.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)  # libsndfile takes the current position for the beginning
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
    raise ClipRejected(
        message(
            "not decodable as audio ({declared:,} frames by its header, {found:,} by libsndfile)",
            declared=header.frames,
            found=sound.frames,
        )
    )


def _open_plain_copy(descriptor: int, header: WavHeader) -> soundfile.SoundFile:
    with scratch(header.audio_bytes) as copy:
        copy.write(header.plain())
        end = header.start + header.audio_bytes
        for position in range(header.start, end, _COPY_BYTES):
            copy.write(os.pread(descriptor, min(_COPY_BYTES, end - position), position))
        copy.seek(0)
        return soundfile.SoundFile(os.dup(copy.fileno()))  # closes the duplicate, and with it the file


def _check_complete(sound: soundfile.SoundFile, decoded: int) -> None:
    if sound.format == "MP3" and not _mp3_declares_length(sound.name):
        # libsndfile estimates the length from the bitrate of the first frame, and reads no further.
        left = os.fstat(sound.name).st_size - os.lseek(sound.name, 0, os.SEEK_CUR)
        if left > _TAGS_BYTES:
            raise ClipRejected(
                message(
                    "it is an MP3 that doesn't declare its length, and {left:,} bytes of it can't be read", left=left
                )
            )
    elif decoded < sound.frames:
        raise breaks_off(sound.frames, decoded)


def _mp3_declares_length(descriptor: int) -> bool:
    """Return whether an MP3 declares its length in the tag that encoders put into the first frame."""
    head = os.pread(descriptor, 1024, id3_bytes(descriptor))
    return b"Xing" in head or b"Info" in head
