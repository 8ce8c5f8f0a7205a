"""What a rendering has written: names, sidecars, codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = ("slow piano", "a fast breakbeat, 174 bpm")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def sidecar_of(wav: str) -> dict[str, Any]:
    return json.loads(Path(wav).with_suffix(".json").read_text(encoding="utf-8"))


def codes_of(wav: str) -> np.ndarray:
    return np.load(Path(wav).with_suffix(".npy"))
