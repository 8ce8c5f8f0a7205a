"""Ctrl-C in a terminal: it ends the command's flow runs as Cancelled, not Crashed.

Only a command of the terminal says so, by `interruptible`. In every other process, such as that of a worker, the same
signal is nobody's decision about the run: there it stays a crash, after which the run starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

INTERRUPTED = "interrupted in the terminal"


@dataclass
class TerminalCommand:
    """A command that runs in a terminal.

    Attributes:
        again: the command that continues it, as shell text; empty if it would begin from scratch.
        is_interrupted: whether a run of it was ended by Ctrl-C.
    """

    again: str = ""
    is_interrupted: bool = False

    def ended(self, text: str = INTERRUPTED, start: str = "") -> str:
        """Note that a run of this command was interrupted, and return the message of the run's final state.

        Args:
            text: what happened.
            start: where the next command continues, such as ` from there`.
        """
        self.is_interrupted = True
        return f"{text}; to continue{start}: {self.again}" if self.again else text


_command: ContextVar[TerminalCommand | None] = ContextVar("terminal_command", default=None)


def terminal_command() -> TerminalCommand | None:
    """Return the command that runs in this context; None: Ctrl-C is a crash here."""
    return _command.get()


@contextmanager
def interruptible(again: str) -> Iterator[TerminalCommand]:
    """Let Ctrl-C end flow runs within the block as Cancelled. `again`: see `TerminalCommand`."""
    token = _command.set(command := TerminalCommand(again))
    try:
        yield command
    finally:
        _command.reset(token)
