"""Fixtures of `doctor`: a wide terminal without keys, and a machine without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.console.output.width", 400)
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where no server is set: also in a session where other tests have one."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "")  # nor is one looked for
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield
