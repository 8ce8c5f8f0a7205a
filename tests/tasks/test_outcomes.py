"""Outcomes of commands and flows: every next step is a valid command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from deployments.cli import COMMANDS
from deployments.options import parse
from musicgen_core.config import DEFAULT_PROMPTS
from musicgen_core.data.shards import Row, ShardWriter
from musicgen_core.generation.request import Rendered
from musicgen_core.model.hub_upload import Pushed
from musicgen_core.training.request import TrainResult
from tasks import outcomes
from tasks.next_steps import Outcome, Step
from tasks.outcomes import no_descriptions

ON = {"model": "debug", "device": "cpu"}


@pytest.fixture(autouse=True)
def _without_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)


def assert_understood(outcome: Outcome) -> list[Step]:
    """Assert that every step's command parses to the same parameters; return the steps."""
    assert outcome.steps
    for step in outcome.steps:
        for line in (step.command_line(), step.command_line(on_server=True)):
            assert parse(COMMANDS, shlex.split(line)[1:]) is not None
    return list(outcome.steps)


def trained(run_dir: Path) -> TrainResult:
    for file in ("lora_weights/best_lora.pt", "loss.png"):
        (run_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / file).touch()
    return TrainResult(str(run_dir), 10, 1, 2.0, 1, 2.2, 1.9, 0)


