"""The user's language: English, or Japanese if requested.

`message("…")` is a translatable text. As a string it is English, the language of logs and of the Prefect UI.
`translated` returns it in the user's language, for the command line and this project's pages. `say("…")` does both.
The catalogue of a language is `translations/LANGUAGE.po`. Babel compiles it in memory on first use, in a tenth of a
second, so there is no compiled file that could be older than its source. Plots are in the user's language if
Matplotlib finds a font that has its letters, else in English.
"""

from __future__ import annotations

import gettext
import io
import os
import re
import string
from collections.abc import Iterable, Mapping
from functools import cache, reduce
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from babel.messages.catalog import Catalog
    from matplotlib.figure import Figure

ENGLISH = "en"
LANGUAGES = (ENGLISH, "ja")
VARIABLE = "MUSICGEN_LANGUAGE"
"""Environment variable with the language; the workers of `up` inherit it"""
_TELLING = 9
"""Letters that a message must have beside its values to be recognised in a stored text"""
_LONGEST = 1000
"""Maximum length of a value of a stored text that may itself be a message"""
_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])")
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
_LATIN = "DejaVu Sans"  # Matplotlib's own, which has digits and signs in the usual look
_FONTS = {
    "ja": (
        "Noto Sans CJK JP",
        "Noto Sans JP",
        "Source Han Sans JP",
        "IPAexGothic",
        "IPAPGothic",
        "IPAGothic",
        "TakaoPGothic",
        "TakaoGothic",
        "VL PGothic",
        "VL Gothic",
        "BIZ UDPGothic",
        "Hiragino Sans",
        "Hiragino Kaku Gothic ProN",
        "Yu Gothic",
        "YuGothic",
        "Meiryo",
        "MS Gothic",
    )
}
"""Fonts for languages that Matplotlib's own font can't write, by preference: those that systems usually have"""


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


def stored_message(text: str, known: Iterable[str] = ()) -> Message:
    """Return a text stored in English, such as in a shard's report, as a message again.

    Its values are found by the patterns of the catalogue, and may be such texts themselves. Where a message names an
    option, the text may name the field of a run form instead. Texts that match no message are returned unchanged.

    Args:
        known: messages to try first, which may have few letters; they are recognised by a value that is a message.
    """
    if (code := language()) == ENGLISH or text in _texts(code):
        return as_message(text, text, {})
    for msgid in known:
        values = _values(match, code) if (match := _pattern(msgid).fullmatch(text)) else {}
        if any(isinstance(value, Message) and value.msgid in _texts(code) for value in values.values()):
            return as_message(text, msgid, values)
    candidates = [_recognised(text, code)]
    for sentence in re.finditer(r"\. ", text):  # between what an error found and what to do about it
        found, next_step = (_recognised(part, code) for part in (text[: sentence.start()], text[sentence.end() :]))
        if found and next_step:
            candidates.append(as_message(text, "{found}. {next_step}", {"found": found, "next_step": next_step}))
    return max(filter(None, candidates), key=_letters, default=as_message(text, text, {}))


def _recognised(text: str, code: str) -> Message | None:
    for form in dict.fromkeys((text, text[:1].lower() + text[1:])):  # it may have become the beginning of a sentence
        if form in _texts(code):
            return as_message(text, form, {})
        for msgid, pattern in _patterns(code):
            if match := pattern.fullmatch(form):
                return as_message(text, msgid, _values(match, code))
    return None


def _letters(text: object) -> int:
    """Return how many letters of a recognised message are its own or those of messages in it."""
    if not isinstance(text, Message):
        return 0
    own = "".join(literal for literal, *_ in string.Formatter().parse(text.msgid)) if text.values else text.msgid
    return len(re.findall("[a-z]", own)) + sum(map(_letters, text.values.values()))


def _values(match: re.Match[str], code: str) -> dict[str, str]:
    return {name: _value(name, text, code) for name, text in match.groupdict().items()}


def _value(name: str, text: str, code: str) -> str:
    """Return a value of a stored text; as a message, if it is one."""
    if name in ("reason", "ending"):
        return stored_message(text)
    if name == "reasons":
        parts = map(stored_message, text.split("; "))
        return reduce(lambda before, part: message("{before}; {text}", before=before, text=part), parts)
    if (count := re.fullmatch(r"([\d,]+) (.+?)s?", text)) and count[2] in _texts(code):
        return as_message(text, "{number:,} {noun}", {"number": _Value(count[1]), "noun": message(count[2])})
    is_telling = _TELLING <= len(re.findall("[a-z]", text)) and len(text) <= _LONGEST
    return (is_telling and _recognised(text, code)) or _Value(text)


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
    values = {
        name: _Value(translated(value)) if isinstance(value, Message) else value for name, value in text.values.items()
    }
    return found.format(**values) if values else found


def say(msgid: str, /, **values: object) -> str:
    """Return a text in the user's language, with its values filled in."""
    return translated(message(msgid, **values))


def language() -> str:
    """Return the user's language: that of `MUSICGEN_LANGUAGE` (`--language`), else of the locale, if it is known."""
    chosen = next((value for name in (VARIABLE, *_LOCALE) if (value := os.environ.get(name))), ENGLISH)
    code = chosen.partition(".")[0].partition("_")[0].lower()
    return code if code in LANGUAGES else ENGLISH


def plot_text(text: str) -> str:
    """Return a message in the language in which plots can be written."""
    return translated(text) if _plot_font(language()) else str(text)


def set_fonts(figure: Figure) -> None:
    """Set the fonts of all texts of a figure, some of which are from `plot_text`."""
    from matplotlib.text import Text

    if font := _plot_font(language()):
        for text in figure.findobj(Text):
            text.set_fontfamily([_LATIN, font])


def _plot_font(code: str) -> str | None:
    """Return the first font for a language that Matplotlib knows; None for English, which needs none."""
    if code not in _FONTS:
        return None
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return next((name for name in _FONTS[code] if name in known), None)


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
        is_variable = bool(names) or _OPTION.search(msgid) is not None
        if letters >= _TELLING and is_variable and len(set(names)) == len(names) and all(map(str.isidentifier, names)):
            found.append((letters, msgid, _pattern(msgid)))
    return [(msgid, pattern) for _, msgid, pattern in sorted(found, key=lambda one: one[0], reverse=True)]


def _pattern(msgid: str) -> re.Pattern[str]:
    whole = ""
    for literal, name, *_ in string.Formatter().parse(msgid):
        is_optional = literal[-1:].isalnum() or (not literal and bool(whole))  # glued to what is before it
        whole += _literal(literal) + (f"(?P<{name}>.{'*' if is_optional else '+'})" if name else "")
    return re.compile(whole, re.DOTALL)


def _literal(text: str) -> str:
    """Return the pattern of a text in which options may have become fields of a form, as `tasks/forms.py` does it."""
    between, options = _OPTION.split(text)[::2], _OPTION.findall(text)
    fields = [option.replace("-", "_") for option in options]
    found = [
        f"(?:--{option}|(?:num_)?{field}s?|{field.removeprefix('no_')} false)"
        for option, field in zip(options, fields, strict=True)
    ]
    return re.escape(between[0]) + "".join(map("".join, zip(found, map(re.escape, between[1:]), strict=True)))
