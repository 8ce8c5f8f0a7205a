"""Waits for what is to come, however long a busy machine takes."""

from __future__ import annotations

import time
from collections.abc import Callable

STOP_AFTER_S = 45.0
"""Many times what any of these needs, and less than without the limits of `impatient`."""


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + STOP_AFTER_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
