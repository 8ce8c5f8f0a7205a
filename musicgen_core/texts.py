"""User-provided texts: their encodings, templates, and the maximum length of a text for T5.

Names of members in a zip may be in any encoding, which few zips declare.
"""

from __future__ import annotations

import codecs
import re
import string
from collections.abc import Iterable
from contextlib import suppress

from musicgen_core.errors import ConfigError
from musicgen_core.language import message

MAX_CHARACTERS = 2000
"""Maximum length of a description or prompt: about the 512 tokens that T5 was trained on, in English"""

AUTO = "auto"
"""Setting of an encoding that is to be guessed"""

NUL = "\N{SYMBOL FOR NULL}"
"""Replacement for a NUL byte in a name"""

# Longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KANA = re.compile(r"[\u3041-\u30ff]")
_NOT_JAPANESE = re.compile(r"[^\x00-\x7f\u3000-\u30ff\u3400-\u9fff\uff00-\uffef\u2010-\u2026]")
# Two in a row: single ones occur by chance where accented letters of cp437 are decoded as cp932.
_JAPANESE_NAME = re.compile(r"[\u3005\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]{2}")


def marked_encoding(data: bytes) -> str | None:
    """Return the encoding of a byte order mark, if there is one."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def decode_text(data: bytes) -> str:
    """Decode UTF-8, UTF-16 and UTF-32 with a byte order mark, and Shift JIS (cp932) where the text is Japanese.

    Other encodings, such as cp1252, can't be distinguished, and a wrong guess would go unnoticed.

    Raises:
        UnicodeDecodeError: the text is in none of these encodings.
    """
    if encoding := marked_encoding(data):
        return data.decode(encoding)
    try:
        return data.decode()
    except UnicodeDecodeError:
        with suppress(UnicodeDecodeError):
            text = data.decode("cp932")
            if len(_KANA.findall(text)) >= 2 and not _NOT_JAPANESE.search(text):
                return text
        raise


def shorten(text: str) -> str:
    """Return the text, truncated at the end of a word if it is too long."""
    if len(text) <= MAX_CHARACTERS:
        return text
    beginning = text[: MAX_CHARACTERS + 1]
    words = beginning.rsplit(maxsplit=1)[0] if re.search(r"\s", beginning.strip()) else beginning
    return (words if len(words) > MAX_CHARACTERS // 2 else beginning)[:MAX_CHARACTERS].rstrip()


def template_fields(template: str) -> list[str]:
    """Return the field names of a template: `"{genre}, {bpm} bpm"` → `["genre", "bpm"]`.

    Raises:
        ValueError: the template has no fields, or something other than plain names in braces; the message says what.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"should hold names of fields in braces, such as {{genre}} ({error})") from error
    names = []
    for _, name, spec, conversion in parts:
        if name is None:  # text behind the last placeholder
            continue
        if spec or conversion or not re.fullmatch(r"[^\W\d][\w -]*", name):
            raise ValueError("should hold nothing but names of fields in braces, such as {genre}")
        names.append(name)
    if not names:
        raise ValueError(
            "should name a field in braces, such as {genre}; for the same text everywhere there is caption"
        )
    return list(dict.fromkeys(names))


def check_encoding(encoding: str) -> None:
    """Check the name of an encoding.

    Raises:
        ConfigError: the name is neither `auto` nor an encoding that Python knows.
    """
    try:
        b"a".decode("ascii" if encoding == AUTO else encoding)
    except UnicodeDecodeError:  # a known multi-byte encoding
        pass
    except (LookupError, ValueError) as error:
        raise ConfigError(
            message("the setting name_encoding is {encoding!r}, which is no known encoding", encoding=encoding),
            message("Use auto, or a name such as cp932, gbk or latin-1"),
        ) from error


def encoding_of(names: Iterable[bytes]) -> str:
    """Guess the encoding of names: UTF-8 (macOS, Linux), cp932 (Japanese Windows), or cp437 (DOS)."""
    telling = [name for name in names if not name.isascii()]
    if all(_is(name, "utf-8") for name in telling):
        return "utf-8"
    if all(_is(name, "cp932") for name in telling):
        japanese = sum(bool(_JAPANESE_NAME.search(name.decode("cp932"))) for name in telling)
        if 2 * japanese > len(telling):
            return "cp932"
    return "cp437"


def _is(name: bytes, encoding: str) -> bool:
    try:
        name.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def decode_name(name: bytes, encoding: str) -> str:
    """Decode a name; bytes that are invalid in the encoding become escapes such as `\\x81`."""
    try:
        return legible(name.decode(encoding, "backslashreplace"))
    except UnicodeError:  # a codec without error handlers, such as idna
        return legible(name.decode("ascii", "backslashreplace"))


def legible(name: str) -> str:
    """Return a name that is valid UTF-8 and contains no NUL."""
    return name.encode("utf-8", "backslashreplace").decode().rstrip("\0").replace("\0", NUL)
