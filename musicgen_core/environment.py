"""Environment variables of this process and its children."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def drop_empty(*prefixes: str) -> None:
    """Unset empty variables with these prefixes. Compose files set them; WandB, Prefect and the Hub reject them."""
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        if not os.environ[name].strip():
            del os.environ[name]


def python_path() -> str:
    """Return PYTHONPATH with this project first and without empty entries, which mean the working directory."""
    return os.pathsep.join(filter(None, [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
