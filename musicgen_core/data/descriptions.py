"""The text that a clip's own metadata give: an object's description, a template over its fields, or plain text."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from musicgen_core.config import template_fields

if TYPE_CHECKING:
    from musicgen_core.data.archive import Sidecar

MetadataEntry = dict[str, Any]


def parse_entry(text: str) -> MetadataEntry | None:
    """A JSON object; None for anything else."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):  # the latter for brackets nested thousands deep
        return None
    return entry if isinstance(entry, dict) else None


def own_description(entry: MetadataEntry) -> str | None:
    """The entry's `description`, if it is a text."""
    description = entry.get("description")
    return clean(description) if isinstance(description, str) else None


def describe_sidecar(sidecar: Sidecar, template: str | None) -> str | None:
    """What the file beside a clip says: a `.json` as an entry of metadata, a `.txt` as it is, on one line."""
    if sidecar.suffix == ".txt":
        return clean(" ".join(sidecar.text.split()))
    entry = parse_entry(sidecar.text)
    return None if entry is None else fill_template(template, entry) or own_description(entry)


def problem_of(sidecar: Sidecar) -> str | None:
    """Why a file that was read gives no description by its form."""
    if sidecar.suffix == ".json" and parse_entry(sidecar.text) is None:
        return "is not a JSON object"
    return None


def fill_template(template: str | None, entry: MetadataEntry) -> str | None:
    """`"{genre}, {bpm} bpm"` → `"techno, 128 bpm"`; None if there is no template or a field is missing or blank."""
    if template is None:
        return None
    values = {name: field_text(entry.get(name)) for name in template_fields(template)}
    return None if None in values.values() else clean(template.format_map(values))


def field_text(value: Any) -> str | None:
    """A field as people write it: `120.0` → `120`, `true` → `yes`, a list with commas; None if there is nothing.

    Whole numbers are written in full, others with six digits. Objects and lists of lists have no such form.
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
    """Without space around it; None if nothing is left. Half a surrogate pair, which UTF-8 can't hold, is a `?`."""
    return text.strip().encode("utf-8", "replace").decode() or None
