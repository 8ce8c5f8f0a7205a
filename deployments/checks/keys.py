"""WandB's and Hugging Face's keys: whether they are there, never what they are."""

from __future__ import annotations

import os
from collections.abc import Collection

from deployments.checks.finding import Finding
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
        return Finding(variable, "ok", "set in the environment")
    if is_stored:
        return Finding(variable, "ok", f"stored as the Prefect Secret block {block}")
    if variable == "HF_TOKEN" and _has_saved_token():
        return Finding(variable, "ok", "saved by hf auth login")
    return Finding(
        variable,
        "warning",
        f"not there: {_WITHOUT[variable]}",
        f"If you have a key, export {variable}=…, or store it as the Secret block {block} in the Prefect UI",
    )


def _has_saved_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
