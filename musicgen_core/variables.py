"""Environment variables that are set to nothing, as a compose file or a `.env` leaves them."""

from __future__ import annotations

import os


def drop_empty(*prefixes: str) -> None:
    """Unset empty variables whose names begin so: WandB, Prefect and the Hub refuse an empty value, or stumble."""
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        if not os.environ[name].strip():
            del os.environ[name]
