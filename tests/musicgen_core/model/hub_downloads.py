"""A small repository for the stand-in Hub, and what to fetch of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from musicgen_core.errors import ModelError
from musicgen_core.model.hub import Wanted
from tests.stand_in_hub import TOKEN

REPO = "somebody/model"
LARGE = bytes(range(256)) * 8000  # 2 MB
FILES = {"config.json": b"{}", "weights.bin": LARGE, "unwanted.bin": b"u" * 5000, "tokenizer/vocab.txt": b"a b c"}
WANTED = Wanted(("config.json", ("weights.safetensors", "weights.bin")), ("tokenizer/*",))


@contextmanager
def refused(*parts: str, next_step: str = "") -> Iterator[None]:
    with pytest.raises(ModelError) as refusal:
        yield
    for part in parts:
        assert part in refusal.value.found
    assert next_step in refusal.value.next_step
    assert TOKEN not in str(refusal.value) and "signature" not in str(refusal.value)


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.glob("hub-cache/models--*/blobs/*"))
