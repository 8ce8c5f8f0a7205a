"""A folder of music behind the file server, for tests in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.servers import free_port
from deployments.file_server import Application, Folders, listening


@contextmanager
def served_page(music: Path) -> Iterator[str]:
    """Serve a folder as `up` does, and yield the URL of its page."""
    folders, port = Folders(), free_port()
    folders.served = {"output": str(music)}
    with listening(Application(folders, None), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}/output/index.html"
