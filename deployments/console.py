"""What a person sees in the terminal while flows run: a progress bar a stage, and a table at the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from musicgen_core.escaping import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from tasks.progress import Update


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
"""Of a table's first column: a long name there would leave no room for what is said of it."""
_TITLES = {
    "fetch": "Download, MB",
    "tokenize": "Archives",
    "train": "Training steps",
    "evaluate": "Evaluation",
    "generate": "Music",
}


class Bars:
    """Draws updates of running tasks; called from any of their threads."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}

    def __call__(self, update: Update) -> None:
        with self._lock:
            if update.stage not in self._bars:
                self._bars[update.stage] = self._progress.add_task(_TITLES[update.stage], total=None, text="")
            bar = self._bars[update.stage]
            self._progress.update(bar, completed=update.done, text=update.text)
            if update.total is not None:
                self._progress.update(bar, total=update.total)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    show_core_messages()
    with Progress(*columns, console=output, refresh_per_second=4) as progress:
        yield Bars(progress)


class _CoreMessages(logging.Handler):
    """Shows what the core says above the progress bars: few lines, all of them worth reading."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        output.print(record.getMessage(), style=style, soft_wrap=True)  # paths and commands in it can be copied


def show_core_messages() -> None:
    logger = logging.getLogger("musicgen_core")
    if not any(isinstance(handler, _CoreMessages) for handler in logger.handlers):
        logger.addHandler(_CoreMessages(logging.INFO))
        logger.setLevel(logging.INFO)


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, title_style="bold")
    table.add_column(no_wrap=True, max_width=LABEL_WIDTH)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    output.print(table)
