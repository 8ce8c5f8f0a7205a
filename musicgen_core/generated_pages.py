"""Recognise the HTML pages that this project writes, in any language and version; other pages are never replaced."""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath

from musicgen_core import storage
from musicgen_core.language import Message, message

PAGE = "index.html"
"""Name of the page in a folder of music, or of a run's samples."""
_HEAD_CHARACTERS = 2000


@dataclass(frozen=True)
class OwnPage:
    """A kind of page.

    Attributes:
        generator: the content of its `<meta name="generator">`.
        title: English title, which identifies pages of earlier versions, as these have no generator.
    """

    generator: str
    title: Message

    def is_at(self, path: UPath) -> bool:
        """Return whether a file is a page of this kind.

        Raises:
            OSError: the file can't be read.
        """
        try:
            head = storage.read_text(path)[:_HEAD_CHARACTERS]
        except ValueError:
            return False
        return f'<meta name="generator" content="{self.generator}">' in head or f"<title>{self.title}</title>" in head


MUSIC = OwnPage("musicgen-flows: generated music", message("Generated music"))
SAMPLES = OwnPage("musicgen-flows: samples of a training", message("Samples of every epoch"))
REPORT = OwnPage("musicgen-flows: evaluation", message("Evaluation of an adapter"))
