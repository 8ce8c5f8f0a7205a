"""Sections of a piece with texts of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.config import SamplingSettings
from musicgen_core.errors import ConfigError
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.engine import Engine, window_bounds
from musicgen_core.generation.melody import Melody
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.render import render
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.settings import validate
from tests.melody_model import make_melody_model
from tests.musicgen_core.generation.rendered_files import codes_of, sidecar_of
from tests.musicgen_core.melodies import music

SETTINGS = SamplingSettings(overlap=0.5)


class Heard(Engine):
    """An engine that notes which texts each window is generated with."""

    def _steps(self, window: Any) -> Any:
        HEARD.append((window.given, window.frames.tolist(), window.condition.mask.sum(dim=1).tolist()))
        return super()._steps(window)


HEARD: list[tuple[int, list[int], list[int]]] = []


@pytest.fixture
def engine(debug_model: BaseModel, text_encoder: TextEncoder) -> Heard:
    HEARD.clear()
    return Heard(load_lm(debug_model), text_encoder, 3.0, window=100)


def tokens(text_encoder: TextEncoder, texts: Sequence[str]) -> list[int]:
    return [int(text_encoder.encode([text]).mask.sum()) for text in texts]


def test_each_window_is_generated_with_the_text_of_its_section(engine: Heard, text_encoder: TextEncoder) -> None:
    texts = ["intro", "drums enter, loud and fast", "a long and slow ending with bells"]
    changes = {60: texts[1:2], 220: texts[2:]}
    [codes] = engine.generate(texts[:1], SETTINGS, [0], frames=[250], changes=changes)
    first, second, third = tokens(text_encoder, texts)
    # Given frames, the end after the window's begin, and tokens of the text: a section begins with a window, which
    # continues the last 25 frames of the one before it.
    assert HEARD == [
        (0, [60], [first, 0]),
        (25, [100], [second, 0]),
        (25, [100], [second, 0]),
        (25, [35], [second, 0]),
        (25, [55], [third, 0]),
    ]
    assert codes.shape[-1] == 250


def test_before_a_change_and_without_one_codes_are_the_same(engine: Heard) -> None:
    [plain] = engine.generate(["intro"], SETTINGS, [0], frames=[160])
    [unchanged] = engine.generate(["intro"], SETTINGS, [0], frames=[160], changes={})
    [changed] = engine.generate(["intro"], SETTINGS, [0], frames=[160], changes={60: ["drums enter"]})
    assert torch.equal(plain, unchanged)
    assert torch.equal(plain[:, :57], changed[:, :57])  # in the last frames of a window, codes lack later ones
    assert not torch.equal(plain, changed)


def test_a_samples_sections_do_not_depend_on_its_batch(engine: Heard) -> None:
    changes = {60: ["drums enter", "a text that is much longer than the other one"]}
    together = engine.generate(["intro", "x"], SETTINGS, [0, 1], frames=[130, 170], changes=changes)
    [alone] = engine.generate(["intro"], SETTINGS, [0], frames=[130], changes={60: ["drums enter"]})
    assert torch.equal(together[0], alone)


def test_each_section_follows_its_own_part_of_a_melody(debug_model: BaseModel, tmp_path: Path) -> None:
    model, tune = make_melody_model(tmp_path / "model", debug_model), Melody(music(), "tune.wav", "")
    engine, seen = Engine(load_lm(model), TextEncoder(model.text_encoder), 3.0), []

    class Noting(Engine):
        def _chroma(self, *given: Any) -> Any:
            seen.append(super()._chroma(*given))
            return seen[-1]

    noting = Noting(**{name: getattr(engine, name) for name in ("lm", "text", "guidance")})
    noting.generate(["a"], SETTINGS, [0], frames=[60], melodies=[tune], changes={30: ["b"]})
    assert len(seen) == 2 and not torch.equal(*seen)


@given(
    changes=st.sets(st.integers(1, 600)),
    known=st.integers(0, 200),
    frames=st.integers(1, 600),
    overlap=st.integers(1, 99),
)
def test_windows_cover_every_frame_once_and_none_has_two_texts(
    changes: set[int], known: int, frames: int, overlap: int
) -> None:
    bounds = window_bounds(known, frames, 100, overlap, changes)
    assert [have for _, have, _ in bounds] == [known, *(end for _, _, end in bounds[:-1])][: len(bounds)]
    for begin, have, end in bounds:
        assert 0 <= begin <= have < end <= min(frames, begin + 100)
        assert not any(have < change < end for change in changes)
        assert begin in (0, have - overlap)
    assert not bounds or bounds[-1][2] == frames


def test_sections_are_texts_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {
            "prompt": "rock",
            "sections": [{"prompt": "intro", "seconds": 20}, {"prompt": "drums enter", "seconds": 25.5}],
        },
        {"sections": ["5: calm", "30:no: loud"], "tempo": 90, "duration": 60},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    rock, other = read_prompts(str(path))
    assert rock.sections == ("0:intro", "20:drums enter") and rock.duration == 45.5
    assert rock.section_texts == [(0, "rock, intro"), (20, "rock, drums enter")]
    assert other.section_texts == [(0, "calm, 90 bpm"), (5, "calm, 90 bpm"), (30, "no: loud, 90 bpm")]
    assert (rock.text, other.text) == ("rock", "calm, 90 bpm")


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (["drums"], "section 1 should be its start in seconds and a text, such as 30:drums enter"),
        (["0:a", "0.5:b"], "section 2 should start 1 s or more after the one before it"),
        (["-1:a"], "section 1 should start between 0 and 3600 s"),
        ([{"prompt": "a"}, {"prompt": "b"}], "section 2 should have a start, or the one before it its seconds"),
        (
            [{"prompt": "a", "seconds": 20}, {"prompt": "b", "start": 30}],
            "section 2 starts at 30 s, and the one before",
        ),
        ([{"prompt": "a", "length": 20}], "section 1 has no field length, but prompt, and start or seconds"),
        ([{"start": 20}], "section 1 should have a prompt"),
        ([{"prompt": "a", "seconds": "x"}, "3:b"], "section 1 should have a number as seconds"),
        ([3], "string"),
    ],
)
def test_wrong_sections_are_named_with_what_is_wrong(sections: list[Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(Prompt, {"prompt": "x", "sections": sections})
    assert problem in refused.value.found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "start", "seconds", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(sections=JSON | st.lists(JSON, max_size=3))
def test_whatever_stands_for_sections_is_accepted_or_named(sections: Any) -> None:
    try:
        prompt = validate(Prompt, {"prompt": "x", "sections": sections})
    except ConfigError:
        return
    assert len(prompt.section_texts) >= len(prompt.sections)


def test_pieces_record_their_sections_and_others_stay_as_they_are(request_for: Any, tmp_path: Path) -> None:
    control = ControlSettings(sections=("0.5:intro", "1.5:drums enter"))
    settings = {"overlap": 0.3}
    shared = {"prompts": ["rock"], "duration": 2.0, "settings": settings, "save_codes": True}
    [piece] = render(request_for("sections", control=control, **shared))
    [plain] = render(request_for("plain", **shared))
    assert sidecar_of(piece.wav)["sections"] == [
        {"start": 0.0, "prompt": "rock"},
        {"start": 0.5, "prompt": "rock, intro"},
        {"start": 1.5, "prompt": "rock, drums enter"},
    ]
    assert "from 1.5 s: rock, drums enter" in (tmp_path / "sections" / "index.html").read_text(encoding="utf-8")
    assert sidecar_of(piece.wav)["prompt"] == "rock" and sidecar_of(plain.wav)["sections"] is None
    assert np.array_equal(codes_of(piece.wav)[:, :22], codes_of(plain.wav)[:, :22])
    assert not np.array_equal(codes_of(piece.wav), codes_of(plain.wav))


def test_a_section_behind_the_end_is_refused(request_for: Any) -> None:
    with pytest.raises(ConfigError, match=r"a section starts at 30 s, and the sample lasts 0\.6 s") as refused:
        render(request_for(prompts=[Prompt(prompt="x", sections=["30:drums"])]))
    assert "longer duration" in refused.value.next_step
