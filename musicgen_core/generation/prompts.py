"""What to render: texts, and what each may ask for itself."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from musicgen_core import storage
from musicgen_core.config import LONGEST_SECONDS, Settings, validate
from musicgen_core.errors import ConfigError

_SHOWN = 5


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text", "should be whole characters: half of a surrogate pair is in it") from error
    return text


class Prompt(Settings):
    """A text to make music from; what is None is as the settings say."""

    prompt: Annotated[str, AfterValidator(_check_text)] = Field(description="the text")
    duration: float | None = Field(None, gt=0, le=LONGEST_SECONDS, description="seconds of music")
    seed: int | None = Field(None, ge=0, lt=2**32, description="the seed of its random stream")
    continue_from: str | None = Field(None, description="a wav to go on from")


def read_prompts(path: str) -> list[Prompt]:
    """Prompts from a file, one a line; empty lines are left out.

    A line of `*.jsonl` is a JSON string or an object with the fields of `Prompt`; of any other file it is the text.

    Raises:
        ConfigError: the file is missing or holds none, or lines in it are wrong; all of them are named.
    """
    try:
        text = storage.as_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts file {path} can't be read ({error})", "Check the path") from error
    # Not splitlines, which takes characters for ends of lines that JSON may have in a string.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"the prompts file {path} holds no prompts", "Write one a line")
    if PurePath(path).suffix.lower() != ".jsonl":
        return [Prompt(prompt=line) for _, line in lines]
    prompts, problems = [], []
    for number, line in lines:
        try:
            prompts.append(_parse(line, f"line {number}"))
        except ConfigError as error:
            problems.append(error.found)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more lines" if len(problems) > _SHOWN else ""
        raise ConfigError(
            f"the prompts file {path} is wrong: {'; '.join(problems[:_SHOWN])}{more}",
            'Write lines such as {"prompt": "slow jazz", "duration": 20, "seed": 1}',
        )
    return prompts


def _parse(line: str, origin: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{origin} is no JSON ({error})") from error
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise ConfigError(f"{origin} is neither a text nor an object")
    return validate(Prompt, value, f"the fields of {origin}")
