"""The adapters in a sidecar, the `.json` beside a sample.

`adapter` is null for the base model, an object for one adapter, and a list of objects for several. An object has
`path`, `sha256`, `epoch`, `global_step` and, since strengths exist, `strength`; the weights are the base model's plus
the sum of strength × change. Every value may be missing, as in files of earlier versions, or foreign.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Sidecar = Mapping[str, Any]
_MOST = 1e15


def best_of(sidecar: Sidecar) -> Mapping[str, Any]:
    """Return what a sidecar says of the candidates of which its sample is the best, or one; empty without others."""
    found = sidecar.get("best_of")
    return found if isinstance(found, Mapping) else {}


def candidate_of(sidecar: Sidecar) -> Any:
    """Return which candidate a sample is: how many there are, and its number if all are kept; None without others."""
    found = best_of(sidecar)
    return [found.get("candidates"), found.get("candidate") if found.get("all_kept") else None] if found else None


def adapter_entries(sidecar: Sidecar) -> list[Mapping[str, Any]]:
    """Return the objects of the adapters that a sample was rendered with; none for the base model."""
    adapter = sidecar.get("adapter")
    return [one for one in (adapter if isinstance(adapter, list) else [adapter]) if isinstance(one, Mapping)]


def strength_of(entry: Mapping[str, Any]) -> float:
    """Return the strength of an adapter's object; 1 if it has none, or none that a rendering can have."""
    strength = number_of(entry.get("strength", 1))
    return 1.0 if strength is None else float(strength)


def number_of(value: Any) -> float | int | None:
    """Return a value if it is a number that JSON and pages can have; None for others, NaN and infinity."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < _MOST else None
