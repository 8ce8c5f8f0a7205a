from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from deployments.options import UsageError
from deployments.run_parameters import arranged, parsed
from flows.train_lora import train_lora
from tasks.forms import beside_each_other, in_groups

SCHEMA = parameter_schema(train_lora).model_dump_for_openapi()
TRAIN: Any = SimpleNamespace(name="train-lora", parameter_openapi_schema=SCHEMA)


def test_an_unknown_parameter_is_reported_with_a_suggestion() -> None:
    with pytest.raises(UsageError) as refused:
        arranged({"num_epoch": 3, "lora_alfa": 64}, TRAIN)
    error = str(refused.value)
    assert (
        "train-lora has no parameter 'num_epoch', 'lora_alfa' (perhaps num_epochs, lora_alpha); it has tokens" in error
    )


def test_a_parameter_similar_to_none_has_no_suggestion() -> None:
    with pytest.raises(UsageError) as refused:
        arranged({"prompts": 3}, TRAIN)  # difflib's own limit lets prior_prompts pass
    assert "(perhaps" not in str(refused.value)


def test_each_parameter_is_put_into_its_group() -> None:
    given = parsed(["lora_r=16", "lora_alpha=64", "compile_blocks=true", "gpus=2", "batch_size=4", "evaluate=false"])
    assert arranged(given, TRAIN) == {
        "lora_r": 16,
        "lora": {"lora_alpha": 64},
        "hardware": {"compile_blocks": "on", "gpus": 2},
        "optimizer": {"batch_size": 4},
        "validation": {"evaluate": False},
    }
    assert arranged({"lora": {"lora_dora": True}, "lora_alpha": 8}, TRAIN) == {
        "lora": {"lora_dora": True, "lora_alpha": 8}
    }


def test_values_that_mean_the_default_are_left_out() -> None:
    assert arranged(parsed(["batch_size=auto", "max_steps=null", "tokens=null"]), TRAIN) == {}


def test_problems_name_the_parameter_and_not_its_group() -> None:
    with pytest.raises(UsageError) as refused:
        arranged(parsed(["lora_alpha=0", "sample_prompts=calm piano", "schedule=cubic"]), TRAIN)
    names = {problem.partition(":")[0] for problem in refused.value.problems}
    assert names == {"lora_alpha", "schedule", "sample_prompts"}
    assert """-p 'sample_prompts=["one", "another"]'""" in str(refused.value)


@pytest.mark.parametrize("value", ["5", "calm", "[1]"])
def test_a_group_that_is_no_group_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"lora: .* is not of type 'object'"):
        arranged(parsed([f"lora={value}"]), TRAIN)


def test_grouped_parameters_can_be_shown_by_their_own_names() -> None:
    own = {"seed": 7, "init_from_latest": True, "lora_alpha": 8}
    stored = in_groups(own, SCHEMA)
    assert stored == {"seed": 7, "start": {"init_from_latest": True}, "lora": {"lora_alpha": 8}}
    assert beside_each_other(stored, SCHEMA) == own
    assert in_groups(stored, SCHEMA) == stored
