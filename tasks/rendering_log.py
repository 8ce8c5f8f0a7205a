"""How rendering goes, live: progress, and the music of each prompt to play once it is there."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial

from musicgen_core.escaping import markdown_code, markdown_text
from musicgen_core.generation.request import Rendered, page_of
from musicgen_core.wording import counted
from tasks.artifacts import Artifacts
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
        self._logger.info("rendering %s to %s", counted(prompts, "prompt"), output)
        self._show_progress(0, 1, f"Rendering {counted(prompts, 'prompt')}: reading the model")

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
            self._artifacts.markdown(f"music-{piece.prompt_number + 1}", page, piece.title)

    def show(self) -> None:
        """All that was rendered."""
        pieces = [piece for number in sorted(self._rendered) for piece in self._rendered[number]]
        self._show_progress(1, 1, f"Rendered {counted(len(pieces), 'piece')}")
        rows = [
            {"file": one.wav, "prompt": one.title, "seconds": one.seconds, "played by": one.voice}
            for one in sorted(pieces, key=lambda piece: piece.wav)
        ]
        self._artifacts.table("generated-music", rows, "What was rendered")
        music, taken = sum(one.seconds for one in pieces), time.monotonic() - self._started
        self._logger.info(
            "rendered %s, %.1f s of music in %.0f s: %s", counted(len(pieces), "piece"), music, taken, page_of(pieces)
        )

    def _show_progress(self, done: int, total: int, text: str) -> None:
        self._artifacts.progress("rendering", done, total, text)


def _page(pieces: list[Rendered], each: int) -> str:
    """The pieces of one prompt, to play; `each` in the end."""
    parts = [markdown_text(pieces[0].title)]
    for piece in pieces:
        played = longest_seconds(each)
        beginning = f", of which the first {played:.1f} s play here" if piece.seconds > played else ""
        parts.append(f"**{piece.voice}** · {piece.seconds:.1f} s{beginning} · {markdown_code(piece.wav)}")
        parts.append(player(piece.wav, of=each))
    return "\n\n".join(parts)
