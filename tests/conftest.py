"""Shared by all tests: no test sees a server, a WandB account, a Prefect home or a cache of the machine it runs on."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# Threads of torch wait for each other by spinning: for the toy's small matrices they cost more than they bring, and
# on a busy machine many times as much. Before torch is imported anywhere; other processes that tests start have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start hundreds of processes; without bytecode each compiles anew all that it imports, for as long as it runs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Examples are the same in every run and take as long as a busy machine needs. To search for new ones:
# HYPOTHESIS_PROFILE=explore.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "repeatable")

# A shell starts what it runs in the background deaf to Ctrl-C, and so would be all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before Prefect is imported anywhere: it reads its settings once. And what a terminal says of its width and colours.
_TERMINAL = ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR")
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "WANDB_")) or name in _TERMINAL]:
    del os.environ[_name]
os.environ.update(WANDB_MODE="disabled", PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1")
_tokens_cache = tempfile.TemporaryDirectory(prefix="tokens-cache-")
os.environ["MUSICGEN_TOKENS_CACHE"] = _tokens_cache.name
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"  # whatever server runs on this machine
os.environ["MUSICGEN_LANGUAGE"] = "en"  # whatever the locale
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # as the command line has it
os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = "musicgen_core"  # likewise
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, in whatever order and process it runs."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_and_logging_as_before() -> Iterator[None]:
    """Commands that tests call in this process decide for good what signals do to it, and what is logged."""
    chosen = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {each: signal.getsignal(each) for each in chosen}
    loggers = [logging.getLogger(name) for name in ("musicgen_core", "musicgen_core.tracking")]
    levels = [logger.level for logger in loggers]
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real, temporary Prefect server for the flows of this process; its results stay in a temporary folder.

    Flows wait for their artifacts however slow the machine is: the first drawing makes Matplotlib's cache of fonts.
    """
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from tasks import artifacts

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=240),
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: results}),
        pytest.MonkeyPatch.context() as patch,
    ):
        for patience in ("PATIENCE_SECONDS", "PATIENCE_IF_INTERRUPTED_SECONDS"):
            patch.setattr(artifacts, patience, 120.0)
        yield


@pytest.fixture(scope="session")
def demo_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two archives of eight 2 s clips each and one broken clip, with metadata. Not to be written to."""
    from musicgen_core.demo_data import make_demo_archives

    folder = tmp_path_factory.mktemp("archives")
    make_demo_archives(folder, archives=2, clips=8, seconds=2.0)
    return folder


@pytest.fixture(scope="session")
def demo_tokens(demo_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo archives' shards, for the debug model. Not to be written to."""
    from musicgen_core.codec import Codec
    from musicgen_core.config import TokenizeSettings
    from musicgen_core.model.weights import find_model
    from musicgen_core.storage import as_path
    from musicgen_core.tokenizing import Tokenizer

    tokens = tmp_path_factory.mktemp("demo-tokens")
    tokenizer = Tokenizer(Codec(find_model("debug"), "cpu"), as_path(tokens), TokenizeSettings())
    for archive in sorted(demo_archives.glob("*.zip")):
        tokenizer.tokenize(as_path(archive))
    return tokens


@pytest.fixture(scope="session")
def finetuned(prefect_server: None, demo_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A real run of everything, from archives to music → what it left, not to be written to, and its state."""
    from flows.finetune import finetune

    folder = tmp_path_factory.mktemp("finetuned")
    state = finetune(
        archives=str(demo_archives / "*.zip"),
        tokens=str(folder / "tokens"),
        run_dir=str(folder / "runs" / "jazz"),
        output=str(folder / "music"),
        model="debug",
        device="cpu",
        prompts=["calm | plucked strings", "energetic drums"],
        duration=0.5,
        batch_size=4,
        gradient_accumulation_steps=1,
        segment_seconds=1.0,
        num_epochs=1,
        return_state=True,
    )
    return folder, state


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty Hugging Face Hub on this machine, with an empty cache; waits between attempts take no time."""
    from huggingface_hub import constants

    from tests.stand_in_hub import stand_in_hub, use_hub

    with stand_in_hub() as hub:
        use_hub(hub.url, tmp_path / "hub-cache", monkeypatch.setattr)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for timeout in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.setattr(constants, timeout, 5)
        monkeypatch.setattr("musicgen_core.model.hub_errors._pause", lambda seconds: None)
        yield hub
