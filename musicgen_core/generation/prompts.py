"""Prompts and files of prompts."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from musicgen_core import storage
from musicgen_core.config import PromptText
from musicgen_core.data.sentences import extended
from musicgen_core.errors import ConfigError, reason_of
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.seam_settings import RedoneStretch, SeamSettings
from musicgen_core.generation.sections import Section, parse_section, seconds_of
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import split_adapters
from musicgen_core.settings import LONGEST_SECONDS, validate
from musicgen_core.texts import decode_text
from musicgen_core.wording import counted

_SHOWN = 5


def _adapter_texts(given: Any) -> Any:
    return split_adapters(given) if given is None or isinstance(given, str | list) else given


class Prompt(ControlSettings):
    """A text to make music from; a field that is None or empty has the value of the settings."""

    prompt: PromptText = Field(description="the text")
    duration: float | None = Field(None, gt=0, le=LONGEST_SECONDS, description="seconds of music")
    seed: int | None = Field(None, ge=0, lt=2**32, description="the seed of its random stream")
    continue_from: str | None = Field(None, description="a recording to continue")
    melody: str | None = Field(None, description="a recording whose melody it follows")
    loop: bool | None = Field(None, description="whether it is a seamless loop")
    redo: RedoneStretch = Field(None, description="the seconds of the recording that are made again, such as 8-14")
    adapter: Annotated[tuple[str, ...], BeforeValidator(_adapter_texts)] = Field(
        (), description="adapters with strengths, or base; empty: those of the command"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_prompt(cls, given: Any) -> Any:
        """Sections need no prompt for the whole, and their lengths are the duration; nor does a sample's stretch."""
        if isinstance(given, dict) and given.get("sections"):
            return {"prompt": "", "duration": seconds_of(given["sections"]), **given}
        if isinstance(given, dict) and given.get("redo") and given.get("continue_from"):
            return {"prompt": "", **given}
        return given

    def with_defaults(self, defaults: ControlSettings) -> Prompt:
        """Return the prompt with these values where it has none of its own."""
        own = {name for name in ControlSettings.model_fields if getattr(self, name) not in (None, ())}
        return self.model_copy(update={name: value for name, value in defaults if name not in own})

    def with_seams(self, defaults: SeamSettings, continue_from: str | None) -> Prompt:
        """Return the prompt with these values of its loop, stretch and recording where it has none of its own."""
        return self.model_copy(
            update={
                "loop": (defaults.loop and not self.redo) if self.loop is None else self.loop,
                "redo": self.redo or (None if self.loop else defaults.redo),
                "continue_from": self.continue_from or continue_from,
            }
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are added to the text, under their names in captions; those that are None aren't."""
        return {"tempo": self.tempo, "key": self.key, "instruments": list(self.instruments) or None}

    @property
    def is_composed(self) -> bool:
        """Whether the model reads other texts than the prompt."""
        return bool(self.sections) or any(self.fields.values())

    @property
    def text(self) -> str:
        """The prompt with the fields, in the words of captions. Without a prompt, the text of the first section."""
        if self.sections and not self.prompt:
            return self._text_of(parse_section(self.sections[0]))
        return extended(self.prompt, self.fields)

    @property
    def section_texts(self) -> list[Section]:
        """The sections from the beginning on, each with the text that the model reads; none: it reads one text."""
        sections = [parse_section(section) for section in self.sections]
        before = [Section(0.0, self.text)] if sections and sections[0].start > 0 else []
        return [*before, *(Section(section.start, self._text_of(section)) for section in sections)]

    def _text_of(self, section: Section) -> str:
        prompt = self.prompt.rstrip(" .,")
        is_whole = prompt.lower() in section.prompt.lower()
        return extended(section.prompt if is_whole else f"{prompt}, {section.prompt}", self.fields)


def read_prompts(path: str) -> list[Prompt]:
    """Read prompts from a file, one per line; empty lines are skipped.

    A line of `*.jsonl` is a JSON string or an object with the fields of `Prompt`; of any other file it is the text.

    Raises:
        ConfigError: the file is missing, holds no prompts, or has invalid lines, all of which are named.
    """
    try:
        text = decode_text(storage.as_path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            message("the prompts file {path} can't be read ({reason})", path=path, reason=reason_of(error)),
            message("Check the path"),
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            message("the prompts file {path} can't be read ({error})", path=path, error=error),
            message("Save it as UTF-8"),
        ) from error
    # Not splitlines, which also splits at characters that a JSON string may contain.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(message("the prompts file {path} holds no prompts", path=path), message("Write one a line"))
    is_json = PurePath(path).suffix.lower() == ".jsonl"
    prompts, problems = [], []
    for number, line in lines:
        origin = f"line {number}"
        try:
            fields = _parse(line, origin) if is_json else {"prompt": line}
            prompts.append(validate(Prompt, fields, f"the fields of {origin}"))
        except ConfigError as error:
            problems.append(error.found)
    if problems:
        more = f"; and {counted(len(problems) - _SHOWN, 'more line')}" if len(problems) > _SHOWN else ""
        raise ConfigError(
            message(
                "the prompts file {path} is wrong: {names}{more}",
                path=path,
                names="; ".join(problems[:_SHOWN]),
                more=more,
            ),
            message('Write lines such as {"prompt": "slow jazz", "duration": 20, "seed": 1}'),
        )
    return prompts


def _parse(line: str, origin: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ConfigError(message("{origin} is no JSON ({error})", origin=origin, error=error)) from error
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise ConfigError(message("{origin} is neither a text nor an object", origin=origin))
    return value
