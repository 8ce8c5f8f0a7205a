"""Download a run's model from the Hugging Face Hub before the long part of the run starts."""

from __future__ import annotations

from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.stages import announce, announce_torch
from tasks.progress import Update, report


def report_downloads() -> None:
    """Report downloads of the current run as progress updates, in MB."""
    hub.set_download_listener(lambda progress: report(fetched(progress)))


def fetched(progress: hub.DownloadProgress) -> Update:
    """Return a download's progress as an update, in MB."""
    done, total = progress.done // 10**6, progress.total // 10**6
    return Update("fetch", progress.repo, done, total, f"{progress.bytes_per_sec / 1e6:.1f} MB/s, {progress.repo}")


def check_model(name: str) -> None:
    """Download a model with its text encoder, and read its configuration.

    Raises:
        ModelError: the model can't be used by any run.
    """
    announce_torch()
    from musicgen_core.model.text import find_text_encoder
    from musicgen_core.model.weights import find_model

    announce(message("looking for the model {name}", name=name))
    model = find_model(name)
    assert model.config, "read, to find out whether it can be"
    find_text_encoder(model.text_encoder)
