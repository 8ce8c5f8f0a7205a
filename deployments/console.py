"""What a person sees in the terminal: text as it is, lines that are never broken, and what was made at the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
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
    """Shows text as it is: neither rich's markup in names nor control characters in them do anything.

    Once nobody reads a pipe that it prints to, the command ends as by Ctrl-C, so that work is saved.
    """

    is_broken = False

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:  # of rich, which would exit with 1
        self.quiet = self.is_broken = True
        discard_stdout()
        os.kill(os.getpid(), signal.SIGTERM)  # also from the thread that draws the progress bars


def discard_stdout() -> None:
    """Send what is still in stdout's buffer nowhere: at exit Python would try to write it once more."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


output = Terminal()
LABEL_WIDTH = 40
"""Of a list's first column: a longer name there moves its own value alone."""


class _CoreMessages(logging.Handler):
    """Shows what the core logs above the progress bars: few lines, all of them worth reading."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "musicgen_core.stages":
            return  # shown beside the bars
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        output.print(_translated_record(record), style=style, soft_wrap=True)  # paths and commands can be copied


def _translated_record(record: logging.LogRecord) -> str:
    """Return a log's message in the user's language."""
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
    """Print names and values, a line each, of which none is broken: paths and commands in them can be copied whole."""
    output.print(translated(title), style="bold")
    names = [printable(translated(name)) for name, _ in rows]
    width = min(LABEL_WIDTH, max(map(cell_len, names), default=0))
    for name, (_, value) in zip(names, rows, strict=True):
        print_line(f"  {name}{' ' * (width - cell_len(name))}  {translated(value)}")


def print_outcome(outcome: Outcome, on_server: bool = False) -> None:
    """Print what was made and what to do next, each place and each command on a line of its own.

    Args:
        on_server: whether a worker of the Prefect server is to do the next steps.
    """
    if outcome.notice:
        print_line(translated(outcome.notice), style="yellow")
    for made in outcome.made:
        print_line(f"{translated(made.thing)}:", style="bold")
        print_line(made.place)
    for number, step in enumerate(outcome.steps):
        text = translated(step.text)
        print_line(say("Or: {step}", step=text) if number else say("Next: {step}", step=text), style="bold")
        print_line(step.command_line(on_server))


def print_line(text: str, style: str | None = None) -> None:
    """Print a line as it is, however narrow the terminal: what breaks it there is not copied."""
    output.print(Text(text), style=style, soft_wrap=True)
