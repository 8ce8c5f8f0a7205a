"""Terminal output: text shown verbatim and wrapped at words, and the outputs and next steps of a command."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from musicgen_core.escaping import printable
from musicgen_core.language import say, stored_message, translated

if TYPE_CHECKING:
    from tasks.next_steps import Outcome


class Terminal(Console):
    """A console that shows text verbatim: rich's markup and control characters in names have no effect.

    When the reader of its pipe is gone, the command ends as by Ctrl-C, so that work is saved.
    """

    is_broken = False

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:  # overrides rich's, which would exit with 1
        self.quiet = self.is_broken = True
        discard_stdout()
        os.kill(os.getpid(), signal.SIGTERM)  # also from the thread that draws the progress bars


def discard_stdout() -> None:
    """Discard stdout's buffer, which Python would try to write again at exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


output = Terminal()
LABEL_WIDTH = 40
"""Maximum width of a list's first column. A longer name moves only its own value."""
_INDENT = 4
"""Indent of the continuation lines of a long row."""
_COMMANDS = "musicgen-flows|uv|env|prefect|wandb|export|unset|ssh|sudo|pip|journalctl|gcloud"
_PIECES = re.compile(
    rf"\s*(?:(?<![^\s(（「])(?:{_COMMANDS}) .+?(?:[,;:.)]+(?=\s|$)|(?=[。、）」]|\s\(|（|\s[ぁ-ん])|$)"
    r'|\{"[^{}]*\}'
    r"|(?<![^\s（「、。」）])[^\s（「、。」）]*/[^\s（「、。」）]*|\S)"
)
"""Parts of a line to wrap: commands up to a possible end, a punctuation mark or a Japanese particle; JSON; paths and
URLs; otherwise single characters, which `_may_break` joins with their neighbours."""
_CLOSING, _OPENING = ("Pe", "Pf", "Po", "Pd", "Lm"), ("Ps", "Pi")
"""Unicode's general categories of characters that must not begin a line, and of those that must not end one."""


class _CoreMessages(logging.Handler):
    """A log handler that prints the core's messages above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "musicgen_core.stages":
            return  # shown beside the bars
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        print_text(_translated_record(record), style)


def _translated_record(record: logging.LogRecord) -> str:
    """Return the message of a log record in the user's language."""
    if not isinstance(record.args, tuple):
        return record.getMessage()
    words = translated(stored_message(str(record.msg)))
    args = tuple(translated(value) if isinstance(value, str) else value for value in record.args)
    return words % args if args else words


def show_core_messages() -> None:
    logger = logging.getLogger("musicgen_core")
    if not any(isinstance(handler, _CoreMessages) for handler in logger.handlers):
        logger.addHandler(_CoreMessages(logging.INFO))
    logger.setLevel(logging.INFO)


def print_rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one row each."""
    print_text(translated(title), "bold")
    names = [printable(translated(name)) for name, _ in rows]
    width = min(LABEL_WIDTH, max(map(cell_len, names), default=0))
    for name, (_, value) in zip(names, rows, strict=True):
        print_text(f"  {name}{' ' * (width - cell_len(name))}  {translated(value)}", indent=_INDENT)


def print_outcome(outcome: Outcome, on_server: bool = False) -> None:
    """Print the outputs and the next steps, which a worker may do, each location and command on its own line."""
    if outcome.notice:
        print_text(translated(outcome.notice), "yellow")
    for made in outcome.made:
        print_text(f"{translated(made.thing)}:", "bold")
        print_line(made.place)
    for number, step in enumerate(outcome.steps):
        text = translated(step.text)
        print_text(say("Or: {step}", step=text) if number else say("Next: {step}", step=text), "bold")
        print_line(step.command_line(on_server))


def print_line(text: str | Text, style: str | None = None) -> None:
    """Print a path, URL or command without wrapping, so that it can be copied from a narrow terminal."""
    output.print(Text(text) if isinstance(text, str) else text, style=style, soft_wrap=True)


def print_text(text: str | Text, style: str | None = None, indent: int = 0) -> None:
    """Print prose: wrapped at words in a terminal, unwrapped elsewhere.

    Words, and so paths and URLs, are never broken. Nor are commands, as far as their ends can be recognized.
    Continuation lines begin with `indent` blanks.
    """
    for line in _lines(text, output, indent):
        print_line(line, style)


def print_error(text: str) -> None:
    """Print prose to stderr, wrapped like `print_text`."""
    for line in _lines(text, Console(stderr=True)):
        print(line.plain, file=sys.stderr)


def _lines(text: str | Text, console: Console, indent: int = 0) -> Iterator[Text]:
    for line in (Text(printable(text)) if isinstance(text, str) else text).split(allow_blank=True):
        yield from wrapped(line, console.width, indent) if console.is_terminal else [line]


def wrapped(line: Text, width: int, indent: int = 0) -> list[Text]:
    """Break a line between its words, where that is allowed. A word that is longer than the width stays whole."""
    breaks, column = [], 0
    for start, end in _words(line.plain):
        piece = line.plain[start:end]
        column += cell_len(piece)
        if column > width and start:
            breaks.append(end - len(piece.lstrip()))
            column = indent + cell_len(piece.lstrip())
    first, *rest = line.divide(breaks)
    for part in (first, *rest):
        part.rstrip()
    return [first, *(Text(" " * indent).append_text(part) for part in rest)]


def _words(line: str) -> Iterator[tuple[int, int]]:
    """Return the unbreakable parts of a line, each with the blanks before it."""
    start = 0
    for piece in _PIECES.finditer(line):
        end = piece.end()
        if end == len(line) or line[end].isspace() or _may_break(line[end - 1], line[end]):
            yield start, end
            start = end


def _may_break(before: str, after: str) -> bool:
    """Return whether a line may be broken between two characters without a blank: in Japanese, by the kinsoku rules.

    No line begins with a closing mark, a long vowel or a small kana, and none ends with an opening mark.
    """
    if cell_len(before) < 2 and cell_len(after) < 2:
        return False
    is_small = "KANA LETTER SMALL" in unicodedata.name(after, "")
    return not (is_small or unicodedata.category(after) in _CLOSING or unicodedata.category(before) in _OPENING)
