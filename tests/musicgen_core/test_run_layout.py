"""The layout of a run directory, and what is read from its config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.run_layout import (
    RunConfig,
    RunLayout,
    find_config,
    load_config,
    parse_sample_name,
    run_of,
    sample_name,
)
from musicgen_core.storage import as_path

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda each: st.lists(each))
KEYS = ("model", "model_dir", "tokens", "shards", "held_out_fraction", "validation_fraction", "init_adapter", "origin")


@given(st.integers(0, 5000), st.integers(0, 500))
def test_the_name_of_a_sample_gives_its_epoch_and_prompt(epoch: int, prompt: int) -> None:
    assert parse_sample_name(sample_name(epoch, prompt)) == (epoch, prompt)


@pytest.mark.parametrize(
    "name", ["epoch_1.wav", "epoch_001_00.png", "epoch_x_00.wav", "prompts.json", "epoch_001_00.wav~"]
)
def test_other_names_are_no_samples(name: str) -> None:
    assert parse_sample_name(name) is None


def test_the_run_of_an_adapter_is_the_directory_that_it_was_saved_to() -> None:
    layout = RunLayout(as_path("memory://runs/first"))
    assert run_of(layout.adapter("best_lora")) == layout.root
    assert run_of(layout.latest) is None


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_values_of_a_wrong_type_count_as_unknown(values: dict[str, object]) -> None:
    config = RunConfig(values)
    assert isinstance(config.model + config.model_dir + config.tokens + config.init_adapter, str)
    assert config.shards is None or isinstance(config.shards, dict)
    assert config.held_out_fraction is None or 0 <= config.held_out_fraction < 1
    assert config.origin is None or isinstance(config.origin["checkpoint"], str)


def test_the_raised_fraction_comes_before_the_setting() -> None:
    assert RunConfig({"validation_fraction": 0.05, "held_out_fraction": 0.2}).held_out_fraction == 0.2
    assert RunConfig({"validation_fraction": 0.05}).held_out_fraction == 0.05


def test_a_damaged_configuration_is_found_by_nobody_and_refused_on_loading(tmp_path: Path) -> None:
    run = as_path(tmp_path)
    assert find_config(run) is None
    for damaged in ("{", "[1]", "null"):
        (tmp_path / "config.json").write_text(damaged)
        assert find_config(run) is None
        with pytest.raises(ValueError):
            load_config(run)
    (tmp_path / "config.json").write_text(json.dumps({"tokens": "tokens"}))
    assert load_config(run).tokens == "tokens"


def test_the_layout_is_read_without_torch() -> None:
    code = "import sys, musicgen_core.run_layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
