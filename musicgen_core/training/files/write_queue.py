"""Files that are written in order; those that can't be written yet stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from musicgen_core.errors import reason_of
from musicgen_core.training.files.background import retry


@dataclass(frozen=True)
class Write:
    """A file to write.

    Attributes:
        target: its path, for errors.
        write: writes the whole file, or raises.
    """

    target: str
    write: Callable[[], None]


class WriteQueue:
    """Files to write, the oldest first, at most one for each path.

    A file that can't be written remains queued, and with it all that follow, since those may refer to it.

    Attributes:
        obstacle: why the first queued file could not be written.
    """

    def __init__(self) -> None:
        self.obstacle = ""
        self._queued: list[Write] = []

    def __len__(self) -> int:
        return len(self._queued)

    def put(self, *writes: Write) -> None:
        """Queue files, which replace queued ones of the same paths."""
        self._queued = self._with(writes)

    def flush(self, writes: Iterable[Write], delays_s: Sequence[float]) -> bool:
        """Write the queued files and then `writes`, and return whether all are written now.

        An interruption leaves the queue as it was, without `writes`: the trainer undoes the step and saves again.

        Args:
            writes: more files, which replace queued ones of the same paths.
            delays_s: delays before each retry of a file.
        """
        queued = self._with(writes)
        for number, file in enumerate(queued):
            if (error := retry(file.write, delays_s)) is not None:
                self.obstacle = f"{file.target} could not be written ({reason_of(error)})"
                self._queued = queued[number:]
                return False
        self._queued = []
        return True

    def _with(self, writes: Iterable[Write]) -> list[Write]:
        new = list(writes)
        replaced = {file.target for file in new}
        return [file for file in self._queued if file.target not in replaced] + new
