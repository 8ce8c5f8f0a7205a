"""Writes that fail like those to a full disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from upath import UPath

from musicgen_core import storage


@contextlib.contextmanager
def failing(is_failing: Callable[[UPath, int], bool]) -> Iterator[list[str]]:
    """Publishing a file fails like a full disk where `is_failing(target, how often it failed before)`."""
    whole, failed = storage.publish, list[str]()

    @contextlib.contextmanager
    def publish(target: UPath) -> Iterator[Path]:
        if is_failing(target, failed.count(target.name)):
            failed.append(target.name)
            raise OSError(28, "No space left on device")
        with whole(target) as path:
            yield path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "publish", publish)
        yield failed
