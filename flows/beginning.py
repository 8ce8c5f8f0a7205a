"""What every run begins with."""

from __future__ import annotations

import logging

from flows.endings import log_reasons_once
from flows.orphans import end_with_worker
from musicgen_core.escaping import print_logs_safely
from tasks.fetching import report_downloads
from tasks.keys import export_secrets


def begin() -> None:
    """Let this run end with its worker, have its keys, and report downloads and what the core logs with it."""
    print_logs_safely()
    log_reasons_once()
    end_with_worker()
    export_secrets()
    report_downloads()
    # Prefect gives this logger a handler of its own, but leaves its level to be that of the root: warnings alone.
    logging.getLogger("musicgen_core").setLevel(logging.INFO)
