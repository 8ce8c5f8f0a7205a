"""Escaping of untrusted text: prompts, descriptions, names of clips, archives, folders and models.

One function for each output:

| output | function |
| --- | --- |
| terminal, log, plain text of any length | `printable` |
| label, title, caption, cell of a terminal's table | `one_line` |
| Markdown, also in a table's cell | `markdown_text`, `markdown_code`, `markdown_block`, `markdown_link` |
| HTML | `html_page`, whose template escapes every value |
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from typing import Any

LABEL_CHARACTERS = 200
"""Maximum length of labels, in characters"""

# C0 and C1 controls but tab and newline, line separators, bidi embeddings, overrides and isolates, lone surrogates.
# Marks that scripts and emoji need (ZWJ, ZWNJ, LRM, RLM) stay.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# Characters that Markdown (CommonMark, GFM's tables and autolinks, math) interprets anywhere in a line, and at its
# start. An underscore within a word isn't one of them: names such as archive_batch_0001 stay as they are.
_MARKUP = re.compile(r"[\\`*\[\]<>|#~$!&@{}]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=[wW]{3})\.")
# Underscores that may begin and end an emphasis.
_EMPHASIS = re.compile(r"(?<![^\W_])_.*_(?![^\W_])", re.DOTALL)
_BLOCK = re.compile(r"^(?=[-+=])|^\d+(?=[.)](?:\s|$))")
_INCLUDE = re.compile(r'\{% include "([\w/]+\.(?:js|css))" %\}\n')
_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\])?[\w.:/?&=%#~+,;@-]+", re.ASCII)


def printable(text: object) -> str:
    """Return the text with escape sequences, other control characters and bidi overrides made visible: `\\x1b[31m`."""
    return _ACTIVE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(text: object, most: int = LABEL_CHARACTERS) -> str:
    """Return the text printable, on one line, and no longer than `most` characters."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def markdown_text(text: object) -> str:
    """Return the text as one line of Markdown that shows it literally, without markup, HTML, images or links."""
    escaped = _MARKUP.sub(r"\\\g<0>", printable(" ".join(str(text).split())))
    return _BLOCK.sub(r"\g<0>\\", escaped)


def plain_text(markdown: str) -> str:
    """Return the plain text of the output of `markdown_text`."""
    return re.sub(r"\\([^\w\s])", r"\1", markdown)


def markdown_code(text: object) -> str:
    """Return a path or name as a Markdown code span, or as plain text if it contains `|` or a backtick.

    In a code span nothing can be escaped, and `|` ends a table's cell: the rest would be interpreted as Markdown.
    """
    plain = printable(text).replace("\n", " ")
    return markdown_text(plain) if {"`", "|"} & set(plain) else f"`{plain}`"


def markdown_block(text: object) -> str:
    """Return a line as an indented code block, which shows it verbatim and can be copied as a whole."""
    return "    " + printable(text).replace("\n", " ")


def markdown_link(text: str, url: str) -> str:
    """Return a Markdown link, or only its text if the URL is not a plain http(s) one.

    Prefect's V1 UI shows escaping backslashes in link texts, so underscores are escaped only where necessary.
    """
    shown = markdown_text(text)
    if not _URL.fullmatch(url):
        return f"{shown}: {markdown_text(url)}"
    if not _EMPHASIS.search(text):
        shown = shown.replace(r"\_", "_")
    return f"[{shown}]({url})"


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return printable(super().getMessage())


def print_logs_safely() -> None:
    """Make every log record of this process printable, whatever its logger and handler."""
    logging.setLogRecordFactory(_PrintableRecord)


def html_page(package: str, template: str, **values: Any) -> str:
    """Render an HTML template of a package in the user's language, with every value escaped.

    The template's variable `policy` is a Content-Security-Policy that allows only the template's own scripts and
    styles, files beside the page, and data URLs.
    """
    from jinja2 import ChoiceLoader, DictLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from musicgen_core.language import language, say

    source = template_source(package, template)
    environment = Environment(
        loader=ChoiceLoader([DictLoader({template: source}), PackageLoader(package, "")]),  # of what it extends
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    # `file:` too: in some browsers 'self' doesn't match the origin of a page opened from a disk.
    beside = "'self' file: data:"
    policy = (
        f"default-src 'none'; img-src {beside}; media-src {beside}; script-src {csp_hashes(source, 'script')}; "
        f"style-src {csp_hashes(source, 'style')}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(policy=policy, say=say, language=language(), **values)


def template_source(package: str, template: str) -> str:
    """Return a package's HTML template with the files that it includes by `{% include "generation/player.js" %}`.

    These are scripts and styles of `musicgen_core` without template code, in the page itself, which works from a disk.
    """
    from importlib.resources import files

    source = files(package).joinpath(template).read_text("utf-8")
    return _INCLUDE.sub(lambda found: files("musicgen_core").joinpath(found[1]).read_text("utf-8"), source)


def csp_hashes(source: str, element: str) -> str:
    """Return the CSP hash sources of a template's inline elements, which must contain no template code."""
    contents = re.findall(f"<{element}>(.*?)</{element}>", source, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
