from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from musicgen_core.wording import counted, dated, lasting, sized


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 archives"), (1, "1 archive"), (2, "2 archives"), (3000, "3,000 archives")]
)
def test_one_thing_is_not_many(number: int, words: str) -> None:
    assert counted(number, "archive") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.2 seconds"), (180, "3.0 minutes"), (3600, "1.0 hours"), (4_169_880, "1,158.3 hours")],
)
def test_a_duration_has_the_unit_that_shows_it(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(1, "1 byte"), (12, "12 bytes"), (81_700, "81.7 kB"), (82e6, "82.0 MB"), (6.2e9, "6.2 GB"), (2e15, "2,000.0 TB")],
)
def test_a_size_has_the_unit_that_shows_it(size: float, words: str) -> None:
    assert sized(size) == words


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("Asia/Tokyo", "2026-11-23 12:00 JST"), ("UTC", "2026-11-23 03:00 UTC"), ("Asia/Dubai", "2026-11-23 07:00 +04")],
    indirect=["zone"],
)
@pytest.mark.usefixtures("zone")
def test_a_time_is_local_and_has_its_zones_name(shown: str) -> None:
    assert dated(datetime(2026, 11, 23, 3, tzinfo=UTC)) == shown
