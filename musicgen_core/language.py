"""The user's language: English, or Japanese if requested.

`message("…")` is a translatable text. As a string it is English, the language of logs and of the Prefect UI.
`translated` returns it in the user's language, for the command line and this project's pages. `say("…")` does both.
The catalogue of a language is `translations/LANGUAGE.po`. Babel compiles it in memory on first use, in a tenth of a
second, so there is no compiled file that could be older than its source.
"""

from __future__ import annotations

import gettext
import io
import os
import re
import string
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from babel.messages.catalog import Catalog

ENGLISH = "en"
LANGUAGES = (ENGLISH, "ja")
VARIABLE = "MUSICGEN_LANGUAGE"
"""Environment variable with the language; the workers of `up` inherit it"""
_TELLING = 10
"""Letters that a message must have beside its values to be recognised in a stored text"""
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")


class Message(str):
    """An English text with the msgid and values that its translation is made from.

    Attributes:
        msgid: the text with the names of its values in braces.
        values: the values; those that are messages are translated with it.
    """

    msgid: str
    values: Mapping[str, object]


def message(msgid: str, /, **values: object) -> Message:
    """Return a text with its values filled in."""
    return as_message(msgid.format(**values) if values else msgid, msgid, values)


def as_message(english: str, msgid: str, values: Mapping[str, object]) -> Message:
    """Return a message whose English text isn't simply the msgid with its values, such as a plural."""
    made = Message(english)
    made.msgid, made.values = msgid, values
    return made


def stored_message(text: str) -> Message:
    """Return a text stored in English, such as in a shard's report, as a message again.

    Its values are found by the patterns of the catalogue. A value named `reason` may be such a text itself. Texts
    that match no message are returned unchanged.
    """
    if (code := language()) == ENGLISH or text in _texts(code):
        return as_message(text, text, {})
    for sentence in re.finditer(r"\. ", text):  # between what an error found and what to do about it
        found, next_step = (_recognised(part, code) for part in (text[: sentence.start()], text[sentence.end() :]))
        if found and next_step:
            return as_message(text, "{found}. {next_step}", {"found": found, "next_step": next_step})
    return _recognised(text, code) or as_message(text, text, {})


def _recognised(text: str, code: str) -> Message | None:
    if text in _texts(code):
        return as_message(text, text, {})
    for msgid, pattern in _patterns(code):
        if match := pattern.fullmatch(text):
            values: dict[str, str] = {name: _Value(value) for name, value in match.groupdict().items()}
            if "reason" in values:
                values["reason"] = stored_message(values["reason"])
            return as_message(text, msgid, values)
    return None


class _Value(str):
    """A value of a stored text, which is already formatted."""

    def __format__(self, _spec: str) -> str:
        return str(self)

    __repr__ = str.__str__


def translated(text: str) -> str:
    """Return a message in the user's language; any other text stays as it is."""
    if not isinstance(text, Message):
        return text
    if (current := language()) == ENGLISH or not text:
        return str(text)
    found = _catalogue(current).gettext(text.msgid)
    values = {name: translated(value) if isinstance(value, str) else value for name, value in text.values.items()}
    return found.format(**values) if values else found


def say(msgid: str, /, **values: object) -> str:
    """Return a text in the user's language, with its values filled in."""
    return translated(message(msgid, **values))


def language() -> str:
    """Return the user's language: that of `MUSICGEN_LANGUAGE` (`--language`), else of the locale, if it is known."""
    chosen = next((value for name in (VARIABLE, *_LOCALE) if (value := os.environ.get(name))), ENGLISH)
    code = chosen.partition(".")[0].partition("_")[0].lower()
    return code if code in LANGUAGES else ENGLISH


@cache
def _catalogue(code: str) -> gettext.NullTranslations:
    from babel.messages.mofile import write_mo  # not at the top: English needs none of it

    compiled = io.BytesIO()
    write_mo(compiled, _source(code))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


@cache
def _source(code: str) -> Catalog:
    from babel.messages.pofile import read_po

    with files("musicgen_core").joinpath("translations", f"{code}.po").open("rb") as source:
        return read_po(source, locale=code)


@cache
def _texts(code: str) -> frozenset[str]:
    return frozenset(str(entry.id) for entry in _source(code) if entry.id)


@cache
def _patterns(code: str) -> list[tuple[str, re.Pattern[str]]]:
    """Return patterns of the messages with values, the most specific first, without those of few letters."""
    found = []
    for msgid in _texts(code):
        parts = [] if "%s" in msgid else list(string.Formatter().parse(msgid))
        letters = sum(len(re.findall("[a-z]", literal)) for literal, *_ in parts)
        names = [name for _, name, *_ in parts if name]
        if letters >= _TELLING and names and len(set(names)) == len(names) and all(map(str.isidentifier, names)):
            pattern = "".join(re.escape(literal) + (f"(?P<{name}>.+)" if name else "") for literal, name, *_ in parts)
            found.append((letters, msgid, re.compile(pattern, re.DOTALL)))
    return [(msgid, pattern) for _, msgid, pattern in sorted(found, key=lambda one: one[0], reverse=True)]
