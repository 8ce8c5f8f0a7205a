"""Clips of any lengths and rates, measured in batches: order, fields, and what a batch must not change."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from musicgen_core.captioning import measuring
from musicgen_core.captioning.measuring import Measurer
from musicgen_core.data.audio import DecodedClip
from musicgen_core.data.caption_fields import DURATION, MEASURED
from musicgen_core.errors import ClipRejected


@pytest.fixture(scope="module")
def measurer() -> Measurer:
    return Measurer(torch.device("cpu"))


def clip(seconds: float, rate: int = 32_000, level: float = 0.1, seed: int = 0) -> DecodedClip:
    """A chord of A minor that is struck twice a second."""
    time = np.arange(round(seconds * rate)) / rate
    envelope = np.exp(-6 * (time % 0.5))
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 261.63, 329.63, 440.0))
    noise = 0.001 * np.random.default_rng(seed).standard_normal(len(time))
    return DecodedClip((level * envelope * chord + noise).astype(np.float32), rate)


def test_each_clip_gets_its_fields_and_rejections_stay_in_their_places(measurer: Measurer) -> None:
    rejected = ClipRejected("it is silent")
    given = {"a": clip(8), "b": rejected, "c": clip(3, rate=44_100), "d": clip(8, level=0.01), "e": clip(0.1)}
    found = dict(measurer.measure(given.items()))
    assert list(found) == list(given) and found["b"] is rejected
    for name in "acde":
        fields = found[name]
        assert not isinstance(fields, ClipRejected) and set(fields) == {*MEASURED} - {DURATION}
        assert json.loads(json.dumps(fields)) == fields
        assert set(fields["confidence"]["tags"]) == set(fields["tags"])
        assert all(0 <= fields["confidence"][each] <= 1 for each in ("tempo", "key", "speech"))


def test_tempo_and_loudness_are_those_of_the_clip(measurer: Measurer) -> None:
    [(_, loud), (_, quiet)] = measurer.measure([("loud", clip(12)), ("quiet", clip(12, level=0.01))])
    assert not isinstance(loud, ClipRejected) and not isinstance(quiet, ClipRejected)
    assert loud["tempo"] == pytest.approx(120, rel=0.04) and loud["tempo_steady"]
    assert loud["loudness"] - quiet["loudness"] == pytest.approx(20, abs=0.5)
    assert (loud["silence"], loud["clipping"], loud["speech"]) == (0, 0, 0)


def test_a_clip_has_the_same_fields_whatever_is_measured_with_it(measurer: Measurer) -> None:
    clips = [(number, clip(4 + number % 2, seed=number)) for number in range(6)]
    together = dict(measurer.measure(clips))
    assert together == {number: next(measurer.measure([(number, each)]))[1] for number, each in clips}


def test_clips_are_measured_before_all_are_decoded(measurer: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measuring.WINDOW_SECONDS, "cpu", 3.0)
    decoded: list[int] = []

    def clips() -> object:
        for number in range(4):
            decoded.append(number)
            yield number, clip(2, seed=number)

    measured = measurer.measure(clips())  # type: ignore[arg-type]
    assert next(measured)[0] == 0 and decoded == [0, 1]
    assert [number for number, _ in measured] == [1, 2, 3]


def test_of_a_very_long_clip_the_beginning_is_measured(measurer: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MOST_SECONDS", 4.0)
    whole, beginning = clip(9), clip(9)
    beginning = DecodedClip(beginning.samples[: 4 * 32_000], 32_000)
    [(_, long), (_, short)] = measurer.measure([("long", whole), ("short", beginning)])
    assert long == short


@pytest.mark.parametrize("samples", [640, 700, 959, 960, 1_600, 3_200])
def test_the_shortest_clips_that_are_no_rejections_are_measured(measurer: Measurer, samples: int) -> None:
    [(_, fields)] = measurer.measure([("short", clip(samples / 32_000))])
    assert not isinstance(fields, ClipRejected) and fields["tempo"] is None
