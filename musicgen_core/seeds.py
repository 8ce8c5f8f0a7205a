"""Seeds for independent random streams."""

from __future__ import annotations

import numpy as np


def stream_of(*numbers: int) -> int:
    """A seed of its own for each combination of numbers, in what torch's generators take."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
