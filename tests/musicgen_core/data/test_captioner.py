"""A clip's description, from settings, metadata and sidecars, and the remarks about it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import Captioner, load_captions
from musicgen_core.data.members import Sidecar
from tests.musicgen_core.data.metadata_lines import FILE, captions_of, clip

SIDECARS = [
    Sidecar(".json", '{"description": "beside", "genre": "funk"}'),
    Sidecar(".txt", "beside\r\n"),
]


@pytest.mark.parametrize("beside", SIDECARS)
def test_precedence_is_caption_then_metadata_then_sidecar(beside: Sidecar) -> None:
    metadata = captions_of(clip("a.wav", "entry"), clip("b.wav", None))
    captioner = Captioner(TokenizeSettings(), metadata)
    assert captioner.describe("a.wav", beside) == captioner.describe("a.wav") == "entry"
    assert captioner.describe("b.wav", beside) == captioner.describe("c.wav", beside) == "beside"
    assert captioner.describe("b.wav") is captioner.describe("c.wav") is None
    assert Captioner(TokenizeSettings(), None).describe("a.wav", beside) == "beside"
    always = Captioner(TokenizeSettings(caption="always"), metadata)
    assert {always.describe(name, beside) for name in ("a.wav", "b.wav", "c.wav")} == {"always"}
    assert captioner.uses_sidecars and not always.uses_sidecars


def test_the_template_applies_to_metadata_and_json_sidecars() -> None:
    settings = TokenizeSettings(caption_template="all {genre}")
    metadata = captions_of({"path": "a.wav", "genre": "dub"}, clip("b.wav", "own"), template=settings.caption_template)
    captioner = Captioner(settings, metadata)
    assert captioner.describe("a.wav", SIDECARS[0]) == "all dub"
    assert captioner.describe("b.wav", SIDECARS[0]) == "own"
    assert captioner.describe("c.wav", SIDECARS[0]) == "all funk"
    assert captioner.describe("c.wav", Sidecar(".json", '{"description": "beside"}')) == "beside"
    assert captioner.describe("c.wav", SIDECARS[1]) == "beside"


@pytest.mark.parametrize(
    ("values", "described"),
    [({}, "TOK, entry"), ({"caption": "always"}, "TOK, always"), ({"caption_template": "a {g}"}, "TOK, a dub")],
)
def test_the_prefix_precedes_descriptions_or_stands_alone(values: dict[str, str], described: str) -> None:
    settings = TokenizeSettings(caption_prefix="TOK", **values)
    FILE.write_bytes(b'{"path": "a.wav", "description": "entry", "g": "dub"}')
    captioner = Captioner(settings, load_captions(FILE, settings))
    assert captioner.describe("a.wav") == described
    assert captioner.describe("b.wav") == ("TOK, always" if "caption" in values else "TOK")
    assert captioner.describe("b.wav", SIDECARS[1]) == ("TOK, always" if "caption" in values else "TOK, beside")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.builds(Sidecar, st.sampled_from([".json", ".txt"]), st.text(st.characters())), max_size=2),
    st.none() | st.text(st.characters(), min_size=1),
)
def test_a_description_is_storable_text_or_none(sidecars: list[Sidecar], prefix: str | None) -> None:
    text = Captioner(TokenizeSettings(caption_prefix=prefix)).describe("a.wav", *sidecars)
    assert text is None or (text.encode() and text == text.strip())


@pytest.mark.parametrize("empty", ["{}", '{"description": null}', "[1]", ""])
def test_json_without_a_description_does_not_hide_the_text(empty: str) -> None:
    beside = (Sidecar(".json", empty), Sidecar(".txt", "calm piano"))
    assert Captioner().describe("a.wav", *beside) == "calm piano"
    assert Captioner().remark("a.wav", *beside) is None


def test_too_long_descriptions_are_cut_at_a_word_and_reported() -> None:
    captioner = Captioner(TokenizeSettings(caption_prefix="TOK"))
    text = captioner.describe("a.wav", beside := Sidecar(".txt", "verse and chorus " * 600))
    assert text is not None and 1980 < len(text) <= 2000 and text.startswith("TOK, verse and")
    assert text.rsplit(maxsplit=1)[1] in ("verse", "and", "chorus")
    assert captioner.remark("a.wav", beside) == f"its description of 10,204 characters was cut to {len(text):,}"
    assert len(Captioner().describe("a.wav", Sidecar(".txt", "静" * 9000)) or "") == 2000
    assert Captioner().remark("a.wav", Sidecar(".txt", "x" * 2000)) is None


def test_an_unusable_sidecar_is_reported_where_it_matters() -> None:
    unreadable, broken = Sidecar(".txt", "", "is neither UTF-8 nor …"), Sidecar(".json", "{broken")
    metadata = captions_of(clip("described.wav", "entry"))
    captioner = Captioner(TokenizeSettings(), metadata)
    assert captioner.remark("a.wav", unreadable) == "the .txt beside it is neither UTF-8 nor …"
    assert captioner.remark("a.wav", broken) == "the .json beside it is not a JSON object"
    assert captioner.remark("described.wav", unreadable) is None
    wrong = Sidecar(".json", '{"description": "calm", "tempo": "fast"}')
    assert 'in the .json beside it tempo is "fast", and should be a number' in (captioner.remark("a.wav", wrong) or "")
    assert captioner.remark("described.wav", wrong) is None
    assert Captioner(TokenizeSettings(caption="all")).remark("a.wav", unreadable) is None
