"""Find the base model of an adapter, as recorded in the adapter and in its run directory."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from upath import UPath

from musicgen_core.errors import AdapterError
from musicgen_core.language import message
from musicgen_core.model.local_files import LM_FILE
from musicgen_core.model.lora import Adapter
from musicgen_core.model.weights import BUILT_IN
from musicgen_core.run_layout import find_config, run_of

logger = logging.getLogger(__name__)


def base_model_of(adapter: Adapter, weights: UPath) -> str | None:
    """Return the argument of `find_model` for an adapter's base model; None if the adapter doesn't record it.

    Args:
        adapter: the adapter.
        weights: its file; in a run directory, config.json records the directory of a local model.

    Raises:
        AdapterError: it was trained on a local model whose directory is unknown or no longer exists.
    """
    name, hashed, _ = adapter.base_model.partition("@sha256:")
    if name in BUILT_IN or (not hashed and name and (Path(name).expanduser() / LM_FILE).is_file()):
        return name
    if hub_id(name):
        return name
    if not hashed:
        return None
    run_dir = run_of(weights)
    config = find_config(run_dir) if run_dir is not None else None
    directory = config.model_dir if config is not None else ""
    if not directory or not Path(directory).is_dir():
        found = message(
            "the base model of the adapter {weights} is not at {path} any more", weights=weights, path=directory
        )
        if not directory:
            found = message(
                "the adapter {weights} doesn't say where its base model is, a local directory", weights=weights
            )
        raise AdapterError(
            found,
            message("Give --model the directory or the Hugging Face id of the model that it was trained on"),
        )
    return directory


def choose_model(given: str | None, default: str, adapter: Adapter | None, weights: UPath | None) -> str:
    """Return the given model, or else the base model of the adapter, or else the default.

    Raises:
        AdapterError: see `base_model_of`.
    """
    if given or adapter is None or weights is None:
        return given or default
    found = base_model_of(adapter, weights)
    if found is None:
        logger.warning(
            "the adapter %s doesn't name its base model: %s is used; for another one, set model", weights, default
        )
        return default
    logger.info("the base model is that of the adapter: %s", found)
    return found


def hub_id(base_model: str) -> str | None:
    """Return the base model's id on the Hub, from an adapter's `base_model`; None for a local one."""
    name = base_model.partition("@sha256:")[0]
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else None
