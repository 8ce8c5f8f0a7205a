"""Live display of a command: its current stage, and a progress bar for each part whose total is known.

In a terminal both are redrawn four times a second. Elsewhere (a pipe, a log file) each stage is printed as a line.
Progress is printed as a line every five seconds, at growing intervals in long jobs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from deployments.console import output, print_line, show_core_messages
from musicgen_core.escaping import printable
from musicgen_core.language import message, translated
from musicgen_core.stages import Stage, heard_by
from musicgen_core.wording import joined

if TYPE_CHECKING:
    from rich.progress import TaskID

    from tasks.progress import Update

_TITLES = {
    "fetch": message("Download, MB"),
    "caption": message("Archives"),
    "tokenize": message("Archives"),
    "train": message("Training steps"),
    "evaluate": message("Evaluation"),
    "generate": message("Music"),
    "estimate": message("Clips"),
    "push": message("Upload, MB"),
    # The progress artifacts of a watched run, in percent:
    "training-progress": message("training-progress"),
    "tokenizing": message("tokenizing"),
    "rendering": message("rendering"),
    "pushing": message("pushing"),
}
_COLUMNS = (
    TextColumn("{task.description:<14}", table_column=Column(no_wrap=True, max_width=20)),
    BarColumn(bar_width=12),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    # Long names in it are cut off: without a ratio they would take their width from all columns alike.
    TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
)
FRAMES_PER_SECOND = 4
SHOW_SECONDS_AFTER = 5
"""Duration of a stage after which its seconds are shown."""
LINE_SECONDS, LINE_SHARE = 4.5, 0.05
"""Between two lines where there is no terminal, at least: seconds, and a share of the time so far"""
LOOK_SECONDS = 0.5
"""Between two looks at whether what is being done is to be said once more there"""


class Activity:
    """The current stage and the progress bars. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = Progress(*_COLUMNS, console=output, auto_refresh=False, expand=True)
        self._bars: dict[str, TaskID] = {}
        self._text, self._since = "", 0.0
        self._started = time.monotonic()
        self._due, self._line = self._started, ""  # time of the next line; last progress line
        self._spinner = Spinner("dots" if (output.encoding or "").lower().startswith("utf") else "line")

    def say(self, text: str) -> None:
        """Show the stage that begins now. An empty text leaves the progress bars alone."""
        text = translated(text)
        with self._lock:
            if text == self._text:
                return
            self._text, self._since = text, time.monotonic()
            is_shown = bool(text) and self._is_line_due(at_once=True)
        if is_shown:
            print_line(f"{text} …", style="dim")

    def clear(self) -> None:
        """Remove the progress bars, which an interrupted command will not continue."""
        with self._lock:
            for bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars.clear()

    def hear(self, stage: Stage) -> None:
        """Show a stage of the core's work. Its progress counts as the same stage."""
        if stage.total is None:
            self.say(stage.text)
            return
        with self._lock:
            self._since = self._since if self._text.startswith(translated(stage.text)) else time.monotonic()
            self._text = translated(stage.words)

    def __call__(self, update: Update) -> None:
        """Show the progress of a task."""
        title, text = translated(_TITLES.get(update.stage, update.stage)), translated(update.text)
        with self._lock:
            is_new = update.stage not in self._bars
            if is_new:
                self._bars[update.stage] = self._progress.add_task(title, total=None, text="")
            bar = self._bars[update.stage]
            self._progress.update(bar, completed=update.done, text=text)
            if update.total is not None:
                self._progress.update(bar, total=update.total)
            if update.done:  # until then the previous stage is shown
                self._text = ""
            done = f"{update.done:,}"
            if update.total is not None:
                done = message("{done:,} of {total:,}", done=update.done, total=update.total)
            line = self._line = f"{title}: {translated(joined(filter(None, (done, text))))}"
            is_shown = self._is_line_due(at_once=is_new or update.done == update.total)
        if is_shown:
            print_line(line)

    def _is_line_due(self, at_once: bool = False) -> bool:
        """Return whether to print a line now if there is no terminal. The caller holds the lock."""
        now = time.monotonic()
        if output.is_terminal or (now < self._due and not at_once):
            return False
        self._due = now + max(LINE_SECONDS, LINE_SHARE * (now - self._started))
        return True

    def repeat(self) -> None:
        """Print the current stage or progress again if nothing was printed for a while."""
        with self._lock:
            if not self._is_line_due():
                return
            lasted = time.monotonic() - self._since
            line = f"{self._text} … {lasted:.0f} s" if self._text else self._line
        if line:
            print_line(line, style="dim")

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress] if self._bars else []
        if text := self._text:
            now = time.monotonic()
            lasted = f"{now - self._since:.0f} s, " if now - self._since >= SHOW_SECONDS_AFTER else ""
            frame = self._spinner.render(now)
            line = Text(no_wrap=True, overflow="ellipsis").append(str(frame)).append(f" {lasted}{printable(text)} …")
            parts.append(line)
        return Group(*parts)


_shown: list[Activity] = []


@contextmanager
def _repeating(activity: Activity) -> Iterator[None]:
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(LOOK_SECONDS):
            activity.repeat()

    thread = threading.Thread(target=repeat, name="activity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def working(text: str = "") -> Iterator[Activity]:
    """Show the stages of this block, beginning with `text`. Nested blocks share one display."""
    if _shown:
        if text:
            _shown[0].say(text)
        yield _shown[0]
        return
    activity = Activity()
    _shown.append(activity)
    show_core_messages()
    try:
        with ExitStack() as stack:
            stack.enter_context(heard_by(activity.hear))
            if output.is_terminal:
                stack.enter_context(Live(activity, console=output, refresh_per_second=FRAMES_PER_SECOND))
            else:
                stack.enter_context(_repeating(activity))
            activity.say(text)
            try:
                yield activity
            except KeyboardInterrupt:
                activity.clear()
                raise
            finally:
                activity.say("")
    finally:
        _shown.clear()
