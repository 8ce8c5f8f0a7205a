"""The YAML file of `--config`, below the options of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployments.parsing import parsed, problems


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 4\nseed: 5\nresume: never\nbatch_size: 2\n")
    return path


def test_options_override_yaml_and_yaml_overrides_defaults(config: Path) -> None:
    assert parsed("train", "T", "R", "--config", str(config), "--lora-r", "16") == {
        "tokens": "T",
        "run_dir": "R",
        "lora_r": 16,
        "seed": 5,
        "resume": "never",
        "batch_size": 2,
    }


def test_problems_in_yaml_are_listed_with_those_of_options(config: Path) -> None:
    config.write_text("lora_r: 0\nlora_rank: 4\nseed: 5\n")
    assert problems("train", "T", "--config", str(config), "--seed", "x", "--zzz") == [
        "there is no option --zzz",
        "RUN_DIR is missing",
        "--lora-r: input should be greater than or equal to 1, not 0",
        "--seed: input should be a valid integer, unable to parse string as an integer, not 'x'",
        "there is no setting lora_rank",
    ]


@pytest.mark.parametrize(
    "content", [b"lora_r: [", b"- a", b"7: 8", b"\xff\x80", b"seed: 2026-13-45", b"seed: !!python/name:x", b"[" * 9000]
)
def test_unreadable_yaml_is_listed_with_the_other_problems(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    found = problems("train", "T", "--config", str(config), "--lora-r", "0")
    assert len(found) == 3
    assert str(config) in found[0] and "\n" not in found[0]


def test_only_commands_with_settings_take_yaml(config: Path) -> None:
    assert problems("tokenize", "A", "T", f"--config={config}") == ["there is no option --config"]
