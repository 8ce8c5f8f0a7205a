"""Fixtures of a registered server and of the terminal's output."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from deployments import activity, console
from deployments.registering import register


@pytest.fixture(scope="module")
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    """A client of a server where everything is registered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))  # for `prefect deploy`, a process
        register()
        with get_client(sync_client=True) as one:
            yield one


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the stream that receives the terminal's output. It is a pipe in tests, so rich adds no colours."""
    stream = io.StringIO()
    monkeypatch.setattr(console.output, "_file", stream)
    monkeypatch.setattr(activity, "LOOK_SECONDS", 1e9)  # on a busy machine any line might be repeated
    return stream
