"""Damaged files and random bytes are decoded or rejected, and nothing else happens."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.codes import FRAME_RATE
from musicgen_core.errors import ClipRejected
from tests.musicgen_core.data.audio_files import OTHERS, SUBTYPES, decoded, noise, rejection, written

HEADERS = [written(noise(800, 2), 16_000, *kind) for kind in
           [*(("WAV", subtype) for subtype in SUBTYPES), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), *OTHERS]]  # fmt: skip
WORDS = st.binary(min_size=4, max_size=4) | st.sampled_from([b"\0\0\0\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"data"])


@settings(max_examples=400, deadline=None)
@given(
    original=st.sampled_from(HEADERS),
    changes=st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=1) | WORDS), max_size=4),
    kept=st.none() | st.integers(0, 4000),
)
def test_damaged_files_are_decoded_or_rejected(
    original: bytes, changes: list[tuple[int, bytes]], kept: int | None
) -> None:
    data = bytearray(original)
    for place, change in changes:
        data[place : place + len(change)] = change
    assert_decoded_or_rejected(bytes(data[:kept]))


MAGICS = [b"", b"RIFF\0\0\0\0WAVE", b"RIFX\0\0\0\0WAVEfmt ", b"RF64\xff\xff\xff\xffWAVEds64", b"ID3", b"fLaC", b"OggS",
          b"FORM", b"riff", b"caff", b"\xff\xfb"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=200))
def test_random_bytes_are_decoded_or_rejected(magic: bytes, rest: bytes) -> None:
    assert_decoded_or_rejected(magic + rest)


def assert_decoded_or_rejected(data: bytes) -> None:
    try:
        clip = decoded(data, max_bytes=1 << 28)
    except ClipRejected:
        rejection(data, max_bytes=1 << 28)  # with a reason that can be read
        return
    assert np.isfinite(clip.samples).all() and clip.samples.any() and clip.seconds >= 1 / FRAME_RATE
