from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musicgen_core.codes import FRAME_RATE
from musicgen_core.music_theory import SCALES
from musicgen_core.synthesis.composing import Clip, compose, compose_many
from musicgen_core.synthesis.instruments import DRUMS, NOTES
from musicgen_core.synthesis.styles import ALL_STYLES, HELD_OUT, STYLES


def same(first: Clip, second: Clip) -> bool:
    return np.array_equal(first.events, second.events) and all(
        getattr(first, field.name) == getattr(second, field.name)
        for field in dataclasses.fields(Clip)
        if field.name != "events"
    )


def test_a_seed_gives_the_same_clip_each_time() -> None:
    for style in (None, *ALL_STYLES):
        assert same(compose(7, style), compose(7, style))
        assert not same(compose(7, style), compose(8, style))


def test_worker_processes_compose_the_same_clips() -> None:
    one, several = (compose_many(6, 100, frames=100, workers=workers) for workers in (1, 2))
    assert len(one) == 6
    assert all(map(same, one, several))


@pytest.mark.parametrize("style", ALL_STYLES)
def test_a_longer_clip_starts_with_the_same_music(style: str) -> None:
    short, long = (compose(3, style, frames) for frames in (300, 900))
    assert short.caption == long.caption
    starts = long.events[long.events[:, 1] < 300]
    assert sorted(map(tuple, short.events.tolist())) == sorted(map(tuple, starts.tolist()))


def test_full_captions_leave_the_music_as_it_is() -> None:
    assert np.array_equal(compose(5).events, compose(5, full_caption=True).events)


@pytest.mark.parametrize("style", ALL_STYLES)
def test_all_notes_lie_on_the_scale_of_the_key(style: str) -> None:
    for clip in compose_many(10, 50, style):
        on_scale = {(clip.truth.root + step) % 12 for step in SCALES[clip.truth.mode]}
        notes = [NOTES[int(index)] for index in clip.events[:, 0]]
        assert {pitch % 12 for name, pitch, _ in notes if name not in DRUMS} <= on_scale


@pytest.mark.parametrize("style", ALL_STYLES)
def test_the_truth_lists_the_instruments_used(style: str) -> None:
    for clip in compose_many(10, 60, style):
        names = {NOTES[int(index)][0] for index in clip.events[:, 0]}
        assert names - DRUMS.keys() == set(clip.truth.instruments)
        assert bool(names & DRUMS.keys()) == clip.truth.drums


@pytest.mark.parametrize("style", [name for name, style in ALL_STYLES.items() if style.beat])
def test_bars_are_of_equal_length_and_start_with_a_note(style: str) -> None:
    for clip in compose_many(5, 70, style):
        onsets = set(clip.events[:, 1].astype(int).tolist())
        bar = 60 * clip.truth.meter * FRAME_RATE / clip.truth.bpm
        assert set(range(0, 500, round(bar))) <= onsets
        assert abs(round(bar) / bar - 1) < 0.007


def test_tempo_metre_and_key_are_independent_of_the_style() -> None:
    for name, style in STYLES.items():
        truths = [clip.truth for clip in compose_many(200, 1_000, name, frames=50)]
        assert {truth.meter for truth in truths} == set(style.meters)
        assert {(truth.root, truth.mode) for truth in truths} >= {(root, "minor") for root in range(12)}
        tempos = [truth.bpm for truth in truths]
        assert min(tempos) >= 60 and max(tempos) <= 160
        assert not style.beat or max(tempos) > 1.6 * min(tempos)


def test_base_styles_and_held_out_styles_are_disjoint() -> None:
    assert len(STYLES) >= 10 and len(HELD_OUT) >= 2
    assert not STYLES.keys() & HELD_OUT.keys()
    assert {clip.truth.style for clip in compose_many(200, 0, frames=50)} == STYLES.keys()
