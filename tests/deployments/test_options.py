"""The parameters that a command line gives."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from deployments.cli import COMMANDS
from deployments.command import Command
from deployments.options import UsageError, parse
from flows.parameters import CaptionParameters, FinetuneParameters
from musicgen_core.settings import Settings
from tests.deployments.parsing import given_to, parsed


def test_only_what_was_given_is_passed_on_in_its_own_type() -> None:
    assert parsed("train", "T", "R") == {"tokens": "T", "run_dir": "R"}
    assert parsed("train", "T", "R", "--lora-r", "16", "--learning-rate=1e-5", "--device", "cpu") == {
        "tokens": "T",
        "run_dir": "R",
        "lora_r": 16,
        "learning_rate": 1e-5,
        "device": "cpu",
    }
    assert parsed("train", "T", "R", "--batch-size", "auto")["batch_size"] == "auto"
    assert parsed("train", "T", "R", "--batch-size", "4")["batch_size"] == 4


@given(st.permutations([["T"], ["R"], ["--seed", "3"], ["--resume=never"], ["--epochs", "2"]]))
@settings(max_examples=20)
def test_options_may_stand_before_between_and_behind_arguments(groups: list[list[str]]) -> None:
    first, second = (group[0] for group in groups if group[0] in "TR")
    assert parsed("train", *(argument for group in groups for argument in group)) == {
        "tokens": first,
        "run_dir": second,
        "seed": 3,
        "resume": "never",
        "num_epochs": 2,
    }


def test_short_and_full_name_are_the_same_option() -> None:
    assert parsed("train", "T", "R", "--epochs", "7") == parsed("train", "T", "R", "--num-epochs", "7")
    assert parsed("train", "T", "R", "--epochs", "7")["num_epochs"] == 7


def test_an_option_that_may_be_repeated_gives_a_list() -> None:
    assert parsed("generate", "O", "--prompt", "one, two", "--prompt", "- three")["prompts"] == ["one, two", "- three"]
    assert parsed("generate", "O", "--prompts", "one")["prompts"] == ["one"]


def test_names_are_separated_by_commas_or_repeated() -> None:
    line = ("tokenize", "A", "T", "--exclude", "silent, clipped", "--exclude", "speech,silent")
    assert parsed(*line)["exclude"] == ["silent", "clipped", "speech"]
    with pytest.raises(UsageError, match=r"--exclude: input should be 'silent', 'clipped', .* not 'loud'"):
        parsed("tokenize", "A", "T", "--exclude", "silent,loud")
    assert parsed("generate", "O", "--format", "flac,mp3")["formats"] == ["flac", "mp3"]
    line = ("train", "T", "R", "--lora-targets", "q_proj,v_proj", "--lora-targets", "linear1")
    assert parsed(*line)["lora_targets"] == ["q_proj", "v_proj", "linear1"]


def test_flags_take_no_value() -> None:
    assert parsed("generate", "--compare", "O", "--greedy") == {"compare": True, "output": "O", "greedy": True}


def test_automatic_settings_can_be_switched_on_and_off() -> None:
    assert parsed("train", "--no-compile-blocks", "T", "--activation-checkpointing", "R") == {
        "tokens": "T",
        "run_dir": "R",
        "compile_blocks": False,
        "activation_checkpointing": True,
    }


def test_groups_have_unique_titles_and_share_no_names() -> None:
    for command in COMMANDS.values():
        titles = [kind.model_config["title"] for kind in command.groups.values()]
        assert len(set(titles)) == len(titles)
        inside = [name for kind in command.groups.values() for name in kind.model_fields]
        assert len(set(inside)) == len(inside)
        assert not set(inside) & set(command.form.model_fields)


def test_texts_of_which_none_is_wanted_may_be_empty() -> None:
    assert parsed("tokenize", "A", "T", "--caption-prefix", "")["caption_prefix"] is None
    assert parsed("train", "T", "R", "--sample-prompt", "")["sample_prompts"] == [""]


def test_removing_vocals_is_an_option_of_tokenize_and_finetune() -> None:
    assert parsed("tokenize", "A", "T", "--remove-vocals")["remove_vocals"] is True
    places = ("--tokens", "T", "--run-dir", "R", "--output", "O")
    assert parsed("finetune", "A", *places, "--remove-vocals")["remove_vocals"] is True
    assert parsed("tokenize", "A", "T", "--separate-melody")["separate_melody"] is True
    assert "remove_vocals" not in parsed("tokenize", "A", "T")


def test_of_an_option_that_is_repeated_the_last_value_counts() -> None:
    assert parsed("train", "T", "R", "--seed", "1", "--seed", "2")["seed"] == 2


def test_any_settings_become_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    class Parameters(Settings):
        place: str | None = Field(None, description="100 % of [it]; by default the variable x")
        kind: Literal["a", "b"] = Field("a", description="which")
        share: float | None = Field(None, gt=0, le=1, description="part")

    command = Command("Do it.", "", Parameters, "x P", arguments=("place",))
    assert given_to(command, "P", "--share", "0.5") == {"place": "P", "share": 0.5}
    with pytest.raises(UsageError, match="--kind: input should be 'a' or 'b', not 'c'; --share"):
        given_to(command, "P", "--kind", "c", "--share", "2")
    assert parse({"x": command}, ["x", "--help"]) is None
    shown = capsys.readouterr().out
    assert "100 % of [it] " in shown and "which [choices: a, b] [default: a]" in shown and "Do it." in shown


def test_finetune_takes_every_option_of_captioning_that_concerns_new_descriptions() -> None:
    captioning, finetuning = CaptionParameters.model_fields, FinetuneParameters.model_fields
    assert set(captioning) - set(finetuning) == {"overwrite", "only_missing"}
    assert all(captioning[name].annotation == finetuning[name].annotation for name in ("tags", "reading", "workers"))
