"""gs:// without Google: an emulator with a bucket, behind a proxy on which requests can be made to fail."""

from __future__ import annotations

import http.client
import http.server
import json
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import fsspec
import pytest
from gcp_storage_emulator.server import create_server
from upath import UPath

from bench.servers import free_port
from musicgen_core import google_storage, storage

SILENCE_S = 0.8
"""After how long tests take a connection for stalled."""


_PASSED_ON = ("Content-type", "Location", "Range")


@dataclass
class StorageFault:
    """A fault of the next `times` requests whose `METHOD path?query Content-Range` matches `pattern`.

    Attributes:
        kind: an HTTP status to answer with; `drop`: the answer breaks off in the middle; `lose`: what was asked is
            done, but the connection breaks before the answer; `stall`: the answer stops in the middle and never goes
            on; `block`: what is sent is never read.
    """

    kind: int | str
    pattern: str
    times: int = 1
    message: str = "made to fail"


@dataclass
class Proxy:
    """A server in front of the emulator.

    Attributes:
        faults: what is still to go wrong.
        requests: `METHOD path?query Content-Range` of all that came, in order.
        ended: the last answers of uploads in parts. Google gives them again; the emulator forgets the upload.
    """

    address: str
    faults: list[StorageFault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    ended: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, kind: int | str, pattern: str, times: int = 1, message: str = "made to fail") -> None:
        self.faults.append(StorageFault(kind, pattern, times, message))

    def next_fault(self, request: str) -> StorageFault | None:
        with self.lock:
            self.requests.append(request)
            fault = next((one for one in self.faults if one.times and re.search(one.pattern, request)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    @property
    def has_failed_as_planned(self) -> bool:
        return not any(fault.times for fault in self.faults)


def _handler(proxy: Proxy, emulator: int) -> type[http.server.BaseHTTPRequestHandler]:
    class ProxyHandler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: object) -> None:
            pass

        def _serve(self) -> None:
            fault = proxy.next_fault(f"{self.command} {self.path} {self.headers.get('Content-Range', '')}")
            kind = fault.kind if fault is not None else None
            if kind == "block":
                proxy.over.wait(30)
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if isinstance(kind, int):
                assert fault is not None
                error = {"code": kind, "message": fault.message}
                self._answer(kind, {"Content-Type": "application/json"}, json.dumps({"error": error}).encode())
                return
            if self.path not in proxy.ended:  # what is sent to an upload that has ended is answered as its end was
                answer = self._ask_emulator(body)
                if "upload_id=" in self.path and answer[0] == 200:
                    proxy.ended[self.path] = answer
                self._answer(*answer, kind)
            else:
                self._answer(*proxy.ended[self.path], kind)

        def _ask_emulator(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", emulator)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name in _PASSED_ON}
            content = answer.read()
            connection.close()
            return answer.status, headers, content

        def _answer(self, status: int, headers: dict[str, str], content: bytes, kind: object = None) -> None:
            self.close_connection = kind is not None
            if kind == "lose":
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content if kind is None else content[: len(content) // 2])
            if kind == "stall":
                self.wfile.flush()
                proxy.over.wait(30)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    return ProxyHandler


@pytest.fixture(scope="session")
def emulator() -> Iterator[int]:
    """Yield the port of an emulated Google Cloud Storage."""
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield port
    server.stop()


@pytest.fixture
def proxy(emulator: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield the proxy that this process and its children use as Google Cloud Storage."""
    held = Proxy("")

    class QuietServer(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_args: object) -> None:
            pass  # clients that hang up are meant to

    with QuietServer(("127.0.0.1", 0), _handler(held, emulator)) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        held.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", held.address)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        yield held
        held.over.set()
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts, so that tests of stalls don't take a minute."""
    settings = {"silence_s": SILENCE_S, "request_s": 3.0, "attempts": 8}  # a busy machine makes stalls of its own
    monkeypatch.setitem(fsspec.config.conf, "gs", settings)
    monkeypatch.setattr(google_storage, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(google_storage, "PART_BYTES", 4 << 20)
    monkeypatch.setattr(google_storage, "LONGEST_DELAY_S", 0.5)


@pytest.fixture
def place(proxy: Proxy) -> UPath:
    """Return the path of a new bucket on the emulator."""
    path = storage.as_path(f"gs://b{uuid4().hex[:12]}")
    path.fs.mkdir(path.path.rstrip("/"))
    proxy.requests.clear()
    return path


def random_bytes(size: int) -> bytes:
    """Return the same pseudo-random bytes in every run."""
    return random.Random(size).randbytes(size)


def names_in(place: UPath) -> list[str]:
    """All objects of a bucket as it is now."""
    place.fs.invalidate_cache()
    return sorted(name.partition("/")[2] for name in place.fs.find(place.path.rstrip("/")))
