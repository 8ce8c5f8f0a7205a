"""Setup shared by all flow runs."""

from __future__ import annotations

import logging

from flows.endings import log_reasons_once
from flows.orphans import end_with_worker
from musicgen_core.escaping import print_logs_safely
from tasks.fetching import report_downloads
from tasks.keys import export_secrets


def set_up_run() -> None:
    """Tie this run to its worker, export its keys, and forward downloads and the core's log to the run."""
    print_logs_safely()
    log_reasons_once()
    end_with_worker()
    export_secrets()
    report_downloads()
    # Prefect adds a handler to this logger, but the level stays the root logger's: warnings only.
    logging.getLogger("musicgen_core").setLevel(logging.INFO)
