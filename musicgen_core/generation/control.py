"""Negative prompt, tempo, key, instruments and sections: settings of a rendering, and fields of single prompts.

Imports nothing slow, for the command line's help.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from musicgen_core.config import PromptText, check_prompt
from musicgen_core.data.sentences import MOST_INSTRUMENTS
from musicgen_core.generation.sections import Sections
from musicgen_core.music_theory import key_names, parse_key
from musicgen_core.settings import Settings, names_in

SLOWEST_BPM, FASTEST_BPM = 40, 240
"""Bounds of the tempos that captioning measures"""
MOST_CANDIDATES = 64


def _check_key(text: str | None) -> str | None:
    key = parse_key(text or "")
    if text and key is None:
        raise PydanticCustomError("key", "should be one of {names}", {"names": ", ".join(key_names())})
    return key


def _check_instruments(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > MOST_INSTRUMENTS:
        most = {"most": MOST_INSTRUMENTS, "given": len(names)}
        raise PydanticCustomError("instruments", "should be at most {most}, as in captions, and are {given}", most)
    return names


def _named(given: Any) -> Any:
    names = names_in(() if given is None else given)
    return [name for name in names if name != ""] if isinstance(names, list) else names


class ControlSettings(Settings):
    """Texts and fields beside the prompt that the model is conditioned on, and the number of candidates."""

    model_config = ConfigDict(title="Control")

    negative_prompt: Annotated[str | None, AfterValidator(lambda text: text and check_prompt(text))] = Field(
        None, description="What the music should not be like: the text that guidance leads away from"
    )
    tempo: float | None = Field(
        None, ge=SLOWEST_BPM, le=FASTEST_BPM, description="Beats per minute, added to the prompt as captions say it"
    )
    key: Annotated[str | None, AfterValidator(_check_key)] = Field(
        None, description="Key, such as A minor, added to the prompt as captions say it"
    )
    instruments: Annotated[tuple[PromptText, ...], BeforeValidator(_named), AfterValidator(_check_instruments)] = Field(
        (), description="Up to 4 instruments, added to the prompt as captions say it, such as piano,strings"
    )
    sections: Sections = Field(
        (),
        description="Parts of the music with texts of their own, which are added to the prompt, each with the second "
        "at which it starts: 30:drums enter",
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=MOST_CANDIDATES,
        description="Candidates of each sample, of which the best is kept: tempo and key of the prompt met, near to "
        "the training music, no repetition, no clipping",
    )
