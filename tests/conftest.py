"""Fixtures of all tests. They isolate tests from the machine's servers, WandB account, Prefect home and caches."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import settings

# torch's threads synchronize by spinning, which costs more than it gains for the debug model's small matrices, most of
# all on a busy machine. Set before torch is imported anywhere; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start hundreds of processes; without cached bytecode each would compile all its imports again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Examples are the same in every run, without a deadline. To search for new ones: HYPOTHESIS_PROFILE=explore.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "repeatable")

# A shell starts background processes with SIGINT ignored, which all processes that tests start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before Prefect is imported anywhere, as it reads its settings once. Width and colours of terminals likewise.
_TERMINAL = ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR")
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "WANDB_")) or name in _TERMINAL]:
    del os.environ[_name]
os.environ.update(WANDB_MODE="disabled", PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1")
_tokens_cache = tempfile.TemporaryDirectory(prefix="tokens-cache-")
os.environ["MUSICGEN_TOKENS_CACHE"] = _tokens_cache.name
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"  # whatever server runs on this machine
os.environ["MUSICGEN_LANGUAGE"] = "en"  # whatever the locale
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # as on the command line
os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = "musicgen_core"  # likewise
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"

LONG_TESTS_SECONDS = 1800
"""After so long a slow test has failed; those that take longest take some minutes where nothing else runs."""
ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
"""A PNG"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests and those in a browser the time that they take on a busy machine, unless they have their own."""
    for item in items:
        is_long = item.get_closest_marker("slow") or item.get_closest_marker("browser")
        if is_long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_TESTS_SECONDS))


def pytest_collection_finish() -> None:
    """Exclude what lives until the end from garbage collections, of which releasing a model's memory starts many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed all random generators, so that tests are independent of order and process."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_and_logging_as_before() -> Iterator[None]:
    """Restore signal handlers and logging, which commands called in this process change permanently."""
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
    """Run a real, temporary Prefect server for flows of this process, with results in a temporary folder.

    Flows wait long enough for their artifacts on a slow machine: the first picture builds Matplotlib's font cache.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from tasks import artifacts

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=240),
        # The end of a flow that sends heartbeats takes up to a second.
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: results, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        pytest.MonkeyPatch.context() as patch,
    ):
        for patience in ("PATIENCE_SECONDS", "PATIENCE_IF_INTERRUPTED_SECONDS"):
            patch.setattr(artifacts, patience, 120.0)
        gc.freeze()
        yield


@pytest.fixture
def blank_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write figures of Matplotlib as one pixel: drawing those of a short training takes as long as the training."""
    import matplotlib.figure

    def savefig(figure: object, target: Path | IO[bytes], **settings: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(ONE_PIXEL)
        else:
            target.write(ONE_PIXEL)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)


@pytest.fixture(scope="session")
def demo_archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return two archives of eight 2 s clips each and one broken clip, with metadata. Read-only."""
    from musicgen_core.demo_data import make_demo_archives

    folder = tmp_path_factory.mktemp("archives")
    make_demo_archives(folder, archives=2, clips=8, seconds=2.0)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    changed = {path.name: path.read_bytes() for path in folder.iterdir()} != made
    assert not changed, f"a test changed {folder}, which later ones relied on"


@pytest.fixture(scope="session")
def clap_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy CLAP with random weights. Read-only."""
    from tests.toy_clap import make_clap

    return make_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="session")
def demucs_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy HTDemucs with random weights. Read-only. Tests that need it are skipped where Demucs is missing."""
    pytest.importorskip("demucs")
    from tests.toy_demucs import make_demucs

    return make_demucs(tmp_path_factory.mktemp("demucs"))


@pytest.fixture(scope="session")
def demo_tokens(demo_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo archives' shards, for the debug model. Read-only."""
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
    """Run `finetune`, from archives to music; return its files, which are read-only, and its state."""
    from flows.finetune import finetune

    folder = tmp_path_factory.mktemp("finetuned")
    state = finetune(
        archives=str(demo_archives / "*.zip"),
        tokens=str(folder / "tokens"),
        run_dir=str(folder / "runs" / "jazz"),
        output=str(folder / "music"),
        model="debug",
        device="cpu",
        captions="none",  # the archives are shared, and one has a broken clip without a description
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
    """Run an empty stand-in for the Hugging Face Hub, with an empty cache and no delay between retries."""
    from huggingface_hub import constants

    from tests.stand_in_hub import stand_in_hub, use_hub

    with stand_in_hub() as hub:
        use_hub(hub.url, tmp_path / "hub-cache", monkeypatch.setattr)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for timeout in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.setattr(constants, timeout, 5)
        monkeypatch.setattr("musicgen_core.model.hub_transfer._pause", lambda seconds: None)
        yield hub
