"""`musicgen-flows export` as a person meets it, and adapters that come back. No test here has a Prefect server."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import soundfile
import torch
from upath import UPath

from deployments.cli import main
from musicgen_core.config import SamplingSettings, TrainSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.tracking import read_metrics
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.stand_in_hub import TOKEN, Fault, StandInHub


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # whatever asked a server would fail
    monkeypatch.setattr("deployments.console.output.width", 200)


def settings(**given: object) -> TrainSettings:
    values = {"batch_size": 4, "gradient_accumulation_steps": 1, "segment_seconds": 1.0, "num_epochs": 1, **given}
    return TrainSettings.model_validate(values)


@pytest.fixture(scope="module")
def run_dir(demo_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real training's."""
    run = tmp_path_factory.mktemp("runs") / "jazz"
    given = settings(sample_prompts=["calm piano"], sample_seconds=0.5, learning_rate=0.01)
    train(TrainRequest(tokens=str(demo_tokens), run_dir=str(run), model="debug", settings=given, device="cpu"))
    return run


def test_a_run_is_exported_in_each_format_with_a_model_card(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, weights in (
        ("peft", "adapter_model.safetensors"),
        ("audiocraft", "state_dict.bin"),
        ("huggingface", "model.safetensors"),
    ):
        out = tmp_path / kind
        assert main(["export", str(run_dir), str(out), "--format", kind]) == 0
        printed = capsys.readouterr().out
        assert str(out / "README.md") in printed.splitlines() and f"  {weights}  " in printed
        card = (out / "README.md").read_text()
        validated = [row for row in read_metrics(run_dir / "metrics.jsonl") if "val/loss" in row][-1]
        for name in ("val/loss", *(f"val/perplexity_codebook_{k}" for k in range(4))):
            assert f"| {validated[name]:.4g} |" in card
        assert "2 archives, 16 clips" in card and "calm piano: [after epoch 1]" in card
        assert len(list((out / "samples").glob("*.wav"))) == 2


def test_an_exported_adapter_makes_the_same_music_here(run_dir: Path, tmp_path: Path) -> None:
    assert main(["export", str(run_dir), str(tmp_path / "peft"), "--format", "peft"]) == 0
    assert main(["export", str(run_dir), str(tmp_path / "merged"), "--format", "audiocraft"]) == 0
    assert main(["export", str(run_dir), str(tmp_path / "whole"), "--format", "huggingface"]) == 0
    sampling = SamplingSettings(duration=0.5, greedy=True)
    wavs, files = {}, {}
    for name, model, adapter in (
        ("run", "debug", run_dir),
        ("peft", "debug", tmp_path / "peft"),
        ("merged", str(tmp_path / "merged"), None),
        ("whole", str(tmp_path / "whole"), None),
        ("base", "debug", None),
    ):
        request = RenderRequest(
            out=str(tmp_path / f"music {name}"),
            prompts=[Prompt(prompt="calm piano")],
            model=model,
            adapters=[WeightedAdapter(str(adapter))] if adapter else [],
            settings=sampling,
            device="cpu",
        )
        (piece,) = render(request)
        files[name], wavs[name] = piece.wav, Path(piece.wav).read_bytes()
    assert wavs["run"] == wavs["peft"] == wavs["merged"] != wavs["base"]
    whole, merged = (soundfile.read(files[name])[0] for name in ("whole", "merged"))
    assert abs(whole - merged).max() < 1e-3  # the codec's convolutions are rounded to weight norm
    sidecar = json.loads(Path(files["peft"]).with_suffix(".json").read_text())
    assert sidecar["adapter"]["global_step"] > 0


def test_a_training_run_starts_from_an_exported_adapter(demo_tokens: Path, run_dir: Path, tmp_path: Path) -> None:
    assert main(["export", str(run_dir), str(tmp_path / "peft"), "--format", "peft"]) == 0
    given = settings(max_steps=1, learning_rate=1e-12, weight_decay=0.0, full_models="none")
    request = TrainRequest(
        tokens=str(demo_tokens), run_dir=str(tmp_path / "on"), model="debug", settings=given, device="cpu",
        init_adapter=str(tmp_path / "peft"),
    )  # fmt: skip
    train(request)
    before, after = (
        load_adapter(UPath(folder / "lora_weights" / f"{name}_lora.pt")).lora
        for folder, name in ((run_dir, "best"), (tmp_path / "on", "final"))
    )
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert any(tensor.any() for name, tensor in after.items() if "lora_B" in name)


def test_an_export_is_pushed_and_its_page_named(
    run_dir: Path, tmp_path: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    command = ["export", str(run_dir), str(tmp_path / "out"), "--push-to", "somebody/jazz", "--public"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert f"{hub.url}/somebody/jazz" in printed.out and "on the Hub, public" in printed.out
    assert "Upload, MB: " in printed.out and TOKEN not in printed.out + printed.err
    card = hub.repositories["somebody/jazz"].files["README.md"].decode()
    assert card.count("<audio controls") == 2 and "text: calm piano" in card


# Mistakes


def test_a_failed_push_fails_with_one_line_and_is_made_up_for(
    run_dir: Path, tmp_path: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(Fault("/commit/", status=500, times=99))
    command = ["export", str(run_dir), str(tmp_path / "out"), "--push-to", "somebody/jazz"]
    assert main(command) == 1
    (line,) = errors(capsys)
    assert "somebody/jazz can't be pushed" in line and f"The export in {tmp_path / 'out'} is complete" in line
    hub.faults.clear()
    assert main(command) == 0
    assert "on the Hub, private" in capsys.readouterr().out


def test_an_interrupted_push_names_the_command_that_does_the_rest(
    run_dir: Path, tmp_path: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("musicgen_core.exporting.push.upload_folder", interrupt)
    command = ["export", str(run_dir), str(tmp_path / "out"), "--push-to", "somebody/jazz"]
    assert main(command) == 130
    assert shlex.join(command) in capsys.readouterr().err


def test_a_push_without_a_token_fails_before_the_export(
    run_dir: Path, tmp_path: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run_dir), str(tmp_path / "out"), "--push-to", "somebody/jazz"]) == 1
    (line,) = errors(capsys)
    assert "needs an HF_TOKEN" in line and "https://huggingface.co/settings/tokens" in line
    assert hub.requests == [] and not (tmp_path / "out").exists()


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return [line for line in printed.splitlines() if line.startswith("error: ")]


def test_wrong_usage_lists_every_problem_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--kind=peft"]) == 2
    assert errors(capsys) == [
        "error: there is no option --kind",
        "error: ADAPTER is missing",
        "error: OUT is missing",
    ]


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", str(tmp_path / "out"), "--format", "onnx"]) == 2
    (line,) = errors(capsys)
    assert line == "error: --format: input should be 'peft', 'audiocraft' or 'huggingface', not 'onnx'"


def test_no_adapter_and_a_full_place_fail_with_one_line_each(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out"), "--format", "peft"]) == 1
    (line,) = errors(capsys)
    assert f"there is no adapter at {tmp_path / 'none'}" in line and "adapter_config.json" in line
    assert main(["export", str(run_dir), str(run_dir), "--format", "peft"]) == 1
    (line,) = errors(capsys)
    assert f"{run_dir} has files in it" in line


def test_help_says_what_each_format_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("ADAPTER", "OUT", "PeftModel.from_pretrained", "MusicGen.get_pretrained", "run directory"):
        assert words in printed
