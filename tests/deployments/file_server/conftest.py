"""Fixtures of the file server: served folders, and a server of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.servers import free_port
from deployments.file_server import Application, listening
from tests.deployments.file_server.sites import SECRET, folders_of


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Served folders with music, and things in and beside them that are not to be read."""
    top = tmp_path_factory.mktemp("places")
    run = top / "runs" / "first"
    (run / "samples").mkdir(parents=True)
    (run / "wandb").mkdir()
    (run / ".git").mkdir()
    (top / "output").mkdir()
    (top / "tokens").mkdir()
    tone = 0.3 * np.sin(np.arange(32_000) / 20)
    for name in ("runs/first/samples/epoch_000_00.wav", "output/a b#c%d?é.wav"):
        soundfile.write(top / name, tone, 32_000)
    (top / "output" / "a b#c%d?é.json").write_text('{"prompt": "jazz"}')
    (top / "output" / "index.html").write_text("<title>music</title>")
    (top / "runs-of-others").mkdir()
    hidden = ["secret.wav", "runs-of-others/secret.wav", "runs/config.json", "runs/first/config.json"]
    hidden += ["runs/first/.env", "runs/first/.git/secret.wav", "runs/first/.hidden.wav", "runs/first/settings.yaml"]
    for name in [*hidden, "runs/first/wandb/wandb-metadata.json"]:
        (top / name).write_bytes(SECRET)
    (run / "out").symlink_to(top)
    (run / "out.wav").symlink_to(top / "secret.wav")
    (run / "settings.wav").symlink_to(run / "config.json")
    (run / "loop.wav").symlink_to(run / "loop.wav")
    os.mkfifo(run / "pipe.wav")
    return top


@pytest.fixture
def site(tree: Path) -> Iterator[str]:
    port = free_port()
    with listening(Application(folders_of(tree), None), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"
