"""Check that WandB's and Hugging Face's keys are set and accepted. Their values are never shown."""

from __future__ import annotations

import os
from collections.abc import Collection

from deployments.checks.finding import Finding
from flows.startup import BLOCKS
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.tracking import sync_command

_WITHOUT = {
    "WANDB_API_KEY": message(
        "WandB runs offline. To upload it later: {command}", command=sync_command("RUN_DIR/wandb")
    ),
    "HF_TOKEN": message("facebook's checkpoints need none, private models do"),
}


def check_keys(stored: Collection[str]) -> list[Finding]:
    """Check the keys in the environment and in the server's Secret blocks, whose names are given."""
    return [_check_key(variable, block, block in stored) for variable, block in BLOCKS.items()]


def _check_key(variable: str, block: str, is_stored: bool) -> Finding:
    if os.environ.get(variable):
        place = message("set in the environment")
        return _ask_hub(place) if variable == "HF_TOKEN" else Finding(variable, "ok", place)
    if is_stored:
        return Finding(variable, "ok", message("stored as the Prefect Secret block {block}", block=block))
    if variable == "HF_TOKEN" and _has_saved_token():
        return _ask_hub(message("saved by hf auth login"))
    return Finding(
        variable,
        "warning",
        message("not there: {without}", without=_WITHOUT[variable]),
        message(
            "If you have a key, export {variable}=…, or store it as the Secret block {block} in the Prefect UI",
            variable=variable,
            block=block,
        ),
    )


def _ask_hub(place: str) -> Finding:
    """Ask the Hub for the token's owner."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return Finding("HF_TOKEN", "ok", message("{place}; not tried, as HF_HUB_OFFLINE is set", place=place))
    try:
        return Finding("HF_TOKEN", "ok", message("{place}, of {account}", place=place, account=hub.whoami()))
    except ModelError as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status in (401, 403):
            found = message("{place}, and the Hugging Face Hub refuses it ({status})", place=place, status=status)
            fix = message(
                "Set a valid one (https://huggingface.co/settings/tokens), or unset it: it closes public models, too"
            )
            return Finding("HF_TOKEN", "problem", found, fix)
        found = message("{place}; not tried, as the Hugging Face Hub could not be asked", place=place)
        return Finding("HF_TOKEN", "warning", found)


def _has_saved_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
