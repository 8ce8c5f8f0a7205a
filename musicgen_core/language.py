"""The user's language: English, or Japanese where it is asked for.

`message("…")` is a text that knows its translation: as a string it is English, as logs and the Prefect UI are, and
`translated` gives it as a person reads it on the command line and on this project's pages. `say("…")` is both at once.
The catalogue of a language is `translations/LANGUAGE.po`. Babel compiles it in memory when it is needed, in a tenth of
a second: so no compiled file can be older than its source.
"""

from __future__ import annotations

import gettext
import io
import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

ENGLISH = "en"
LANGUAGES = (ENGLISH, "ja")
VARIABLE = "MUSICGEN_LANGUAGE"
"""Environment variable of the language; the workers of `up` inherit it."""
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")


class Message(str):
    """A text in English, with what its translation is made from.

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
    """Return a text whose English is more than the msgid with its values, as a plural is."""
    made = Message(english)
    made.msgid, made.values = msgid, values
    return made


def stored_message(text: str) -> Message:
    """Return a text that was stored in English as a message again; one that has values has no translation any more."""
    return as_message(text, text, {})


def translated(text: str) -> str:
    """Return a message in the user's language; any other text stays as it is."""
    if not isinstance(text, Message):
        return text
    if (current := language()) == ENGLISH:
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
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with files("musicgen_core").joinpath("translations", f"{code}.po").open("rb") as source:
        write_mo(compiled, read_po(source, locale=code))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
