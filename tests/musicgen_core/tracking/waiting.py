"""Wait for a condition, however long a busy machine takes."""

from __future__ import annotations

import time
from collections.abc import Callable

STOP_AFTER_S = 45.0
"""Far longer than any of these needs, and shorter than without the timeouts of `impatient`"""


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + STOP_AFTER_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
