"""Names of members as people meant them. A zip's may be in any encoding, and few say which."""

from __future__ import annotations

import re
from collections.abc import Iterable

from musicgen_core.data.members import NUL
from musicgen_core.errors import ConfigError
from musicgen_core.language import message

AUTO = "auto"

# Two in a row: single ones come up by chance where accented letters of cp437 are read as cp932.
_JAPANESE = re.compile(r"[\u3005\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]{2}")


def check_encoding(encoding: str) -> None:
    """
    Raises:
        ConfigError: neither `auto` nor an encoding that Python knows.
    """
    try:
        b"a".decode("ascii" if encoding == AUTO else encoding)
    except UnicodeDecodeError:  # known, and of more than one byte a letter
        pass
    except (LookupError, ValueError) as error:
        raise ConfigError(
            message("the setting name_encoding is {encoding!r}, which is no known encoding", encoding=encoding),
            message("Use auto, or a name such as cp932, gbk or latin-1"),
        ) from error


def encoding_of(names: Iterable[bytes]) -> str:
    """What wrote these names: macOS and Linux (UTF-8), a Japanese Windows (cp932), or DOS and whoever followed it."""
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
    """What doesn't fit the encoding stays visible as `\\x81`."""
    try:
        return legible(name.decode(encoding, "backslashreplace"))
    except UnicodeError:  # a codec that can't replace, such as idna
        return legible(name.decode("ascii", "backslashreplace"))


def legible(name: str) -> str:
    """A name that can be written as UTF-8 and that no NUL cuts short."""
    return name.encode("utf-8", "backslashreplace").decode().rstrip("\0").replace("\0", NUL)
