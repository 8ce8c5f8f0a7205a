"""A native decoder has a time limit, can be interrupted, and affects nothing else when it crashes."""

from __future__ import annotations

import io
import os
import signal
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile

from musicgen_core.data import decoder_process
from musicgen_core.data.audio import decode
from musicgen_core.data.decoder_process import decode_in_process
from musicgen_core.errors import Cancelled, ClipRejected

TONE = 0.3 * np.sin(np.arange(20_000) / 12)
HANGING_LIST = b"LIST" + struct.pack("<I", 12) + b"INFOIXXX" + struct.pack("<I", 0xFFFF_FFF8)


def sound(subtype: str, format: str = "WAV", rate: int = 32_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def hanging(subtype: str) -> bytes:
    """Return a wav whose LIST chunk has a sub-chunk of -8 bytes, on which libsndfile loops forever."""
    data = sound(subtype)
    fmt_end = 20 + struct.unpack("<I", data[16:20])[0]
    return data[:4] + struct.pack("<I", len(data) + 12) + data[8:fmt_end] + HANGING_LIST + data[fmt_end:]


@contextmanager
def opened(data: bytes) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


def assert_decodes() -> None:
    with opened(sound("VORBIS", "OGG")) as file:
        assert len(decode(file).samples) == len(TONE)


def test_a_negative_chunk_size_does_not_stop_pcm_decoding() -> None:
    with opened(hanging("PCM_16")) as file, opened(sound("PCM_16")) as plain:
        np.testing.assert_array_equal(decode(file).samples, decode(plain).samples)


def test_a_decoder_that_loops_is_ended_and_the_clip_rejected() -> None:
    with opened(hanging("IMA_ADPCM")) as file, pytest.raises(ClipRejected, match="decoding it takes more than 1 s"):
        decode_in_process(file.fileno(), 1 << 30, seconds=1)
    assert_decodes()


def test_a_decoder_that_waits_for_ever_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_decodes()
    worker = decoder_process._idle[-1]
    os.kill(worker._process.pid, signal.SIGSTOP)  # uses no CPU time
    monkeypatch.setattr(decoder_process, "_WALL_FACTOR", 0)
    with opened(sound("VORBIS", "OGG")) as file, pytest.raises(ClipRejected, match="decoding it takes more than"):
        decode(file)
    monkeypatch.undo()
    assert_decodes()


def test_a_decoder_can_be_interrupted_while_it_loops() -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with opened(hanging("IMA_ADPCM")) as file, pytest.raises(Cancelled):
        decode(file, cancelled=stop.is_set)
    assert_decodes()


@pytest.mark.parametrize(
    ("ended_by", "error", "expected"),
    [(signal.SIGSEGV, ClipRejected, "it crashed the decoder"), (signal.SIGKILL, OSError, "too little memory")],
)
def test_a_crash_costs_its_clip_alone_and_any_other_end_none(
    ended_by: signal.Signals, error: type[Exception], expected: str
) -> None:
    assert_decodes()
    worker = decoder_process._idle[-1]
    with opened(hanging("IMA_ADPCM")) as file:
        threading.Timer(0.3, os.kill, (worker._process.pid, ended_by)).start()
        with pytest.raises(error, match=expected):
            decode(file)
    assert_decodes()


def test_packages_that_pythonpath_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path)]))
    monkeypatch.setattr(decoder_process, "_idle", [])
    assert_decodes()
    decoder_process._idle.pop().end()
    assert (tmp_path / "seen").exists()


def test_decoders_end_with_the_process_that_uses_them() -> None:
    assert_decodes()
    worker = decoder_process._idle.pop()
    worker._socket.close()
    assert worker._process.wait(timeout=60) == 0
