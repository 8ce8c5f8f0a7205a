"""API keys as WandB and the Hub receive them."""

from __future__ import annotations

import os

import pytest
from prefect.blocks.system import Secret

from flows.startup import export_secrets


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    blocks: dict[str, str] = {}

    def load(name: str) -> Secret:
        if name not in blocks:
            raise ValueError(f"Unable to find block document named {name}")
        return Secret(value=blocks[name])

    monkeypatch.setattr(Secret, "load", load)
    for variable in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(variable, "")
    return blocks


def test_whitespace_around_a_copied_key_is_stripped(no_blocks: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", " 0123\n")
    no_blocks["hf-token"] = "hf_4567\r\n"
    export_secrets()
    assert (os.environ["WANDB_API_KEY"], os.environ["HF_TOKEN"]) == ("0123", "hf_4567")


def test_the_environment_comes_before_a_block_unless_it_is_empty(
    no_blocks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_blocks |= {"wandb-api-key": "of the block", "hf-token": "of the block"}
    monkeypatch.setenv("WANDB_API_KEY", "of the environment")
    monkeypatch.setenv("HF_TOKEN", "\n")
    export_secrets()
    assert (os.environ["WANDB_API_KEY"], os.environ["HF_TOKEN"]) == ("of the environment", "of the block")
