"""Decoding by libsndfile. It may loop or crash on malformed files, so it runs in a separate process."""

from __future__ import annotations

import mmap
import os
import re
import struct

import soundfile

from musicgen_core.data.members import scratch
from musicgen_core.data.mix_down import Mono, check_size, mix_down
from musicgen_core.data.truncation import check_aiff, check_ogg
from musicgen_core.data.wav import WavHeader, breaks_off, id3_bytes, joined_files, read_wav_header
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message

_COPY_BYTES = 1 << 20
_TAGS_BYTES = 4096  # tags that may follow the last frame of an MP3
_FRAMES_UNKNOWN = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX
_SPARE_SECONDS = 0.5
"""Surplus of an MP3's frames over its audio: encoder delay, padding, and the frame of the Xing tag"""

_SIGNATURES = (
    b"fLaC\0\0\0\x22",
    b"caff\0\1\0\0desc",
    b".snd\0\0\0\x18",
    b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0",  # Wave64
    b"NIST_1A\n",
    b"Creative Voice File\x1a",
)
"""Signatures of these formats, too long to occur by chance"""

_OGG_BEGINNING = b"OggS\0\2" + bytes(8)
_OGG_HEADER = 27

# ISO/IEC 11172-3 and 13818-3, Layer III: by the version bits of a frame header (MPEG 2.5, 2 and 1).
_MP3_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
_MP3_KBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")


def decode_with_sndfile(descriptor: int, max_bytes: int, keep_stereo: bool = False) -> tuple[Mono, int]:
    """Decode a file to (mono signal, rate in Hz).

    Args:
        descriptor: descriptor of the file.
        max_bytes: maximum size of the mono signal, at its own rate and at 32 kHz.
        keep_stereo: as for `mix_down`.

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
            mono = mix_down(sound, keep_stereo)
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
    if sound.format == "OGG":  # libsndfile takes the length from the last page that it finds
        check_ogg(sound.name)
    head = os.pread(sound.name, 1024, id3_bytes(sound.name))
    if sound.format == "MP3" and not (b"Xing" in head or b"Info" in head):  # the tag of encoders declares the length
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
    elif sound.format == "AIFF":
        check_aiff(sound.name, decoded)


def check_single(descriptor: int, sound_format: str, seconds: float) -> None:
    """Check that a decoded file isn't several joined files (as by `cat`), of which libsndfile decodes only the first.

    Wavs are checked by `read_wav_header`.

    Args:
        descriptor: descriptor of the file.
        sound_format: libsndfile's name of the format.
        seconds: duration of the decoded audio.

    Raises:
        ClipRejected: another file follows the decoded one.
    """
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        begin = id3_bytes(descriptor)
        if sound_format == "MP3":
            held = _mp3_seconds(data, begin)
            if held > seconds + _SPARE_SECONDS:
                raise ClipRejected(
                    message(
                        "only {seconds:,.1f} of its {held:,.1f} s can be read: it is several MP3s joined into one, or "
                        "one that doesn't declare its length",
                        seconds=seconds,
                        held=held,
                    ),
                    message("Encode it as one file"),
                )
            return
        another = _find_another(data, begin)
    if another >= 0:
        raise joined_files(another)


def _find_another(data: mmap.mmap, begin: int) -> int:
    """Return the offset of a second file of the same format; -1 if there is none."""
    for signature in _SIGNATURES:
        if data[begin : begin + len(signature)] == signature:
            return data.find(signature, begin + len(signature))
    if data[begin : begin + 4] != b"OggS":
        return -1
    while data[begin : begin + len(_OGG_BEGINNING)] == _OGG_BEGINNING:  # multiplexed streams all begin here
        segments = data[begin + _OGG_HEADER - 1] if begin + _OGG_HEADER <= len(data) else 0
        begin += _OGG_HEADER + segments + sum(data[begin + _OGG_HEADER : begin + _OGG_HEADER + segments])
    return data.find(_OGG_BEGINNING, begin)


def _mp3_seconds(data: mmap.mmap, position: int) -> float:
    """Return the duration of all Layer III frames, regardless of data between them."""
    seconds = 0.0
    while position < len(data):
        length, lasting = _mp3_frame(data, position)
        if length:
            seconds += lasting
            position += length
        else:
            position = _next_mp3_frame(data, position + 1)
    return seconds


def _next_mp3_frame(data: mmap.mmap, position: int) -> int:
    """Return the offset of a frame followed by another one or by the file's end; else the file's end."""
    for found in _MP3_SYNC.finditer(data, position):
        length, _ = _mp3_frame(data, found.start())
        after = found.start() + length
        if length and (after == len(data) or _mp3_frame(data, after)[0]):
            return found.start()
    return len(data)


def _mp3_frame(data: mmap.mmap, position: int) -> tuple[int, float]:
    """Return bytes and seconds of the frame at a position; (0, 0) without one, or for a free bit rate."""
    if position + 4 > len(data):
        return 0, 0.0
    (header,) = struct.unpack_from(">I", data, position)
    version, layer, kbits, rate = header >> 19 & 3, header >> 17 & 3, header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        return 0, 0.0
    hertz = _MP3_RATES[version][rate]
    samples, table = (1152, _MP3_KBITS_1) if version == 3 else (576, _MP3_KBITS_2)
    return samples * 125 * table[kbits - 1] // hertz + (header >> 9 & 1), samples / hertz
