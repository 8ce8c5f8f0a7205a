"""Live progress of generation, and a page that plays the music of all prompts as it is finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath

from musicgen_core import storage
from musicgen_core.escaping import markdown_text
from musicgen_core.generation.request import Rendered, folder_of, page_of
from musicgen_core.stages import Stage
from musicgen_core.wording import counted
from tasks.artifacts import Artifacts
from tasks.previews import longest_seconds, player, thumbnail
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report, run_logger
from tasks.served import file_link
from tasks.studio_link import studio_link

logger = logging.getLogger(__name__)

SHOW_EVERY_SECONDS = 5.0
PAGE_EVERY_SECONDS = 30.0
"""The page of all pieces is sent in full each time, up to 2 MB."""
PLAYED = 32
"""Number of pieces with a player in the UI"""
SOUND_BYTES = 4 * 140_000
"""Sound on the page of all pieces: 10 s each of nine, 3 s each of 32"""


class RenderingLog:
    """Shows generated pieces and progress in the Prefect UI.

    Args:
        output: directory of the wavs.
        prompts: number of prompts.
        pieces: number of pieces in all.
        artifacts: artifacts of the run.
    """

    def __init__(self, output: str, prompts: int, pieces: int, artifacts: Artifacts) -> None:
        self._output, self._pieces_in_all = output, pieces
        self._artifacts = artifacts
        self._logger = run_logger()
        self._showing, self._logging = Pace(SHOW_EVERY_SECONDS), Pace(LOG_EVERY_SECONDS)
        self._paging = Pace(PAGE_EVERY_SECONDS)
        self._rendered: list[Rendered] = []
        self._previews: dict[str, str] = {}
        self._started = time.monotonic()
        self._progress, self._is_in_stage = (0, 1), False
        self._logger.info("rendering %s to %s", counted(prompts, "prompt"), output)
        self._show_progress(0, 1, f"Rendering {counted(prompts, 'prompt')}")

    def begin_stage(self, stage: Stage) -> None:
        """Show the stages other than generating: loading the model, decoding codes to audio."""
        self._is_in_stage = True
        self._show_progress(*self._progress, str(stage))

    def hear(self, done: int, total: int, text: str) -> None:
        """Show progress; the callback `on_progress` of `render`."""
        self._progress = done, total
        report(Update("generate", self._output, done, total, text))
        if self._showing.is_due() or self._is_in_stage:  # otherwise the page would still name a stage that has ended
            self._is_in_stage = False
            self._show_progress(done, total, f"Rendering {text}")
        if self._logging.is_due():
            self._logger.info("rendering %s, %.0f %% of all", text, 100 * done / total)

    def add(self, piece: Rendered) -> None:
        """Add a piece to the page, which is updated at a limited rate; the callback `on_piece` of `render`."""
        self._rendered.append(piece)
        if self._paging.is_due():
            self._show_page()

    def stop(self) -> None:
        """Show the pieces that were finished before generation failed or was cancelled."""
        if self._rendered:
            self._show_page()

    def _show_page(self) -> None:
        text = f"{len(self._rendered):,} of {counted(self._pieces_in_all, 'sample')}"
        self._artifacts.markdown("music", partial(self._page, self._in_order()), f"The music of all prompts: {text}")

    def show(self) -> None:
        """Show all pieces."""
        pieces = self._in_order()
        self._show_progress(1, 1, f"Rendered {counted(len(pieces), 'sample')}")
        rows = [
            {"file": PurePosixPath(one.wav).name, "prompt": one.title, "seconds": one.seconds, "played by": one.voice}
            for one in sorted(pieces, key=lambda piece: piece.wav)
        ]
        self._artifacts.table("generated-music", rows, f"What was rendered, in {folder_of(pieces)}")
        # Again, because the page in the folder is written by now.
        self._artifacts.markdown("music", partial(self._page, pieces), "The music of all prompts")
        music, taken = sum(one.seconds for one in pieces), time.monotonic() - self._started
        self._logger.info(
            "rendered %s, %.1f s of music in %.0f s: %s", counted(len(pieces), "sample"), music, taken, page_of(pieces)
        )

    def _in_order(self) -> list[Rendered]:
        return sorted(self._rendered, key=lambda piece: (piece.prompt_number, piece.wav))

    def _show_progress(self, done: int, total: int, text: str) -> None:
        self._artifacts.progress("rendering", done, total, text)

    def _page(self, pieces: Sequence[Rendered]) -> str:
        """Return the page: the first `PLAYED` pieces under their prompts, with spectrogram and player."""
        parts = [f"All of it, in full: {file_link(page_of(pieces))}"]
        if link := studio_link("Make more in the studio"):
            parts.append(link)
        for _, alike in groupby(pieces[:PLAYED], key=lambda piece: piece.prompt_number):
            group = list(alike)
            parts.append(f"### {markdown_text(group[0].title)}")
            for piece in group:
                parts += [self._line(piece), self._preview(piece.wav)]
        if len(pieces) > PLAYED:
            parts.append(f"and {counted(len(pieces) - PLAYED, 'more sample')} in the same folder")
        return "\n\n".join(part for part in parts if part)

    @property
    def _seconds(self) -> float:
        """Return how many seconds of each piece its player holds."""
        return longest_seconds(min(self._pieces_in_all, PLAYED), SOUND_BYTES)

    def _line(self, piece: Rendered) -> str:
        beginning = f", of which the first {self._seconds:.1f} s play here" if piece.seconds > self._seconds else ""
        wav = file_link(piece.wav, PurePosixPath(piece.wav).name)
        return f"**{piece.voice}** · {piece.seconds:.1f} s{beginning} · {wav}"

    def _preview(self, wav: str) -> str:
        """Return spectrogram and player of a piece, cached; an empty string if the file can't be read."""
        if wav not in self._previews:
            picture, parts = wav.removesuffix(".wav") + ".png", []
            try:
                if storage.as_path(picture).exists():
                    parts.append(thumbnail(picture, f"Spectrogram of {markdown_text(PurePosixPath(wav).stem)}"))
                parts.append(player(wav, self._seconds))
            except Exception as error:  # of any storage: the page must appear without this piece
                logger.debug("%s can't be shown: %s", wav, error)
                return ""
            self._previews[wav] = "\n\n".join(parts)
        return self._previews[wav]
