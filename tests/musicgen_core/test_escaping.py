from __future__ import annotations

import html
import io
import logging
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from musicgen_core.errors import MusicgenError
from musicgen_core.escaping import (
    LABEL_CHARACTERS,
    markdown_code,
    markdown_link,
    markdown_text,
    one_line,
    print_logs_safely,
    printable,
)
from tests.hostile import ALL, ESCAPES, MARKDOWN, TEXTS, TRACKER, is_inert_markdown, is_inert_terminal_text

any_text = st.text(st.one_of(st.sampled_from("\\`*_[]<>|#~$!&@{}:.-+=/)( 1www\n\x1b\u202e"), st.characters()))


def rendered(markdown: str) -> str:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return str(parser.render(markdown))


@given(any_text)
def test_markdown_shows_any_text_literally(text: str) -> None:
    shown = html.escape(one_line(text, 10**6), quote=False).replace('"', "&quot;")
    assert rendered(markdown_text(text)) == (f"<p>{shown}</p>\n" if shown else "")
    assert is_inert_markdown(f"a {markdown_text(text)} b")


@given(any_text)
@example(f"\\|![]({TRACKER})")
def test_a_table_keeps_its_cells_whatever_is_in_them(text: str) -> None:
    cells = (f"x{markdown_text(text)}", markdown_code(f"x{text}"))
    # Where a backslash stands before `\\|`, renderers differ in whether it ends the cell.
    assert not any(re.search(r"(?<!\\)(\\\\)*\|", cell) for cell in cells)
    table = rendered(f"| a | b | c |\n| --- | --- | --- |\n| {cells[0]} | {cells[1]} | last |\n")
    assert table.count("<td>") == 3 and "<td>last</td>" in table


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_texts_are_inert(text: str) -> None:
    assert is_inert_markdown(markdown_text(text)) and is_inert_markdown(markdown_code(text))
    assert is_inert_terminal_text(printable(text)) and is_inert_terminal_text(one_line(text))


def test_the_checks_of_this_file_detect_live_markup() -> None:
    assert not is_inert_markdown(MARKDOWN) and not is_inert_markdown("see http://example.com")
    assert not is_inert_terminal_text(ESCAPES)


def test_escapes_are_shown_and_the_text_around_them_is_kept() -> None:
    assert printable("a\x1b[31m\u202eb\r\n\tc") == "a\\x1b[31m\\u202eb\\r\n\tc"
    assert printable("\udcff.wav") == "\\udcff.wav"


@pytest.mark.parametrize(
    "text", ["静かな琴", "عود هادئ\u200f", "می\u200cخواهم", "👩\u200d🎤", "C major, 80 bpm (live)"]
)
def test_scripts_and_emoji_stay_as_they_are(text: str) -> None:
    assert printable(text) == one_line(text) == text == markdown_text(text)


def test_labels_are_shortened() -> None:
    label = one_line("word " * 3000)
    assert len(label) == LABEL_CHARACTERS and label.endswith("…")


def test_only_a_plain_address_becomes_a_link() -> None:
    url = "https://wandb.ai/me/musicgen-flows/runs/abc123"
    assert markdown_link("WandB run", url) == f"[WandB run]({url})"
    for other in ("javascript:alert(1)", f"{url}) ![](http://x", "https://a b", f"{url}\n"):
        assert is_inert_markdown(markdown_link("WandB run", other))


@given(text=st.text(st.sampled_from("_a/. *[]()`é"), min_size=1, max_size=12))
def test_a_links_text_is_literal(text: str) -> None:
    (block,) = [token for token in MarkdownIt().parse(f"x {markdown_link(text, 'http://a/b')}") if token.children]
    inner = [(token.type, token.content) for token in block.children or []]
    kinds = [kind for kind, _ in inner]
    assert set(kinds) <= {"text", "text_special", "link_open", "link_close"}
    shown = "".join(content for _, content in inner[kinds.index("link_open") : kinds.index("link_close")])
    assert shown == " ".join(text.split())


def test_a_links_text_has_no_backslash_without_need() -> None:
    assert markdown_link("/a_/b_c_/d.wav", "http://x") == "[/a_/b_c_/d.wav](http://x)"


def test_every_log_line_is_printable() -> None:
    before, stream = logging.getLogRecordFactory(), io.StringIO()
    logger, handler = logging.getLogger("musicgen_core.test_escaping"), logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        print_logs_safely()
        logger.warning("%s: rejected", ALL)
    finally:
        logging.setLogRecordFactory(before)
        logger.removeHandler(handler)
    assert is_inert_terminal_text(stream.getvalue()) and "rejected" in stream.getvalue()


def test_an_error_is_printable() -> None:
    assert is_inert_terminal_text(str(MusicgenError(f"{Path(ESCAPES)} is damaged", "Copy it again")))
