"""Adapters with strengths, as they are written: only a number behind the last colon is a strength."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.errors import ConfigError
from musicgen_core.model.weighted_adapters import (
    WeightedAdapter,
    parse_adapter,
    parse_adapters,
    shown_adapters,
    split_adapters,
    times,
    with_effect,
)

STRENGTHS = st.floats(allow_nan=False, allow_infinity=False)
SOURCES = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20).filter(
    lambda text: not Path(text).exists() and "://" not in text
)


@given(source=SOURCES, strength=STRENGTHS)
def test_any_source_with_any_strength_is_read_as_it_was(source: str, strength: float) -> None:
    assert parse_adapter(f"{source}:{strength!r}") == WeightedAdapter(source, strength)
    adapter = WeightedAdapter(source, strength)
    assert parse_adapter(str(adapter)) == adapter


@given(source=SOURCES.filter(lambda text: ":" not in text))
def test_a_source_without_a_colon_has_strength_1(source: str) -> None:
    assert parse_adapter(source) == WeightedAdapter(source) and str(WeightedAdapter(source)) == source


@pytest.mark.parametrize(
    ("text", "source", "strength"),
    [
        ("runs/first", "runs/first", 1),
        ("runs/first:0.7", "runs/first", 0.7),
        ("runs/first:-1e-1", "runs/first", -0.1),
        ("runs/first:+.5", "runs/first", 0.5),
        ("gs://bucket/runs/first", "gs://bucket/runs/first", 1),
        ("memory://bucket/runs/first:0", "memory://bucket/runs/first", 0),
        ("user/name:0.5", "user/name", 0.5),
        ("a:b:2", "a:b", 2),
        ("runs/take:two", "runs/take:two", 1),
        ("runs/0.5", "runs/0.5", 1),
        ("runs/first:0,5", "runs/first:0,5", 1),
        ("runs/first:", "runs/first:", 1),
        ("runs/first:٣", "runs/first:٣", 1),  # a digit, but not of ASCII
    ],
)
def test_only_a_number_behind_the_last_colon_is_a_strength(text: str, source: str, strength: float) -> None:
    assert parse_adapter(text) == WeightedAdapter(source, strength)


def test_a_file_of_the_whole_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("take:0.5").mkdir()
    Path("one,two").mkdir()
    assert parse_adapter("take:0.5") == WeightedAdapter("take:0.5")
    assert parse_adapter("take:0.5:0.2") == WeightedAdapter("take:0.5", 0.2)
    assert split_adapters("one,two:0.5") == ("one,two:0.5",)
    assert split_adapters("one,three:0.5") == ("one", "three:0.5")


@pytest.mark.parametrize("text", ["runs/first:nan", "runs/first:-inf", "runs/first:1e999", ":0.5"])
def test_a_strength_that_is_not_finite_or_stands_alone_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text} is not an adapter with a strength"):
        parse_adapter(text)


def test_base_is_no_adapter_and_stands_alone() -> None:
    assert parse_adapters(["base"]) == ()
    for wrong in (["base:0.5"], ["base", "runs/first"]):
        with pytest.raises(ConfigError, match="has no strength and stands alone"):
            parse_adapters(wrong)


@pytest.mark.parametrize("given", ["runs/first:0.7, b_lora.pt:-0.4", ["runs/first:0.7", "b_lora.pt:-0.4"]])
def test_several_adapters_are_a_list_or_a_text_with_commas(given: str | list[str]) -> None:
    adapters = parse_adapters(split_adapters(given))
    assert adapters == (WeightedAdapter("runs/first", 0.7), WeightedAdapter("b_lora.pt", -0.4))
    assert parse_adapters(split_adapters(shown_adapters(adapters))) == adapters


def test_factors_multiply_strengths_to_what_a_user_would_type() -> None:
    assert times([WeightedAdapter("a", 0.7), WeightedAdapter("b")], 0.1) == parse_adapters(["a:0.07", "b:0.1"])
    assert with_effect(times([WeightedAdapter("a", 0.7)], 0)) == ()
