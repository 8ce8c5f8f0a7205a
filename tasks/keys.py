"""WandB's and Hugging Face's keys, from the environment or from Prefect Secret blocks."""

from __future__ import annotations

import os

from prefect.blocks.system import Secret

BLOCKS = {"WANDB_API_KEY": "wandb-api-key", "HF_TOKEN": "hf-token"}


def export_secrets() -> None:
    """Put each key that is stored as a Secret block, and not in the environment yet, into the environment."""
    for variable, block in BLOCKS.items():
        if not os.environ.get(variable):
            try:
                os.environ[variable] = Secret.load(block).get()  # type: ignore[union-attr]
            except ValueError:  # no such block: the key is not given
                continue
