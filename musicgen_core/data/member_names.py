"""Decode member names. Those of a zip may be in any encoding, which few zips declare."""

from __future__ import annotations

import re
from collections.abc import Iterable

from musicgen_core.data.members import NUL
from musicgen_core.errors import ConfigError
from musicgen_core.language import message

AUTO = "auto"

# Two in a row: single ones occur by chance where accented letters of cp437 are decoded as cp932.
_JAPANESE = re.compile(r"[\u3005\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]{2}")


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
        japanese = sum(bool(_JAPANESE.search(name.decode("cp932"))) for name in telling)
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
