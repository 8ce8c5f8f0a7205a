"""Seeds for independent random streams."""

from __future__ import annotations

import numpy as np


def stream_of(*numbers: int) -> int:
    """Return a seed for each combination of numbers, in the range of torch's generators."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
