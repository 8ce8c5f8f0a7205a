"""How rendering goes, live: progress, and each piece of music to play once it is there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tasks.artifacts import Artifacts, code_cell, text_cell
from tasks.previews import longest_seconds, player
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report, run_logger

if TYPE_CHECKING:
    from musicgen_core.generation.render import Rendered

SHOW_EVERY_SECONDS = 5.0
PLAYED = 10
"""Prompts whose music can be played in the UI."""


class RenderingLog:
    """Shows what is rendered.

    Args:
        output: where the wavs go.
        prompts: how many.
        voices: pieces a prompt: one, or two to compare.
        artifacts: of the run.
    """

    def __init__(self, output: str, prompts: int, voices: int, artifacts: Artifacts) -> None:
        self._output, self._pieces, self._voices = output, prompts * voices, voices
        self._artifacts = artifacts
        self._logger = run_logger()
        self._showing, self._logging = Pace(SHOW_EVERY_SECONDS), Pace(LOG_EVERY_SECONDS)
        self._rendered: list[Rendered] = []
        self._show_progress(0, 1, f"Rendering {prompts} prompts: reading the model")

    def hear(self, piece: int, done: int, total: int) -> None:
        """`on_step` of a rendering."""
        steps, of = piece * total + done, self._pieces * total
        text = f"piece {piece + 1} of {self._pieces}"
        report(Update("generate", self._output, steps, of, text))
        if self._showing.is_due():
            self._show_progress(steps, of, f"Rendering {text}")
        if self._logging.is_due():
            self._logger.info("rendering %s, step %d of %d", text, done, total)

    def add(self, piece: Rendered) -> None:
        """`on_piece` of a rendering."""
        self._rendered.append(piece)
        number, rest = divmod(len(self._rendered), self._voices)
        if rest == 0 and number <= PLAYED:
            pieces = self._rendered[-self._voices :]
            self._artifacts.markdown(f"music-{number}", partial(_page, pieces), text_cell(piece.prompt))

    def show(self) -> None:
        """All that was rendered."""
        self._show_progress(1, 1, f"Rendered {len(self._rendered)} pieces")
        rows = [
            {"file": one.wav, "prompt": one.prompt, "seconds": one.seconds, "adapter": one.with_adapter}
            for one in self._rendered
        ]
        self._artifacts.table("generated-music", rows, "What was rendered")

    def _show_progress(self, done: int, total: int, text: str) -> None:
        self._artifacts.progress("rendering", done, total, text)


def _page(pieces: list[Rendered]) -> str:
    """The pieces of one prompt, to play."""
    parts = [text_cell(pieces[0].prompt)]
    for piece in pieces:
        voice = "with the adapter" if piece.with_adapter else "base model"
        beginning = ", of which the beginning plays here" if piece.seconds > longest_seconds(len(pieces)) else ""
        parts.append(f"**{voice}** · {piece.seconds:.1f} s{beginning} · {code_cell(piece.wav)}")
        parts.append(player(piece.wav, of=len(pieces)))
    return "\n\n".join(parts)
