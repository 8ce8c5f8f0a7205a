"""Texts that do harm if they are interpreted as markup, HTML or terminal control sequences."""

from __future__ import annotations

TRACKER = "http://127.0.0.1:9/pixel.png"
MARKDOWN = f"![]({TRACKER}) [click]({TRACKER}) {TRACKER} www.example.com a@example.com | `b` **c** <{TRACKER}>"
HTML = f"<img src={TRACKER} onerror=alert(1)><script>alert(1)</script> &amp; \"'"
ESCAPES = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202ewav.exe \u2066\x00\r over"
BLOCKS = "# head\n\n- item\n---\n```\ncode: 1"
TEXTS = (MARKDOWN, HTML, ESCAPES, BLOCKS)
ALL = " ".join(TEXTS)
LONG = "long " * 3000


def is_inert_terminal_text(text: str) -> bool:
    return not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in text)


def is_inert_markdown(text: str) -> bool:
    """Return whether a Markdown renderer (CommonMark with tables) produces no active content from a page."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [inner for token in parser.parse(text) for inner in (token, *(token.children or ()))]
    # Renderers with autolinks would also link addresses in the remaining text.
    bare = [found for found in ("http://", "www.", "a@") if found in _without_code_and_escapes(text)]
    return not bare and not {"image", "link_open", "html_inline", "html_block"} & {token.type for token in tokens}


def _without_code_and_escapes(text: str) -> str:
    import re

    return re.sub(r"`[^`]*`", "", re.sub(r"\\[!-/:-@\[-`{-~]", "", text))
