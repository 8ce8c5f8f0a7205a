"""Texts of plots: in the user's language if Matplotlib finds a font that has its letters, else in English."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from musicgen_core.language import language, translated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LATIN = "DejaVu Sans"  # Matplotlib's own, which has digits and signs in the usual look
_FONTS = {
    "ja": (
        "Noto Sans CJK JP",
        "Noto Sans JP",
        "Source Han Sans JP",
        "IPAexGothic",
        "IPAPGothic",
        "IPAGothic",
        "TakaoPGothic",
        "TakaoGothic",
        "VL PGothic",
        "VL Gothic",
        "BIZ UDPGothic",
        "Hiragino Sans",
        "Hiragino Kaku Gothic ProN",
        "Yu Gothic",
        "YuGothic",
        "Meiryo",
        "MS Gothic",
    )
}
"""Fonts for languages that Matplotlib's own font can't write, by preference: those that systems usually have"""


def plot_text(text: str) -> str:
    """Return a message in the language in which plots can be written."""
    return translated(text) if _font() else str(text)


def set_fonts(figure: Figure) -> None:
    """Set the fonts of all texts of a figure, some of which are from `plot_text`."""
    from matplotlib.text import Text

    if font := _font():
        for text in figure.findobj(Text):
            text.set_fontfamily([_LATIN, font])


def _font() -> str | None:
    return _found(_FONTS.get(language(), ()))


@cache
def _found(wanted: tuple[str, ...]) -> str | None:
    """Return the first of these fonts that Matplotlib knows."""
    if not wanted:
        return None
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return next((name for name in wanted if name in known), None)
