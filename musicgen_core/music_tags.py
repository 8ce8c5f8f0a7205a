"""Names of tags, by what they describe."""

from __future__ import annotations

from typing import Literal

Category = Literal["genre", "instruments", "mood", "vocals"]

CATEGORIES: dict[str, Category] = {}
