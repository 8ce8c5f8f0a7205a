"""Run libsndfile in a separate process, which the system kills when a clip takes too long.

A malformed file can make a native decoder loop or crash, and a thread in native code can't be stopped. The worker
process limits its own CPU time before each clip (RLIMIT_CPU), so a busy machine or a slow disk rejects no clip. The
caller polls for cancellation while it waits, and starts another worker when one died.

Each request is a fixed-size header with the file's descriptor over a Unix socket. Each reply is a line of JSON and,
for a decoded clip, its samples as fp32.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from musicgen_core.data.mix_down import AudioArray, check_sound
from musicgen_core.data.sndfile import decode_with_sndfile
from musicgen_core.errors import Cancelled, ClipRejected
from musicgen_core.language import message
from musicgen_core.process import python_path

LEAST_SECONDS = 30
"""CPU seconds allowed for decoding a clip of any size"""
SECONDS_PER_MIB = 2
"""Additional CPU seconds per MiB of the file. An MP3 takes less than a tenth of that."""

_WALL_FACTOR = 20  # wall time per CPU time allowed: a hanging decoder uses no CPU time
_POLL_SECONDS = 0.2
_REQUEST = struct.Struct("<qd?")  # max_bytes, CPU seconds, stereo
_REPLY = struct.Struct("<I")  # bytes of JSON
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS)


def decode_in_process(
    descriptor: int,
    max_bytes: int,
    cancelled: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
    stereo: bool = False,
) -> tuple[AudioArray, int]:
    """Decode a file with libsndfile to (mono samples, rate in Hz). Thread-safe.

    Args:
        descriptor: descriptor of the file, which nothing else may read in the meantime.
        max_bytes: maximum size of the mono signal, at its own rate and at 32 kHz.
        cancelled: polled several times a second.
        seconds: limit of CPU seconds; by default a generous number that grows with the file.
        stereo: return both channels, [2, samples].

    Raises:
        ClipRejected: the file can't be used, took too long, or crashed the decoder.
        Cancelled: `cancelled` returned True.
        OSError: no process could be started, or it was killed from outside.
    """
    if seconds is None:
        seconds = LEAST_SECONDS + SECONDS_PER_MIB * os.fstat(descriptor).st_size / 2**20
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    try:
        result = worker.decode(descriptor, max_bytes, cancelled, seconds, stereo)
    except ClipRejected:
        _idle.append(worker) if worker.is_alive else worker.end()
        raise
    except BaseException:
        worker.end()
        raise
    _idle.append(worker)
    return result


class _Worker:
    """Process that decodes one clip at a time. It exits when its socket is closed, so it never outlives the caller."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_POLL_SECONDS)
        self.is_alive = True
        with theirs:
            self._process = subprocess.Popen(
                # -P: modules in the working directory must not shadow ours or Python's.
                [sys.executable, "-P", "-m", __spec__.name, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C goes to the caller, which ends this process
            )

    def decode(
        self, descriptor: int, max_bytes: int, cancelled: Callable[[], bool], seconds: float, stereo: bool
    ) -> tuple[AudioArray, int]:
        deadline = time.monotonic() + _WALL_FACTOR * seconds

        def receive(into: memoryview) -> None:
            got = 0
            while got < len(into):
                try:
                    count = self._socket.recv_into(into[got:])
                except TimeoutError:
                    if cancelled():
                        raise Cancelled("decoding was cancelled") from None
                    if time.monotonic() > deadline:
                        self.end()
                        raise _too_long(_WALL_FACTOR * seconds) from None
                    continue
                if not count:
                    raise self._death(seconds)
                got += count

        try:
            socket.send_fds(self._socket, [_REQUEST.pack(max_bytes, seconds, stereo)], [descriptor])
            receive(memoryview(size := bytearray(_REPLY.size)))
            receive(memoryview(line := bytearray(_REPLY.unpack(size)[0])))
            reply: dict[str, Any] = json.loads(line)
            if "rejected" in reply:
                raise ClipRejected(*reply["rejected"])
            if "failed" in reply:
                raise OSError(*reply["failed"])
            samples = np.empty(reply["shape"], dtype=np.float32)
            receive(samples.data.cast("B"))
            return samples, reply["rate"]
        except ConnectionError:
            raise self._death(seconds) from None

    def _death(self, seconds: float) -> Exception:
        """Return the error for the way the process ended."""
        self.is_alive = False
        status = self._process.wait()
        if status == -signal.SIGXCPU:
            return _too_long(seconds)
        if -status in _FAULTS:
            return ClipRejected(
                message("it crashed the decoder (libsndfile, {signal})", signal=signal.Signals(-status).name)
            )
        ended = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return OSError(f"the decoder's process ended ({ended}); too little memory is a common reason")

    def end(self) -> None:
        self.is_alive = False
        self._process.kill()
        self._process.wait()
        self._socket.close()


_idle: list[_Worker] = []


def _too_long(seconds: float) -> ClipRejected:
    return ClipRejected(
        message(
            "decoding it takes more than {seconds:.0f} s, which a sound file of its size never does", seconds=seconds
        )
    )


def main() -> None:
    """Serve decoding requests until the socket is closed."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as caller:
        while True:
            request, descriptors, _, _ = socket.recv_fds(caller, _REQUEST.size, 1)
            if not request:
                return
            max_bytes, seconds, stereo = _REQUEST.unpack(request)
            _limit_cpu(seconds)
            try:
                _answer(caller, descriptors[0], max_bytes, stereo)
            except ConnectionError:
                return
            finally:
                os.close(descriptors[0])


def _limit_cpu(seconds: float) -> None:
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(used + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit if most < 0 else min(limit, most), most))


def _answer(caller: socket.socket, descriptor: int, max_bytes: int, stereo: bool) -> None:
    content: bytes | memoryview = b""
    try:
        mono, rate = decode_with_sndfile(descriptor, max_bytes, stereo)
        check_sound(mono)
        samples = mono.samples if mono.stereo is None else np.ascontiguousarray(mono.stereo)
        reply: dict[str, Any] = {"shape": samples.shape, "rate": rate}
        content = samples.data.cast("B")
    except ClipRejected as rejected:
        reply = {"rejected": [rejected.found, rejected.next_step]}
    except (OSError, MemoryError) as error:
        code = getattr(error, "errno", None)
        reply = {"failed": [str(error)] if code is None else [code, os.strerror(code)]}
    line = json.dumps(reply).encode()
    caller.sendall(_REPLY.pack(len(line)) + line)
    caller.sendall(content)


if __name__ == "__main__":
    main()
