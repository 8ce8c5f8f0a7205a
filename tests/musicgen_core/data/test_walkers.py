"""Parsers of file structures terminate on any bytes, and read nothing outside of the file."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data.archive import read_archive
from musicgen_core.data.members import recognise
from musicgen_core.data.mix_down import mix_down
from musicgen_core.data.sndfile import check_single
from musicgen_core.data.wav import open_pcm, read_wav_header
from musicgen_core.errors import ArchiveError, ClipRejected

MOST_READS = 5000  # chunks are at most 1,000, of up to three reads each, looked through twice
EXTREMES = [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_0000, 0xFFFF_FFF8, 0xFFFF_FFFE, 0xFFFF_FFFF]


def wavs() -> list[bytes]:
    found = []
    for container, subtype in [
        ("WAV", "PCM_16"),
        ("WAVEX", "PCM_24"),
        ("RF64", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "IMA_ADPCM"),
    ]:
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.3 * np.sin(np.arange(200) / 10), 8000, format=container, subtype=subtype)
        found.append(buffer.getvalue())
    info = b"INFOISFT" + struct.pack("<I", 4) + b"abcd"
    chunks = b"".join(name + struct.pack("<I", len(data)) + data for name, data in [(b"LIST", info), (b"junk", b"")])
    return [*found, found[0][:36] + chunks + found[0][36:] + chunks, found[0] + found[0]]


def sounds() -> list[bytes]:
    found = []
    for container, subtype in [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("FLAC", "PCM_16"), ("CAF", "PCM_16")]:
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.3 * np.sin(np.arange(4000) / 10), 16_000, format=container, subtype=subtype)
        found.append(buffer.getvalue()[:6000])
    return found


def archives() -> list[bytes]:
    members = {"a.wav": wavs()[0][:300], "日本.wav": b"broken", "a.txt": b"text", "b/c.wav": b""}
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in members.items():
                with archive.open(name, "w", force_zip64=name == "a.wav") as file:
                    file.write(data)
        found.append(buffer.getvalue())
    entry = found[0].index(b"PK\1\2")
    for place in (20, 24, 42):  # its packed size, its size, where it is
        far = bytearray(found[0])
        struct.pack_into("<I", far, entry + place, 0xFFFF_FFF8)
        found.append(bytes(far))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        found.append(buffer.getvalue())
    return found


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw a file, or random bytes, with extreme numbers inserted, truncated, concatenated or extended."""
    data = bytearray(draw(st.one_of(st.sampled_from(seeds), st.binary(max_size=700))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        form = draw(st.sampled_from(["<I", ">I", "<Q", "<H", "B"]))
        number = draw(st.one_of(st.sampled_from(EXTREMES), st.integers(0, 2**32 - 1))) * (1 + 2**32 * (form == "<Q"))
        patch = struct.pack(form, number % 256 ** struct.calcsize(form))
        data[place : place + len(patch)] = patch
    end = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:end]) + draw(st.one_of(st.just(b""), st.binary(max_size=40), st.sampled_from(seeds)))


@contextmanager
def watched(data: bytes) -> Iterator[int]:
    """Provide a descriptor of a file that counts reads, and fails those that begin outside of it."""
    reads = 0

    def watch(read: Callable[..., object]) -> Callable[..., object]:
        def call(descriptor: int, what: object, offset: int) -> object:
            nonlocal reads
            reads += 1
            assert 0 <= offset <= len(data) and reads <= MOST_READS
            return read(descriptor, what, offset)

        return call

    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(data)
        file.flush()
        patch.setattr(os, "pread", watch(os.pread))
        patch.setattr(os, "preadv", watch(os.preadv))
        yield file.fileno()


@settings(max_examples=200, deadline=None)
@given(mutated(wavs()))
def test_chunks_of_any_bytes_are_walked_to_an_end(data: bytes) -> None:
    with watched(data) as descriptor:
        recognise(data[:512])
        header = read_wav_header(descriptor)
        if header is None:
            return
        assert 0 <= header.start <= len(data) and header.start + header.audio_bytes <= len(data)
        try:
            header.check()
        except ClipRejected:
            return
        sound = open_pcm(descriptor, header)
        if sound is not None and sound.channels <= 8:
            assert len(mix_down(sound).samples) == sound.frames


@settings(max_examples=80, deadline=None)
@given(mutated(sounds()))
def test_frames_and_pages_of_any_bytes_are_walked_to_an_end(data: bytes) -> None:
    if not data:
        return
    with watched(data) as descriptor:
        for container in ("MP3", "OGG"):
            with suppress(ClipRejected):
                check_single(descriptor, container, 0.0)


class Watched(io.BytesIO):
    """Simulated remote file that fails reads that begin outside of it, and more than MOST_READS reads."""

    reads = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert 0 <= offset <= len(self.getbuffer())
        return super().seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        assert self.reads <= MOST_READS
        return super().read(size)


def walk_members(data: bytes, is_local: bool) -> None:
    with watched(data) as descriptor, os.fdopen(os.dup(descriptor), "rb") if is_local else Watched(data) as file:
        try:
            archive = read_archive(file, "a.zip")
            for member in archive.clips():
                with suppress(ClipRejected):
                    member.open().close()
            archive.sidecars()
        except (ArchiveError, ClipRejected):
            return


@pytest.mark.parametrize("is_local", [True, False])
def test_members_that_lie_elsewhere_are_not_looked_for_outside(is_local: bool) -> None:
    for data in archives():
        walk_members(data, is_local)


@settings(max_examples=150, deadline=None)
@given(mutated(archives()), st.booleans())
def test_members_of_any_bytes_are_walked_to_an_end(data: bytes, is_local: bool) -> None:
    walk_members(data, is_local)