def test_each_step_leads_to_the_next_up_to_a_shared_adapter(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    [tokenize] = assert_understood(outcomes.estimated(str(tmp_path / "archives"), ON))
    assert tokenize.parameters == {"archives": str(tmp_path / "archives"), **ON}
    tokens = tokenize.places["tokens"]
    assert tokens == str(tmp_path / "tokens")
    [train] = assert_understood(outcomes.tokenized(tokens, 1, ON))
    assert train.parameters == {"tokens": tokens, **ON}
    run_dir = Path(train.places["run_dir"])
    made = outcomes.trained(trained(run_dir), ON)
    assert [one.place for one in made.made] == [
        str(run_dir),
        f"{run_dir}/lora_weights/best_lora.pt",
        f"{run_dir}/loss.png",
    ]
    [listen] = assert_understood(made)
    assert listen.parameters["adapter"] == str(run_dir) and listen.parameters["compare"]
    music = listen.places["output"]
    assert music == f"{tmp_path}/music/run"
    pieces = [Rendered(f"{music}/generated_000.wav", "calm piano", 0, 0, 8.0, True)]
    takes, export = assert_understood(outcomes.rendered(pieces, {"adapter": str(run_dir), **ON}))
    assert takes.parameters["prompts"] == ["calm piano"] and takes.parameters["seed"] == 1
    assert (export.command, export.parameters["out"]) == ("export", f"{tmp_path}/shared/run")
    [here] = assert_understood(outcomes.exported(str(export.parameters["out"]), "peft", ON))
    assert here.parameters["adapter"] == export.parameters["out"]


def test_the_suggested_prompt_is_the_most_frequent_description(tmp_path: Path) -> None:
    run_dir, tokens = tmp_path / "runs" / "run", tmp_path / "tokens"
    result = trained(run_dir)
    [listen] = outcomes.trained(result, ON).steps
    assert listen.parameters["prompts"] == list(DEFAULT_PROMPTS[:1])
    tokens.mkdir()
    for stem, texts in {
        "a": ["mystyle, slow", None, "two\nlines"],
        "b": ["two\nlines", "mystyle, slow", "other"],
    }.items():
        with ShardWriter(tokens / f"{stem}.parquet", "codec") as writer:
            for number, text in enumerate(texts):
                writer.add(Row(f"{number}.wav", text, 1.0, np.zeros((4, 50), dtype=np.uint16)))
    (tokens / "c.parquet").write_bytes(b"damaged")
    (run_dir / "config.json").write_text(json.dumps({"tokens": str(tokens)}))
    [listen] = assert_understood(outcomes.trained(result, ON))
    assert listen.parameters["prompts"] == ["mystyle, slow"]
    [listen] = assert_understood(outcomes.trained(result, {**ON, "sample_prompts": ["", "calm piano", "other"]}))
    assert listen.parameters["prompts"] == ["calm piano"], "a prompt that was given comes first"
    for adapter in (run_dir, run_dir / "lora_weights" / "best_lora.pt"):
        [listen] = outcomes.exported(str(tmp_path / "shared"), "peft", {"adapter": str(adapter)}).steps
        assert listen.parameters["prompts"] == ["mystyle, slow"]


def test_a_suggested_path_does_not_exist_yet(tmp_path: Path) -> None:
    for name in ("run", "run-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    [train] = outcomes.tokenized(str(tmp_path / "tokens"), 1, {}).steps
    assert train.places == {"run_dir": f"{tmp_path}/runs/run-3"}


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = outcomes.tokenized("tokens", 1, {})
    assert found.made[0].place == f"{tmp_path}/tokens" == found.steps[0].parameters["tokens"]
    assert outcomes.tokenized("gs://bucket/tokens", 1, {}).made[0].place == "gs://bucket/tokens"


def test_a_hub_adapter_keeps_its_name_and_is_not_exported() -> None:
    pieces = [Rendered("/music/generated_000.wav", "calm piano", 0, 0, 8.0, True)]
    [takes] = outcomes.rendered(pieces, {"adapter": "someone/jazz"}).steps
    assert takes.parameters["adapter"] == "someone/jazz"


def test_adapters_of_the_samples_themselves_are_kept_if_they_are_the_same_for_all() -> None:
    def sample(adapter: str) -> Rendered:
        return Rendered("/music/generated_000.wav", "calm piano", 0, 0, 8.0, True, (adapter,), (0.5,))

    [takes] = outcomes.rendered([sample("someone/jazz"), sample("someone/jazz")], {}).steps
    assert takes.parameters["adapter"] == "someone/jazz:0.5"
    assert outcomes.rendered([sample("someone/jazz"), sample("someone/folk")], {}).steps == ()


def test_an_exported_adapter_is_not_to_be_exported_again(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    pieces = [Rendered("/music/generated_000.wav", "calm piano", 0, 0, 8.0, True)]
    [takes] = outcomes.rendered(pieces, {"adapter": str(tmp_path)}).steps
    assert takes.command == "generate"


def test_nothing_is_suggested_after_archives_without_clips(tmp_path: Path) -> None:
    assert outcomes.tokenized(str(tmp_path / "tokens"), 0, ON).steps == ()
    found = outcomes.captioned(str(tmp_path / "metadata.jsonl"), str(tmp_path), clips=0)
    assert found.steps == () and found.notice == "The archives hold no clips that can be used"


def test_no_training_is_suggested_while_archives_have_failed(tmp_path: Path) -> None:
    found = outcomes.tokenized(str(tmp_path / "tokens"), 3, ON, failed=1)
    assert [one.place for one in found.made] == [f"{tmp_path}/tokens"] and found.steps == ()


def test_prompts_unfit_for_a_command_are_not_suggested() -> None:
    for prompt in ("a\nb", "long " * 100, "\x1b[31m"):
        steps = outcomes.rendered([Rendered("/music/x.wav", prompt, 0, 0, 8.0, False)], {}).steps
        assert "generate" not in [step.command for step in steps]


def test_only_music_of_the_base_model_suggests_tokenizing(tmp_path: Path) -> None:
    pieces = [Rendered("/music/generated_000.wav", "calm piano", 0, 0, 8.0, False)]
    takes, tokenize = assert_understood(outcomes.rendered(pieces, ON))
    assert takes.command == "generate"
    assert tokenize.command_line() == "musicgen-flows tokenize archives/ tokens/ --model debug --device cpu"
    assert tokenize.command_line(on_server=True).startswith("musicgen-flows run tokenize-archives ")
    assert assert_understood(outcomes.rendered(pieces, {}))[1].command_line() == (
        "musicgen-flows tokenize archives/ tokens/"
    )
    [takes] = assert_understood(outcomes.rendered(pieces, {"model": str(tmp_path)}))
    assert takes.command == "generate"


def test_the_next_command_keeps_device_and_base_model(tmp_path: Path) -> None:
    adapter = {"adapter": str(tmp_path)}
    pieces = [Rendered("/music/generated_000.wav", "calm piano", 0, 0, 8.0, True)]
    takes, export = assert_understood(outcomes.rendered(pieces, {**ON, **adapter}))
    assert takes.parameters.items() >= ON.items()
    assert export.parameters["model"] == "debug" and "device" not in export.parameters
    [listen] = assert_understood(outcomes.exported(str(tmp_path / "shared"), "peft", {**adapter, "model": "debug"}))
    assert listen.parameters["model"] == "debug"
    [listen] = assert_understood(outcomes.exported(str(tmp_path / "shared"), "audiocraft", {"model": "debug"}))
    assert listen.parameters["model"] == str(tmp_path / "shared")
    recordings = {"continue_from": "take1.wav", "melody": "/music/tune.ogg", "separate_melody": True}
    takes, _ = outcomes.rendered(pieces, {**adapter, "device": "auto", "model": "", **recordings}).steps
    assert takes.parameters.items() >= {**recordings, "continue_from": str(Path("take1.wav").absolute())}.items()
    assert not {"device", "model"} & takes.parameters.keys()


def test_advice_on_missing_descriptions_is_one_text() -> None:
    text = no_descriptions("none of the 8 clips in a.zip")
    assert text.startswith("None of the 8 clips in a.zip has a description")
    assert "metadata.jsonl" in text and "one for all of them with --caption" in text


@pytest.mark.parametrize(("is_private", "public"), [(True, False), (False, True), (True, True)])
def test_a_pushed_export_names_its_page_and_who_sees_it(tmp_path: Path, is_private: bool, public: bool) -> None:
    pushed = Pushed("somebody/jazz", "https://huggingface.co/somebody/jazz", "0" * 40, is_private)
    outcome = outcomes.exported(str(tmp_path / "shared"), "peft", {**ON, "public": public}, pushed)
    assert_understood(outcome)
    page = {made.place: made.thing for made in outcome.made}[pushed.url]
    assert page == ("on the Hub, private" if is_private else "on the Hub, public")
    assert ("stays private" in outcome.notice) == (is_private and public)
