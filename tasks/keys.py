"""WandB's and Hugging Face's keys, from the environment or from Prefect Secret blocks."""

from __future__ import annotations

import os

from prefect.blocks.system import Secret

BLOCKS = {"WANDB_API_KEY": "wandb-api-key", "HF_TOKEN": "hf-token"}


def export_secrets() -> None:
    """Put each key that is stored as a Secret block, and not in the environment yet, into the environment.

    Spaces and line ends around a key, which come with copying it, are taken off: both services refuse it with them.
    """
    for variable, block in BLOCKS.items():
        key = os.environ.get(variable, "").strip()
        if not key:
            try:
                key = str(Secret.load(block).get()).strip()  # type: ignore[union-attr]
            except ValueError:  # no such block: the key is not given
                continue
        os.environ[variable] = key
