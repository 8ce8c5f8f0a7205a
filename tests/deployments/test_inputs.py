"""Files that a command reads, and parameters of a deployment, are checked before a server or a run starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from prefect.utilities.callables import parameter_schema

from deployments import commands
from deployments.cli import main
from deployments.inputs import arranged, check_adapter, check_adapters, check_rendering, check_training, parsed
from deployments.options import UsageError
from flows.generate_music import generate_music
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.errors import AdapterError, ConfigError
from musicgen_core.learning_settings import AdapterSettings
from tasks.forms import beside_each_other, in_groups
from tests.stand_in_hub import StandInHub

DEBUG_CPU = ["--model", "debug", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise AssertionError("a server is started")

    monkeypatch.setattr(commands, "ensure_api", start)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "OUT", "--adapter", "GONE"], "there is no adapter at GONE"),
        (["generate", "OUT", "--adapter", "TEXT"], "TEXT can't be read as an adapter"),
        (["generate", "OUT", "--prompts-file", "GONE"], "the prompts file GONE can't be read"),
        (["generate", "OUT", "--continue-from", "GONE"], "GONE can't be continued"),
        (["generate", "OUT", "--continue-from", "TEXT"], "TEXT can't be continued"),
        (["generate", "OUT", "--melody", "TEXT"], "debug takes no melody"),
        (["generate", "OUT", "--prompts-file", "PROMPTS"], "GONE can't be continued"),
        (["evaluate", "TOKENS", "--adapter", "GONE"], "there is no adapter at GONE"),
        (["train", "TOKENS", "OUT", "--init-adapter", "TEXT"], "TEXT can't be read as an adapter"),
        (
            ["train", "TOKENS", "OUT", "--prior-preservation", "0.2", "--prior-prompts", "GONE"],
            "the prompts file GONE can't be read",
        ),
    ],
)
def test_unusable_inputs_are_refused_before_a_server_starts(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"GONE": "gone_lora.pt", "TEXT": "text_lora.pt", "PROMPTS": "p.jsonl", "OUT": "out", "TOKENS": "tokens"}
    paths = {name: str(tmp_path / file) for name, file in places.items()}
    Path(paths["TEXT"]).write_text("not an adapter")
    Path(paths["PROMPTS"]).write_text(f'{{"prompt": "jazz", "continue_from": "{paths["GONE"]}"}}')
    assert main([*(paths.get(one, one) for one in arguments), *DEBUG_CPU]) == 1
    for name in ("GONE", "TEXT"):
        expected = expected.replace(name, paths[name])
    assert expected in capsys.readouterr().err
    assert not Path(paths["OUT"]).exists()


@pytest.mark.parametrize("command", ["tokenize ARCHIVES TOKENS", "finetune ARCHIVES --tokens T --run-dir R --output O"])
def test_a_missing_demucs_is_reported_before_a_server_starts(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen_core.separation.weights.find_spec", {}.get)
    assert main([*command.split(), "--remove-vocals", *DEBUG_CPU]) == 1
    assert "Install it: uv sync --extra vocals" in capsys.readouterr().err


def test_an_adapter_to_start_from_is_not_needed_to_resume(tmp_path: Path) -> None:
    given: dict[str, Any] = {"run_dir": str(tmp_path), "init_adapter": str(tmp_path / "gone_lora.pt")}
    with pytest.raises(AdapterError, match="there is no adapter"):
        check_training(given)
    check_training({**given, "resume": "elsewhere/latest.pt"})
    (tmp_path / "latest.pt").touch()
    check_training(given)


def test_layers_that_the_model_lacks_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "musicgen", "decoder": {"num_hidden_layers": 3}}')
    known = {"debug": 2, "demo": 6, "facebook/musicgen-small": 24, "facebook/musicgen-stereo-large": 48}
    for model, count in {**known, str(tmp_path): 3}.items():
        given = {"run_dir": str(tmp_path), "model": model}
        check_training({**given, "layers": str(count - 1), "ranks": f"0={count}"})
        for setting, text in (("layers", f"0,{count}-99"), ("ranks", f"{count}-99=4")):
            with pytest.raises(ConfigError, match=rf"{setting} has {count}-99, but .* layers are 0 to {count - 1}"):
                check_training({**given, setting: text})
    check_training({"run_dir": str(tmp_path), "model": "somebody/model", "layers": "999"})  # known when it is read


def test_a_melody_is_checked_by_the_run_if_a_prompt_has_an_adapter_which_may_name_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.inputs.check_adapters", lambda adapters: None)
    soundfile.write(tmp_path / "tune.wav", np.sin(np.arange(32_000) / 10), 32_000)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "jazz", "adapter": "melodic", "melody": str(tmp_path / "tune.wav")}))
    check_rendering({"prompts_file": str(prompts)})
    with pytest.raises(ConfigError, match="debug takes no melody"):
        check_rendering({"prompts_file": str(prompts), "model": "debug"})


def test_a_pipe_of_prompts_is_left_to_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prompts")
    check_rendering({"prompts_file": str(tmp_path / "prompts")})


def test_a_mistyped_path_is_not_left_to_the_run_as_the_hubs_are(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_adapter("runs/frist")
    assert hub.requests == []
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(AdapterError, match="there is no adapter at runs/frist, and runs/frist is not on the Hugging"):
        check_adapter("runs/frist")


def test_the_base_model_alone_is_no_adapter_to_look_for() -> None:
    check_adapters(["base"])


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


def test_adapters_are_one_text_in_a_form_and_strengths_are_numbers() -> None:
    schema = parameter_schema(generate_music).model_dump_for_openapi()
    generate: Any = SimpleNamespace(name="generate-music", parameter_openapi_schema=schema)
    assert schema["properties"]["adapter"]["type"] == "string"
    given = parsed(['adapter=["runs/first:0.7", "b_lora.pt"]', "strengths=0,0.5,1"])
    assert arranged(given, generate) == {"adapter": "runs/first:0.7, b_lora.pt", "strengths": [0, 0.5, 1]}
    assert arranged(parsed(["adapter=runs/first", "strengths=0.5"]), generate) == {
        "adapter": "runs/first",
        "strengths": [0.5],
    }


def test_values_that_mean_the_default_are_left_out() -> None:
    assert arranged(parsed(["batch_size=auto", "max_steps=null", "tokens=null"]), TRAIN) == {}


def test_problems_name_the_parameter_and_not_its_group() -> None:
    with pytest.raises(UsageError) as refused:
        arranged(parsed(["lora_alpha=0", "sample_prompts=80", "schedule=cubic"]), TRAIN)
    names = {problem.partition(":")[0] for problem in refused.value.problems}
    assert names == {"lora_alpha", "schedule", "sample_prompts"}
    assert """-p 'sample_prompts=["one", "another"]'""" in str(refused.value)


def test_a_text_for_a_list_is_one_entry_or_names_with_commas() -> None:
    tokenize: Any = SimpleNamespace(
        name="tokenize-archives",
        parameter_openapi_schema=parameter_schema(tokenize_archives).model_dump_for_openapi(),
    )
    assert arranged(parsed(["exclude=silent, clipped"]), tokenize) == {"exclude": ["silent", "clipped"]}
    with pytest.raises(UsageError, match=r"exclude.*'loud' is not one of"):
        arranged(parsed(["exclude=silent,loud"]), tokenize)
    found = arranged(parsed(["sample_prompts=calm piano, 80 bpm", "lora_targets=q_proj,v_proj"]), TRAIN)
    assert found["samples"] == {"sample_prompts": ["calm piano, 80 bpm"]}
    assert AdapterSettings(**found["lora"]).lora_targets == ["q_proj", "v_proj"]


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
