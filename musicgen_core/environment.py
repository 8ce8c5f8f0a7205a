"""Environment variables: those set to nothing, as a compose file or a `.env` leaves them, and those of processes."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def drop_empty(*prefixes: str) -> None:
    """Unset empty variables whose names begin so: WandB, Prefect and the Hub refuse an empty value, or stumble."""
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        if not os.environ[name].strip():
            del os.environ[name]


def python_path() -> str:
    """Return PYTHONPATH with this project first. Empty entries, which stand for the working directory, are left out."""
    return os.pathsep.join(filter(None, [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
