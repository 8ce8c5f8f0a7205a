"""Shared by all tests: no test sees a server, a WandB account, a Prefect home or a cache of the machine it runs on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before Prefect is imported anywhere: it reads its settings once.
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "WANDB_"))]:
    del os.environ[_name]
os.environ.update(WANDB_MODE="disabled", PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1")
_tokens_cache = tempfile.TemporaryDirectory(prefix="tokens-cache-")
os.environ["MUSICGEN_TOKENS_CACHE"] = _tokens_cache.name
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # as the command line has it


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real, temporary Prefect server for the flows of this process; its results stay in a temporary folder."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: results}),
    ):
        yield


@pytest.fixture(scope="session")
def demo_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives of eight 2 s clips each and one broken clip, with metadata. Not to be written to."""
    from musicgen_core.demo_data import make_demo_archives

    folder = tmp_path_factory.mktemp("archives")
    make_demo_archives(folder, archives=2, clips=8, seconds=2.0)
    return folder
