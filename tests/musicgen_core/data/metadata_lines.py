"""Captions from a `metadata.jsonl` of the given entries."""

from __future__ import annotations

import json
from typing import Any

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import Captions, load_captions

FILE = storage.as_path("memory://captions/metadata.jsonl")


def captions_of(*entries: Any, ascii_only: bool = True, template: str | None = None) -> Captions:
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=ascii_only) for entry in entries]
    storage.write_text(FILE, "\n".join(lines) + "\n")
    return load_captions(FILE, TokenizeSettings(caption_template=template))


def clip(path: str, description: Any = "a description") -> dict[str, Any]:
    return {"path": path, "description": description}


def found(captions: Captions, member: str, archive: str = "") -> tuple[bool, str | None]:
    """Return (whether the metadata have an entry for a member, its description)."""
    texts = captions.find(member, archive)
    return texts is not None, texts and texts.description
