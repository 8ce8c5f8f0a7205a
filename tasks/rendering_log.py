"""How rendering goes, live: progress, and the music of each prompt to play once it is there."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial

from musicgen_core.generation.request import Rendered, page_of
from tasks.artifacts import Artifacts, code_cell, text_cell
from tasks.previews import longest_seconds, player
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report, run_logger

SHOW_EVERY_SECONDS = 5.0
PLAYED = 32
"""Prompts whose music can be played in the UI"""


class RenderingLog:
    """Shows what is rendered.

    Args:
        output: where the wavs go.
        prompts: how many.
        pieces_a_prompt: its variations, with each voice.
        artifacts: of the run.
    """

    def __init__(self, output: str, prompts: int, pieces_a_prompt: int, artifacts: Artifacts) -> None:
        self._output, self._each = output, pieces_a_prompt
        self._artifacts = artifacts
        self._logger = run_logger()
        self._showing, self._logging = Pace(SHOW_EVERY_SECONDS), Pace(LOG_EVERY_SECONDS)
        self._rendered: defaultdict[int, list[Rendered]] = defaultdict(list)
        self._started = time.monotonic()
        self._logger.info("rendering %d %s to %s", prompts, "prompt" if prompts == 1 else "prompts", output)
        self._show_progress(0, 1, f"Rendering {prompts} prompts: reading the model")

    def hear(self, done: int, total: int, text: str) -> None:
        """`on_progress` of a rendering."""
        report(Update("generate", self._output, done, total, text))
        if self._showing.is_due():
            self._show_progress(done, total, f"Rendering {text}")
        if self._logging.is_due():
            self._logger.info("rendering %s, %.0f %% of all", text, 100 * done / total)

    def add(self, piece: Rendered) -> None:
        """`on_piece` of a rendering."""
        pieces = self._rendered[piece.prompt_number]
        pieces.append(piece)
        if piece.prompt_number < PLAYED:  # with those that are there: a run may end before the last
            ordered = sorted(pieces, key=lambda piece: piece.wav)
            page = partial(_page, ordered, self._each)
            self._artifacts.markdown(f"music-{piece.prompt_number + 1}", page, text_cell(piece.prompt))

    def show(self) -> None:
        """All that was rendered."""
        pieces = [piece for number in sorted(self._rendered) for piece in self._rendered[number]]
        self._show_progress(1, 1, f"Rendered {len(pieces)} pieces")
        rows = [
            {"file": one.wav, "prompt": one.prompt, "seconds": one.seconds, "adapter": one.with_adapter}
            for one in sorted(pieces, key=lambda piece: piece.wav)
        ]
        self._artifacts.table("generated-music", rows, "What was rendered")
        music, taken = sum(one.seconds for one in pieces), time.monotonic() - self._started
        count = "1 piece" if len(pieces) == 1 else f"{len(pieces)} pieces"
        self._logger.info("rendered %s, %.1f s of music in %.0f s: %s", count, music, taken, page_of(pieces))

    def _show_progress(self, done: int, total: int, text: str) -> None:
        self._artifacts.progress("rendering", done, total, text)


def _page(pieces: list[Rendered], each: int) -> str:
    """The pieces of one prompt, to play; `each` in the end."""
    varied = len({piece.variation for piece in pieces}) > 1
    parts = [text_cell(pieces[0].prompt)]
    for piece in pieces:
        voice = "with the adapter" if piece.with_adapter else "base model"
        voice += f", variation {piece.variation + 1}" if varied else ""
        played = longest_seconds(each)
        beginning = f", of which the first {played:.1f} s play here" if piece.seconds > played else ""
        parts.append(f"**{voice}** · {piece.seconds:.1f} s{beginning} · {code_cell(piece.wav)}")
        parts.append(player(piece.wav, of=each))
    return "\n\n".join(parts)
