"""Which clips stand out, by the fields that captioning or a person wrote."""

from __future__ import annotations

from typing import Any

import pytest

from musicgen_core.data.standing_out import degree, is_of_kind, reason_for, traits_of
from musicgen_core.exclusions import Exclusion

ALL: tuple[Exclusion, ...] = ("silent", "clipped", "speech", "vocals")


@pytest.mark.parametrize(
    ("kind", "field", "below", "above"),
    [("silent", "silence", 0.89, 0.9), ("clipped", "clipping", 0.0099, 0.01), ("speech", "speech", 0.49, 0.5)],
)
def test_a_share_counts_from_its_threshold(kind: Exclusion, field: str, below: float, above: float) -> None:
    assert is_of_kind({field: below}, kind) is False
    assert is_of_kind({field: above}, kind) is True
    assert is_of_kind({field: str(above)}, kind) is True  # as some programs write numbers


@pytest.mark.parametrize("value", [None, True, "loud", [], {}, float("nan"), 10**400, 7, -3, "97"])
def test_a_share_that_is_no_number_tells_nothing(value: Any) -> None:
    assert is_of_kind({"silence": value}, "silent") is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"tags": ["guitar", "female vocals"]}, True),
        ({"tags": ["guitar"]}, False),
        ({"tags": ["guitar", "no vocals"]}, False),
        ({"tags": ["female vocals"], "vocals": []}, False),  # a correction takes precedence
        ({"tags": ["guitar"], "vocals": "choir"}, True),
        ({"vocals": "Instrumental"}, False),
        ({"vocals": "none"}, False),
        ({"description": "a choir sings"}, None),
    ],
)
def test_vocals_are_any_but_no_vocals(entry: dict[str, Any], expected: bool | None) -> None:
    assert is_of_kind(entry, "vocals") is expected


def test_the_degree_of_vocals_is_the_confidence_of_their_tag() -> None:
    entry = {"tags": ["choir", "male vocals"], "confidence": {"tags": {"choir": 0.4, "male vocals": 0.3}}}
    assert degree(entry, "vocals") == 0.4
    assert degree({"vocals": "choir"}, "vocals") == 1.0
    assert degree({"tags": []}, "vocals") == 0.0
    assert degree({}, "vocals") is None


def test_reasons_name_the_kind_and_the_value() -> None:
    entry = {"silence": 0.974, "clipping": 0.0123, "speech": 0.9, "tags": ["piano", "choir", "male vocals"]}
    assert traits_of(entry, ALL) == {
        "silent": "silent: 97.4 % of its time",
        "clipped": "clipped: 1.23 % of its samples",
        "speech": "speech: 90 % of its time",
        "vocals": "vocals: choir, male vocals",
    }
    assert traits_of({"silence": 0.0, "tags": []}, ALL) == {"silent": "", "vocals": ""}
    assert reason_for({"silence": 1.0}, "silent") == "silent: 100 % of its time"
