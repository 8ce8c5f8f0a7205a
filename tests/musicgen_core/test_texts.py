from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.errors import ConfigError
from musicgen_core.texts import check_encoding, decode_name, encoding_of, legible

JAPANESE = ["夜の曲.wav", "カラオケ/花火.wav", "ﾋﾟｱﾉ.wav", "々々.wav"]
EUROPEAN = ["Ünter.wav", "Schön/größer.wav", "café.wav", "señor.wav", "Ægir.wav", "Français déjà.wav"]


@pytest.mark.parametrize("names", [JAPANESE, EUROPEAN, [unicodedata.normalize("NFD", n) for n in EUROPEAN], ["a.wav"]])
def test_utf8_is_known_without_a_flag(names: list[str]) -> None:
    raw = [name.encode() for name in names]
    assert encoding_of(raw) == "utf-8"
    assert [decode_name(name, "utf-8") for name in raw] == names


@pytest.mark.parametrize("name", JAPANESE)
def test_names_of_a_japanese_windows_are_recognised(name: str) -> None:
    assert encoding_of([name.encode("cp932")]) == "cp932"
    assert encoding_of([n.encode("cp932") for n in [*JAPANESE, "track 1.wav"]]) == "cp932"


@pytest.mark.parametrize("name", EUROPEAN)
def test_names_of_dos_are_known_one_by_one_and_together(name: str) -> None:
    assert encoding_of([name.encode("cp437")]) == "cp437"
    assert encoding_of([n.encode("cp437") for n in EUROPEAN]) == "cp437"


def test_one_name_that_is_not_utf8_changes_the_guess_for_all() -> None:
    assert encoding_of(["é.wav".encode(), "é.wav".encode("cp437")]) == "cp437"


def test_one_chance_likeness_does_not_make_an_archive_japanese() -> None:
    names = [name.encode("cp437") for name in ("Schön.wav", "Bär.wav", "größer.wav")]
    assert all(name.decode("cp932") for name in names)
    assert encoding_of([*names, "花火.wav".encode("cp932")]) == "cp437"


@pytest.mark.parametrize("encoding", ["auto", "cp932", "GBK", "latin-1", "utf-16"])
def test_every_encoding_of_python_may_be_asked_for(encoding: str) -> None:
    check_encoding(encoding)


@pytest.mark.parametrize("encoding", ["", "klingon", "hex", "rot13", "a\0b"])
def test_codecs_that_are_no_text_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(ConfigError, match="name_encoding"):
        check_encoding(encoding)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=30), st.sampled_from(["utf-8", "cp932", "cp437", "utf-16", "utf-7", "idna", "unicode_escape"])
)
def test_every_name_can_be_written_whatever_its_bytes(name: bytes, encoding: str) -> None:
    decoded = decode_name(name, encoding)
    assert "\0" not in decoded.encode("utf-8").decode()


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_names_that_can_be_written_stay_as_they_are(name: str) -> None:
    assert legible(name) == name
