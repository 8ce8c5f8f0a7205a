"""The prompt that a generated piece was made with, from the `.json` beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.sidecars import adapter_entries, strength_of
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import BASE, WeightedAdapter
from musicgen_core.settings import validate


def with_own_texts(
    prompts: Iterable[Prompt], asked: Collection[str], with_adapters: bool
) -> tuple[list[Prompt], str | None]:
    """Return the prompts, of which those that regenerate a stretch and have no text get that of their piece.

    Values of a prompt itself come before those of its piece.

    Args:
        asked: names of fields that the request gives for all prompts, which come before the piece's, too.
        with_adapters: whether a piece's adapters are its prompt's own.

    Returns:
        The prompts, and the name of the first piece's model, if others know it.

    Raises:
        ConfigError: as `described_prompt`.
    """
    found: list[Prompt] = []
    model: str | None = None
    for prompt in prompts:
        if not (prompt.redo and prompt.continue_from) or prompt.prompt or prompt.sections:
            found.append(prompt)
            continue
        described, its_model = described_prompt(prompt.continue_from, with_adapters and not prompt.adapter)
        own = {name: value for name, value in prompt if value not in (None, (), "")}
        left_out = {name: Prompt.model_fields[name].default for name in asked}
        found.append(described.model_copy(update=left_out | own))
        model = model or its_model
    return found, model


def described_prompt(file: str, with_adapters: bool) -> tuple[Prompt, str | None]:
    """Return the prompt that a generated piece was made with, and the name of its model, if others know it.

    Args:
        file: the sound file, beside its `.json`.
        with_adapters: whether its adapters are the prompt's own.

    Raises:
        ConfigError: the `.json` is missing or damaged.
    """
    path = storage.as_path(file).with_suffix(".json")
    try:
        sidecar = json.loads(storage.read_text(path))
        if not isinstance(sidecar, Mapping) or not isinstance(sidecar.get("prompt"), str):
            raise ValueError(message("it holds no prompt"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            message("the prompt of {file} can't be read from {path} ({error})", file=file, path=path, error=error),
            message("Give it with --prompt"),
        ) from error
    given: dict[str, Any] = {name: sidecar.get(name) for name in ("prompt", "seed", "negative_prompt")}
    if isinstance(fields := sidecar.get("fields"), Mapping):
        given |= fields
    if isinstance(sections := sidecar.get("sections"), list):  # whose texts have those of the prompt and its fields
        given["sections"] = sections
    if with_adapters:
        entries = [one for one in adapter_entries(sidecar) if one.get("path")]
        given["adapter"] = [str(WeightedAdapter(one["path"], strength_of(one))) for one in entries] or [BASE]
    name = str(sidecar.get("model") or "").rpartition("@")[0]
    known = {name: value for name, value in given.items() if name in Prompt.model_fields and value is not None}
    return validate(Prompt, known, str(path)), None if name in ("", "local") else name
