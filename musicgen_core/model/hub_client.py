"""The HTTP client of huggingface_hub: how long it waits, and what it logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from musicgen_core.language import message
from musicgen_core.stages import mention

ANSWER_SECONDS = 300.0
"""Timeout for the answer to an upload: joining the parts of a large file and committing take the Hub a while."""
_answer_seconds: float | None = None


def limit_waiting() -> None:
    """Give huggingface_hub's HTTP client a timeout; by default it waits forever."""
    import httpx2
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http

    if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:  # else the user's own

        def make() -> object:
            client = _http.default_client_factory()
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            client.timeout = httpx2.Timeout(timeout, read=_answer_seconds or timeout)
            return client

        set_client_factory(make)  # type: ignore[arg-type]


@contextmanager
def uploading() -> Iterator[None]:
    """Configure huggingface_hub for uploads: patience for answers, no progress bars, no URLs in its log."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        close_session,
        disable_progress_bars,
        enable_progress_bars,
    )

    global _answer_seconds
    limit_waiting()
    logger, filter_ = logging.getLogger("huggingface_hub.utils._http"), _WithoutUrls()
    had_bars = not are_progress_bars_disabled()
    _answer_seconds = ANSWER_SECONDS
    close_session()  # the next request makes a client with this timeout
    disable_progress_bars()
    logger.addFilter(filter_)
    try:
        yield
    finally:
        logger.removeFilter(filter_)
        if had_bars:
            enable_progress_bars()
        _answer_seconds = None
        close_session()


class _WithoutUrls(logging.Filter):
    """Replace the log of huggingface_hub's own retries by a stage, because the signed URLs in it are secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        mention(message("the Hugging Face Hub did not accept a request; retrying"))
        return False
