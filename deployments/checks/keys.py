"""WandB's and Hugging Face's keys: whether they are there and taken, never what they are."""

from __future__ import annotations

import os
from collections.abc import Collection

from deployments.checks.finding import Finding
from musicgen_core.errors import ModelError
from musicgen_core.model import hub
from tasks.keys import BLOCKS

_WITHOUT = {
    "WANDB_API_KEY": "WandB runs offline and wandb sync uploads later",
    "HF_TOKEN": "facebook's checkpoints need none, private models do",
}


def check_keys(stored: Collection[str]) -> list[Finding]:
    """
    Args:
        stored: names of the server's Secret blocks.
    """
    return [_check_key(variable, block, block in stored) for variable, block in BLOCKS.items()]


def _check_key(variable: str, block: str, is_stored: bool) -> Finding:
    if os.environ.get(variable):
        place = "set in the environment"
        return _ask_hub(place) if variable == "HF_TOKEN" else Finding(variable, "ok", place)
    if is_stored:
        return Finding(variable, "ok", f"stored as the Prefect Secret block {block}")
    if variable == "HF_TOKEN" and _has_saved_token():
        return _ask_hub("saved by hf auth login")
    return Finding(
        variable,
        "warning",
        f"not there: {_WITHOUT[variable]}",
        f"If you have a key, export {variable}=…, or store it as the Secret block {block} in the Prefect UI",
    )


def _ask_hub(place: str) -> Finding:
    """Ask the Hub whose token it is."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return Finding("HF_TOKEN", "ok", f"{place}; not tried, as HF_HUB_OFFLINE is set")
    try:
        return Finding("HF_TOKEN", "ok", f"{place}, of {hub.whoami()}")
    except ModelError as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status in (401, 403):
            found = f"{place}, and the Hugging Face Hub refuses it ({status})"
            fix = "Set a valid one (https://huggingface.co/settings/tokens), or unset it: it closes public models, too"
            return Finding("HF_TOKEN", "problem", found, fix)
        return Finding("HF_TOKEN", "warning", f"{place}; not tried, as the Hugging Face Hub could not be asked")


def _has_saved_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
