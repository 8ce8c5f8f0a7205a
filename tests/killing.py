"""What ends a run in tests as Prefect's signals do."""

from __future__ import annotations


class Killed(BaseException):
    """Like Prefect's TerminationSignal: no Exception, and it can be raised anywhere."""
