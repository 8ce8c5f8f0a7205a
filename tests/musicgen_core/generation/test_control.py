"""What music should have and avoid: negative prompts, and fields that become the words of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.captioning import tempo
from musicgen_core.data.sentences import compose, extended
from musicgen_core.errors import ConfigError
from musicgen_core.generation.control import FASTEST_BPM, SLOWEST_BPM, ControlSettings
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.render import render
from musicgen_core.music_theory import key_names, parse_key
from musicgen_core.settings import validate
from tests.musicgen_core.generation.rendered_files import codes_of, sidecar_of

INSTRUMENTS = st.lists(st.sampled_from(["piano", "strings", "drums", "electric guitar"]), unique=True)
FIELDS = st.fixed_dictionaries(
    {"tempo": st.floats(SLOWEST_BPM, FASTEST_BPM), "key": st.sampled_from(key_names()), "instruments": INSTRUMENTS}
)


@given(fields=FIELDS, text=st.sampled_from(["", "jazz trio", "A slow song."]))
def test_fields_become_words_that_captions_use(fields: dict[str, Any], text: str) -> None:
    prompt = Prompt(prompt=text, **fields)
    captions = {compose({**fields, "mood": ["fast"]}, f"clip {number}") for number in range(30)}
    words = [f"{fields['tempo']:.0f} bpm", fields["key"], *fields["instruments"]]
    for sentence in [prompt.text, *captions]:
        assert sentence is not None and [word for word in words if word not in sentence] == []
    assert prompt.text.startswith(text.rstrip("."))
    if not text:
        assert prompt.text in {compose(fields, f"clip {number}") for number in range(30)}


@given(fields=FIELDS, text=st.sampled_from(["", "jazz trio", "A slow song."]))
def test_words_that_a_prompt_has_already_are_not_added(fields: dict[str, Any], text: str) -> None:
    whole = extended(text, fields)
    assert extended(whole, fields) == whole
    assert Prompt(prompt=whole, **fields).text == whole


def test_a_prompt_without_fields_stays_as_it_is() -> None:
    assert Prompt(prompt=" a prompt, with a comma at the end, ").text == " a prompt, with a comma at the end, "
    assert extended("190 bpm techno", {"tempo": 90}) == "190 bpm techno, 90 bpm"


def test_tempos_are_those_that_captioning_measures() -> None:
    assert (SLOWEST_BPM, FASTEST_BPM) == (tempo.SLOWEST_BPM, tempo.FASTEST_BPM)


@pytest.mark.parametrize(
    ("given_key", "name"),
    [("A minor", "A minor"), ("c# Major", "Db major"), ("B♭ minor", "Bb minor"), ("fb major", "E major"), ("H", None)],
)
def test_keys_have_the_names_of_captions(given_key: str, name: str | None) -> None:
    assert parse_key(given_key) == name
    assert name is None or name in key_names()


def test_wrong_fields_are_named_with_what_is_allowed() -> None:
    wrong = {"tempo": 20, "key": "A mixolydian", "instruments": "a,b,c,d,e"}
    with pytest.raises(ConfigError) as refused:
        validate(ControlSettings, wrong)
    found = refused.value.found
    assert "tempo: input should be greater than or equal to 40, not 20" in found
    assert "key: should be one of C major, Db major" in found and "B minor, not 'A mixolydian'" in found
    assert "instruments: should be at most 4, as in captions, and are 5" in found


def test_a_lines_own_fields_come_before_those_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "jazz", "tempo": 70, "instruments": ["piano", "drums"], "negative_prompt": ""},
        {"prompt": "rock", "key": "c minor", "instruments": "guitar, drums"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    defaults = ControlSettings(tempo=120, key="A minor", negative_prompt="vocals")
    jazz, rock = (prompt.with_defaults(defaults) for prompt in read_prompts(str(path)))
    assert jazz.text == "jazz, piano with drums, 70 bpm, A minor"
    assert rock.text == "rock, guitar with drums, 120 bpm, C minor"
    assert (jazz.negative_prompt, rock.negative_prompt) == ("", "vocals")


def test_samples_are_those_of_the_whole_text_and_record_their_fields(request_for: Any) -> None:
    control = ControlSettings(tempo=90, instruments=("piano",))
    [piece] = render(request_for("fields", prompts=["slow jazz"], control=control, save_codes=True))
    [spelled] = render(request_for("spelled", prompts=["slow jazz, piano, 90 bpm"], save_codes=True))
    assert np.array_equal(codes_of(piece.wav), codes_of(spelled.wav))
    sidecar = sidecar_of(piece.wav)
    assert sidecar["prompt"] == piece.prompt == "slow jazz, piano, 90 bpm"
    assert sidecar["fields"] == {"prompt": "slow jazz", "tempo": 90, "key": None, "instruments": ["piano"]}
    assert sidecar_of(spelled.wav)["fields"] is None


def test_a_negative_prompt_changes_the_sample_and_is_recorded(request_for: Any, tmp_path: Path) -> None:
    prompts = [
        Prompt(prompt="jazz", seed=seed, negative_prompt=negative)
        for seed, negative in ((1, None), (2, ""), (3, "hum"))
    ]
    control = ControlSettings(negative_prompt="drums")
    led = render(request_for("led", prompts=prompts, control=control, save_codes=True))
    free = render(
        request_for("free", prompts=[Prompt(prompt="jazz", seed=seed) for seed in (1, 2, 3)], save_codes=True)
    )
    assert [sidecar_of(piece.wav)["negative_prompt"] for piece in led] == ["drums", None, "hum"]
    assert [sidecar_of(piece.wav)["negative_prompt"] for piece in free] == 3 * [None]
    same = [np.array_equal(codes_of(one.wav), codes_of(other.wav)) for one, other in zip(led, free, strict=True)]
    assert same == [False, True, False]
    assert "away from “drums”" in (tmp_path / "led" / "index.html").read_text(encoding="utf-8")


def test_a_negative_prompt_makes_another_sample_in_the_same_folder(request_for: Any) -> None:
    [plain] = render(request_for(prompts=["jazz"]))
    [led] = render(request_for(prompts=["jazz"], control=ControlSettings(negative_prompt="drums")))
    assert plain.wav != led.wav


def test_a_negative_prompt_without_effect_is_refused(request_for: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no effect at guidance 1") as refused:
        render(request_for(settings={"guidance": 1}, prompts=[Prompt(prompt="jazz", negative_prompt="drums")]))
    assert "--guidance, such as 3" in refused.value.next_step
    assert not (tmp_path / "out").exists()
