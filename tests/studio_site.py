"""A studio of the debug model on a real server, for tests of its interface and of its page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from bench.servers import free_port
from deployments.file_server import listening
from deployments.hosts import names_of_machine
from deployments.studio.access import Sessions
from deployments.studio.adapters import offered_adapters
from deployments.studio.folder import MusicFolder
from deployments.studio.jobs import Studio
from deployments.studio.server import Served, make_app
from musicgen_core import storage
from musicgen_core.generation.resident import ResidentModel
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.lora import adapter_state, add_lora
from musicgen_core.model.weights import find_model, load_lm

PATIENCE_SECONDS = 240


def write_runs(runs: Path, model: str = "debug") -> None:
    """Write a folder of one run, `jazz`, whose adapter changes the music at once."""
    base, settings = find_model(model), AdapterConfig(4, 16)
    generator = torch.Generator().manual_seed(0)
    state = adapter_state(add_lora(load_lm(base), settings))
    lora = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    adapter = Adapter(lora, settings.plain(), 3, 42, 6.5, base.identity)
    save_adapter(adapter, storage.as_path(runs / "jazz" / "lora_weights" / "best_lora.pt"))
    (runs / "jazz" / "config.json").write_text(f'{{"model": "{model}", "lora_r": 4}}')
    (runs / "jazz" / "metrics.jsonl").write_text('{"step": 1, "val/loss": 6.5}\n{"step": 2, "val/loss": 6.25}\n')


@dataclass
class Site:
    """A running studio, and a client of its page."""

    url: str
    served: Served
    client: httpx.Client

    def make(self, **form: Any) -> str:
        """Ask for music, and return the job's id."""
        answer = self.client.post("/api/jobs", json={"duration": 0.5, "temperature": 1.0, **form})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, id: str) -> dict[str, Any]:
        return next(job for job in self.client.get("/api/state").json()["jobs"] if job["id"] == id)

    def wait(self, id: str, states: tuple[str, ...] = ("waiting", "making")) -> dict[str, Any]:
        """Wait for a job to leave these states, by default to end, and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (job := self.job(id))["state"] in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.02)
        return job


@contextmanager
def open_studio(folder: Path, runs: Path, password: str | None = None, model: str = "debug") -> Iterator[Site]:
    """Run a studio on a folder, with a password if one is given."""
    studio = Studio(lambda: ResidentModel(find_model(model), torch.device("cpu"), keep_base=True))
    served = Served(studio, MusicFolder(str(folder)), lambda: offered_adapters((), storage.as_path(runs), model))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with listening(make_app(served, Sessions(password), names_of_machine(url)), "127.0.0.1", port):
        studio.start()
        try:
            assert studio.is_ready.wait(PATIENCE_SECONDS) and not studio.failure
            with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
                yield Site(url, served, client)
        finally:
            studio.stop()
