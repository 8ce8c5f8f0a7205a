"""Description of a clip from its metadata: an object's description, a template over its fields, or plain text."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from musicgen_core.texts import template_fields

if TYPE_CHECKING:
    from musicgen_core.data.archive import Sidecar

MetadataEntry = dict[str, Any]


def parse_entry(text: str) -> MetadataEntry | None:
    """Parse a JSON object; return None for anything else."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):  # the latter for brackets nested thousands deep
        return None
    return entry if isinstance(entry, dict) else None


def own_description(entry: MetadataEntry) -> str | None:
    """Return the entry's `description`, if it is a string."""
    description = entry.get("description")
    return clean(description) if isinstance(description, str) else None


def describe_sidecar(sidecar: Sidecar, template: str | None) -> str | None:
    """Return the description in a sidecar: a `.json` is read as a metadata entry, a `.txt` verbatim on one line."""
    if sidecar.suffix == ".txt":
        return clean(" ".join(sidecar.text.split()))
    entry = parse_entry(sidecar.text)
    return None if entry is None else fill_template(template, entry) or own_description(entry)


def problem_of(sidecar: Sidecar) -> str | None:
    """Return why the content of a readable sidecar gives no description, or None."""
    if sidecar.suffix == ".json" and parse_entry(sidecar.text) is None:
        return "is not a JSON object"
    return None


def fill_template(template: str | None, entry: MetadataEntry) -> str | None:
    """Fill `"{genre}, {bpm} bpm"` to `"techno, 128 bpm"`; None without a template or with a missing or blank field."""
    if template is None:
        return None
    values = {name: field_text(entry.get(name)) for name in template_fields(template)}
    return None if None in values.values() else clean(template.format_map(values))


def field_text(value: Any) -> str | None:
    """Return a field as people write it: `120.0` → `120`, `true` → `yes`, a list with commas; None if empty.

    Whole numbers are written in full, others with six digits. Objects and nested lists give None.
    """
    if isinstance(value, list):
        return ", ".join(filter(None, map(_scalar_text, value))) or None
    return _scalar_text(value)


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else None  # NaN is pandas' null
    return clean(str(value)) if isinstance(value, int | str) else None


def clean(text: str) -> str | None:
    """Strip whitespace and replace lone surrogates, which UTF-8 can't encode, by `?`; None if nothing is left."""
    return text.strip().encode("utf-8", "replace").decode() or None
