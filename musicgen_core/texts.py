"""User-provided texts: their encodings, and the maximum length of a text for T5."""

from __future__ import annotations

import codecs
import re

MAX_CHARACTERS = 2000
"""Maximum length of a description or prompt: about the 512 tokens that T5 was trained on, in English"""

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
        text = _japanese(data)
        if text is None:
            raise
        return text


def shorten(text: str) -> str:
    """Return the text, truncated at the end of a word if it is too long."""
    if len(text) <= MAX_CHARACTERS:
        return text
    beginning = text[: MAX_CHARACTERS + 1]
    words = beginning.rsplit(maxsplit=1)[0] if re.search(r"\s", beginning.strip()) else beginning
    return (words if len(words) > MAX_CHARACTERS // 2 else beginning)[:MAX_CHARACTERS].rstrip()


def _japanese(data: bytes) -> str | None:
    try:
        text = data.decode("cp932")
    except UnicodeDecodeError:
        return None
    return text if len(_KANA.findall(text)) >= 2 and not _NOT_JAPANESE.search(text) else None
