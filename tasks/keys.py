"""API keys of WandB and Hugging Face, from the environment or from Prefect Secret blocks."""

from __future__ import annotations

import os

BLOCKS = {"WANDB_API_KEY": "wandb-api-key", "HF_TOKEN": "hf-token"}


def export_secrets() -> None:
    """Export each key that is stored as a Secret block to the environment, unless it is set there already.

    Whitespace around a key, as copying may add it, is stripped: both services would reject the key.
    """
    from prefect.blocks.system import Secret  # not at module level: doctor checks whether Prefect can be imported

    for variable, block in BLOCKS.items():
        key = os.environ.get(variable, "").strip()
        if not key:
            try:
                key = str(Secret.load(block).get()).strip()  # type: ignore[union-attr]
            except ValueError:  # there is no such block
                continue
        os.environ[variable] = key
