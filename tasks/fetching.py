"""Fetch what a run needs from the Hugging Face Hub before its long work begins."""

from __future__ import annotations

from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.stages import announce, announce_torch
from tasks.progress import Update, report


def report_downloads() -> None:
    """Report the downloads of the current run as its other progress is, in MB."""
    hub.set_download_listener(lambda progress: report(fetched(progress)))


def fetched(progress: hub.DownloadProgress) -> Update:
    """Return the state of a download, in MB."""
    done, total = progress.done // 10**6, progress.total // 10**6
    return Update("fetch", progress.repo, done, total, f"{progress.bytes_per_sec / 1e6:.1f} MB/s, {progress.repo}")


def check_model(name: str) -> None:
    """Fetch a model with its text encoder, and read its configuration.

    Raises:
        ModelError: no run could use it.
    """
    announce_torch()
    from musicgen_core.model.text import find_text_encoder
    from musicgen_core.model.weights import find_model

    announce(message("looking for the model {name}", name=name))
    model = find_model(name)
    assert model.config, "read, to find out whether it can be"
    find_text_encoder(model.text_encoder)
