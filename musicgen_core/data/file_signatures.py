"""Recognise files that aren't audio or archives despite their names, by their first bytes."""

from __future__ import annotations

import re

from musicgen_core.language import message

_SEVEN_ZIP, _RAR = b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL)
_REPACK = message("Unpack it, and pack the files as a zip or tar")


def recognise(head: bytes) -> tuple[str, str] | None:
    """Return (kind of file, advice) for the first bytes of a known foreign kind; None for any other."""
    if head.startswith(_SEVEN_ZIP):
        return message("it is a 7-Zip archive, which is not supported"), _REPACK
    if head.startswith(_RAR):
        return message("it is a RAR archive, which is not supported"), _REPACK
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            message("it is a Git LFS pointer, not the file itself"),
            message("Run git lfs pull where it comes from"),
        )
    if head.startswith(b"/annex/objects/"):
        return (
            message("it is a git-annex pointer, not the file itself"),
            message("Run git annex get where it comes from"),
        )
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return (
            message("it is an HTML page, such as one that asks for a login or tells of a limit"),
            message("Download the file again, logged in"),
        )
    return None
