"""The values of the form with which a sample is made again, from its sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.studio.adapters import OfferedAdapter
from deployments.studio.folder import MusicFolder
from deployments.studio.form_request import MOST_SECONDS, MOST_VARIATIONS, StudioForm
from musicgen_core import storage
from musicgen_core.config import ChoiceSettings
from musicgen_core.errors import ConfigError, MusicgenError
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.piece_prompts import described_prompt
from musicgen_core.generation.sidecars import Sidecar, adapter_entries, best_of, strength_of
from musicgen_core.language import message
from musicgen_core.model.adapters import displayed_path, find_adapter
from musicgen_core.run_layout import short_name
from musicgen_core.settings import validate


def form_of(
    folder: MusicFolder, stem: str, offered: Mapping[str, OfferedAdapter], model: str, with_source: bool
) -> tuple[StudioForm, float]:
    """Return the values of the form with which a sample is made again, and the seconds of the recording it continues.

    Args:
        stem: names the sample.
        offered: the adapters by id.
        model: name of the studio's model; empty while it is loaded.
        with_source: whether also the recording that it continues and its part that was made again, and its duration.

    Raises:
        ConfigError: there is no such sample, or the studio can't make it again: its model, an adapter or a recording
            is another one or gone.
    """
    wav = folder.file(f"{stem}.wav")
    if wav is None:
        raise ConfigError(message("there is no sample {name} in the folder", name=stem), message("Choose another"))
    try:
        prompt, _ = described_prompt(str(wav), with_adapters=False)
    except ConfigError as error:
        raise ConfigError(error.found, message("Fill in the form yourself")) from error
    sidecar = json.loads(storage.read_text(storage.as_path(wav).with_suffix(".json")))
    _check_model(stem, sidecar, model)
    sampling = _mapping(sidecar.get("sampling"))
    values: dict[str, Any] = {
        **{name: getattr(prompt, name) for name in ("prompt", *ControlSettings.model_fields)},
        **{name: sampling[name] for name in ChoiceSettings.model_fields if sampling.get(name) is not None},
        "strengths": _strengths(stem, sidecar, offered),
        "seed": prompt.seed,
    }
    values |= _places(sidecar)
    kept = 0.0
    if with_source:
        where, kept = _where(folder, stem, sidecar)
        values |= where
    return validate(StudioForm, values, message("the settings of {name}", name=stem)), kept


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _check_model(stem: str, sidecar: Sidecar, model: str) -> None:
    made_with = str(sidecar.get("model") or "").partition("@")[0]
    is_known = made_with not in ("", "local") and model and not Path(model).exists()
    if is_known and made_with != model:
        raise ConfigError(
            message("{name} was made with the model {model}", name=stem, model=made_with),
            message("Start a studio with that model, or fill in the form yourself"),
        )
    if sidecar.get("melody"):
        raise ConfigError(
            message("{name} follows a melody, which the studio can't", name=stem),
            message("Make it with uv run musicgen-flows generate, or fill in the form yourself"),
        )


def _strengths(stem: str, sidecar: Sidecar, offered: Mapping[str, OfferedAdapter]) -> dict[str, float]:
    """Return the strengths of a sample's adapters by their ids.

    Raises:
        ConfigError: one isn't offered.
    """
    entries = adapter_entries(sidecar)
    ids = {_real(_weights(one.source)): id for id, one in reversed(list(offered.items()))} if entries else {}
    found = {}
    for entry in entries:
        path = str(entry.get("path") or "")
        id = ids.get(_real(path))
        if id is None:
            raise ConfigError(
                message("the adapter {adapter} of {name} isn't offered", adapter=short_name(path), name=stem),
                message("Start the studio with --adapter {adapter}, or fill in the form yourself", adapter=path),
            )
        found[id] = strength_of(entry)
    return found


def _weights(source: str) -> str:
    """Return what sidecars name as the path of an adapter; the given location if it isn't there any more."""
    try:
        return displayed_path(find_adapter(source))
    except MusicgenError:
        return source


def _real(location: str) -> str:
    try:
        path = Path(location).expanduser()
        return str(path.resolve()) if path.exists() else location
    except (OSError, ValueError, RuntimeError):
        return location


def _places(sidecar: Sidecar) -> dict[str, Any]:
    """Return how many samples are made so that this one is among them; without a seed if none of them would be."""
    variation = sidecar.get("variation")
    variation = variation if isinstance(variation, int) and variation > 0 else 0
    candidates = best_of(sidecar)
    if variation >= MOST_VARIATIONS or (candidates.get("all_kept") and candidates.get("candidate")):
        return {"seed": None}
    count = candidates.get("candidates") if candidates and not candidates.get("all_kept") else None
    return {"variations": variation + 1, "best_of": count}


def _where(folder: MusicFolder, stem: str, sidecar: Sidecar) -> tuple[dict[str, Any], float]:
    """Return source, stretch, loop and duration, and the seconds of the source.

    Raises:
        ConfigError: the source is gone, lies elsewhere, or is another one.
    """
    seconds, loop, redo = sidecar.get("duration"), _mapping(sidecar.get("loop")), _mapping(sidecar.get("redo"))
    if loop:
        wanted = loop.get("wanted_seconds", seconds)
        return {"loop": True, "duration": wanted, "seam_candidates": loop.get("candidates", 8)}, 0.0
    if not sidecar.get("continued_from"):
        return {} if seconds is None else {"duration": seconds}, 0.0
    source = folder.continued(sidecar)
    if source is None:
        raise ConfigError(
            message(
                "{name} continues {file}, which isn't in the studio's folder as it was",
                name=stem,
                file=sidecar["continued_from"],
            ),
            message("Send the recording again, and fill in the form yourself"),
        )
    name, kept = source
    if redo:
        # The duration, which is the recording's, isn't asked for.
        part = f"{redo.get('begin')}-{redo.get('end')}"
        duration = min(kept, MOST_SECONDS)
        return {"source": name, "redo": part, "duration": duration, "seam_candidates": redo.get("candidates", 8)}, kept
    new = round(seconds - kept, 6) if isinstance(seconds, int | float) else seconds
    return {"source": name, "duration": new}, kept
