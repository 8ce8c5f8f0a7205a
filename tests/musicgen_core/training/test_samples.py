"""Samples during training: the base model first, then each epoch, without an effect on the adapter."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings, TrainSettings
from musicgen_core.errors import Cancelled
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.samples import Samples, sample_prompts
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest, SameWeights

PROMPTS = ["slow piano", "a fast breakbeat", "bells"]
SAMPLED: dict[str, Any] = {"sample_prompts": PROMPTS, "sample_seconds": 0.4}


def samples_in(run_dir: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((Path(run_dir) / "samples").glob("*.wav"))}


def names_of(*epochs: int) -> list[str]:
    return [f"epoch_00{epoch}_0{i}.wav" for epoch in epochs for i in range(len(PROMPTS))]


@pytest.fixture
def sampled(request_for: MakeRequest) -> TrainRequest:
    """Of a learning rate that is heard at once."""
    request = request_for("sampled", **SAMPLED, learning_rate=3e-2)
    train(request)
    return request


def test_each_epoch_leaves_a_sample_per_prompt_after_the_base_models(sampled: TrainRequest) -> None:
    samples = samples_in(sampled.run_dir)
    assert list(samples) == names_of(0, 1, 2)
    for i in range(len(PROMPTS)):
        assert len({samples[f"epoch_00{epoch}_0{i}.wav"] for epoch in (0, 1, 2)}) == 3  # the change can be heard
    audio, rate = soundfile.read(Path(sampled.run_dir) / "samples" / "epoch_002_01.wav")
    assert (rate, audio.shape) == (32_000, (12_800,)) and np.abs(audio).max() < 1


def page_of(run_dir: str) -> list[str]:
    """Files that the page of a run's samples plays, in its order."""
    page = storage.read_text(storage.as_path(run_dir) / "samples" / "index.html")
    return re.findall(r'<audio [^>]*src="\./([^"]+)"', page)


def test_one_page_plays_the_samples_of_every_epoch_prompt_by_prompt(sampled: TrainRequest) -> None:
    assert page_of(sampled.run_dir) == [f"epoch_00{epoch}_0{i}.wav" for i in range(len(PROMPTS)) for epoch in (0, 1, 2)]
    page = (Path(sampled.run_dir) / "samples" / "index.html").read_text()
    assert re.findall("<h3[^>]*>(.*)</h3>", page) == ["Base model", "After epoch 1", "After epoch 2"] * len(PROMPTS)
    assert re.findall("<h2[^>]*>(.*)</h2>", page) == PROMPTS
    for adapter in set(re.findall(r"lora_weights/lora_epoch_\d\.pt", page)):  # what to generate with, once chosen
        assert (Path(sampled.run_dir) / adapter).exists()


@pytest.mark.parametrize("epoch", [0, 2], ids=["base", "last epoch"])
def test_a_sample_is_what_generate_would_render(sampled: TrainRequest, tmp_path: Path, epoch: int) -> None:
    final = str(Path(sampled.run_dir) / "lora_weights" / "final_lora.pt")
    adapters = [WeightedAdapter(final)] if epoch else []
    settings = SamplingSettings(duration=0.4, seed=sampled.settings.seed)
    prompts = [Prompt(prompt=text) for text in PROMPTS]
    pieces = render(RenderRequest(str(tmp_path / "out"), prompts, sampled.model, settings, adapters, device="cpu"))
    alike = []
    for i, piece in enumerate(pieces):
        expected, _ = soundfile.read(piece.wav)
        found, _ = soundfile.read(Path(sampled.run_dir) / "samples" / f"epoch_00{epoch}_0{i}.wav")
        assert np.corrcoef(expected[:1280], found[:1280])[0, 1] > 0.999
        alike.append(np.corrcoef(expected, found)[0, 1] > 0.999)
    # Not bit for bit: there the adapter is merged, and each prompt renders alone. So a draw of one piece may fall on
    # the other side of a code's share, and the rest of that piece sounds otherwise; hardly of two.
    assert sum(alike) >= len(PROMPTS) - 1


def test_samples_change_nothing_of_what_is_learned(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    left_in: LeftIn,
    same_weights: SameWeights,
) -> None:
    request = request_for(**SAMPLED, save_every_steps=2)
    train(request)
    found, expected = left_in(request.run_dir), left_in(uninterrupted[0].run_dir)
    assert found.untimed_rows == expected.untimed_rows
    for name in ("final_lora", "best_lora", "lora_epoch_1"):
        same_weights(found.adapter(name), expected.adapter(name))


def test_samples_missing_after_an_interruption_are_rendered_later(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(**SAMPLED)
    rendered: list[int] = []
    own = Engine.generate

    def broken_off(self: Engine, *given: Any, **named: Any) -> torch.Tensor:
        rendered.append(len(rendered))
        if len(rendered) == 2:  # of epoch 1, whose checkpoint is written by then
            raise KeyboardInterrupt
        return own(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", broken_off)
        with pytest.raises(KeyboardInterrupt):
            train(request)
    assert list(samples_in(request.run_dir)) == names_of(0)
    train(request)
    assert list(samples_in(request.run_dir)) == names_of(0, 1, 2)


def test_a_run_cancelled_while_rendering_stops_and_resumes_later(request_for: MakeRequest) -> None:
    request = request_for(**SAMPLED)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(len(asked))
        return len(asked) > 10  # the first is rendering the base model

    with pytest.raises(Cancelled):
        train(request, cancelled=cancelled)
    assert samples_in(request.run_dir) == {}
    assert train(request).steps == 6
    assert list(samples_in(request.run_dir)) == names_of(0, 1, 2)


def test_a_sample_that_can_not_be_rendered_is_logged(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*given: Any, **named: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "generate", out_of_memory)
    with caplog.at_level(logging.WARNING):
        assert train(request_for(**SAMPLED)).steps == 6
    reported = [record.message for record in caplog.records if "no samples" in record.message]
    assert [text.split(":")[0] for text in reported] == [f"no samples of epoch {epoch}" for epoch in (0, 1, 2)]


def test_prompts_that_a_full_disk_refuses_cost_nothing_else(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = storage.write_text

    def write_text(target: UPath, text: str) -> None:
        if target.name == "prompts.json":
            raise OSError(28, "No space left on device", str(target))
        whole(target, text)

    monkeypatch.setattr(storage, "write_text", write_text)
    request = request_for(**SAMPLED)
    assert train(request).steps == 6
    assert list(samples_in(request.run_dir)) == names_of(0, 1, 2)


def test_by_default_a_cpu_renders_none_and_a_gpu_the_usual_prompts() -> None:
    here = World.alone(torch.device("cpu"))
    assert sample_prompts(TrainSettings(), here) == ()
    assert sample_prompts(TrainSettings(), replace(here, device=torch.device("cuda"))) == DEFAULT_PROMPTS
    for none in ([], ["", " "]):
        assert sample_prompts(TrainSettings(sample_prompts=none), here) == []


def test_a_training_whose_own_layers_peft_runs_samples_too(request_for: MakeRequest) -> None:
    request = request_for(**SAMPLED, lora_dora=True, learning_rate=3e-2)
    train(request)
    samples = samples_in(request.run_dir)
    assert list(samples) == names_of(0, 1, 2)
    assert samples["epoch_000_00.wav"] != samples["epoch_002_00.wav"]


def test_new_prompts_get_samples_of_the_base_model(request_for: MakeRequest) -> None:
    first = request_for(**SAMPLED, max_steps=3)
    train(first)
    base = samples_in(first.run_dir)["epoch_000_00.wav"]
    rest = request_for(**{**SAMPLED, "sample_prompts": ["bells"]})
    train(rest)
    assert samples_in(rest.run_dir)["epoch_000_00.wav"] != base
    reported = json.loads((Path(rest.run_dir) / "samples" / "prompts.json").read_text())
    assert (reported["prompts"], reported["duration"], reported["seed"]) == (["bells"], 0.4, 0)
    assert page_of(rest.run_dir) == [f"epoch_00{epoch}_00.wav" for epoch in (0, 1, 2)]  # all of these prompts


def test_an_epoch_rendered_with_new_prompts_is_on_the_page(request_for: MakeRequest) -> None:
    train(request_for(**SAMPLED, num_epochs=3, max_steps=6))
    other = request_for(**{**SAMPLED, "sample_prompts": ["bells"]}, num_epochs=3)
    train(other)
    assert page_of(other.run_dir) == [f"epoch_00{epoch}_00.wav" for epoch in (0, 2, 3)]
    first = Path(other.run_dir) / "full_models" / "checkpoint_epoch_1.pt"
    train(replace(other, resume=str(first)))
    assert page_of(other.run_dir) == [f"epoch_00{epoch}_00.wav" for epoch in (0, 1, 2, 3)]


@pytest.mark.parametrize(("since", "epochs"), [({}, (0, 1, 2, 3)), ({"since_epoch": 2}, (0, 2, 3))])
def test_samples_of_an_earlier_version_stay_on_the_page(
    request_for: MakeRequest, since: dict[str, int], epochs: tuple[int, ...]
) -> None:
    begun = request_for(**SAMPLED, num_epochs=3, max_steps=6)
    train(begun)
    prompts = Path(begun.run_dir) / "samples" / "prompts.json"
    reported = json.loads(prompts.read_text())
    assert reported.pop("epochs") == [0, 1, 2]
    prompts.write_text(json.dumps({**reported, **since}))
    train(request_for(**SAMPLED, num_epochs=3))
    assert sorted(page_of(begun.run_dir)) == names_of(*epochs)


@pytest.mark.parametrize("place", ["{}", "memory://{}"])
def test_another_programs_page_among_the_samples_is_kept(
    request_for: MakeRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    request = request_for(**SAMPLED, run_dir=place.format(tmp_path / "run"))
    page = storage.as_path(request.run_dir) / "samples" / "index.html"
    storage.write_text(page, "<title>My own notes</title>")
    with caplog.at_level(logging.WARNING):
        assert train(request).steps == 6
    assert storage.read_text(page) == "<title>My own notes</title>"
    assert "is not a page of samples and is kept" in caplog.text


def test_remote_samples_are_uploaded_and_not_rendered_again(
    request_for: MakeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []
    own = Samples.render

    def render_counted(self: Samples, epoch: int, *given: Any) -> bool:
        rendered.append(epoch)
        return own(self, epoch, *given)

    monkeypatch.setattr(Samples, "render", render_counted)
    run_dir = f"memory://{tmp_path.name}/run"
    for steps in (3, 6):
        train(request_for(**SAMPLED, run_dir=run_dir, max_steps=steps))
    assert rendered == [0, 1, 2]
    remote = storage.as_path(run_dir) / "samples"
    assert sorted(path.name for path in remote.iterdir()) == [*names_of(0, 1, 2), "index.html", "prompts.json"]
    assert sorted(page_of(run_dir)) == names_of(0, 1, 2)


def test_going_back_sets_aside_the_samples_of_what_was_trained_after(sampled: TrainRequest) -> None:
    run_dir = Path(sampled.run_dir)
    checkpoint = str(run_dir / "full_models" / "checkpoint_epoch_1.pt")
    last = samples_in(sampled.run_dir)["epoch_002_00.wav"]
    train(replace(sampled, resume=checkpoint))
    superseded = run_dir / "superseded" / "1" / "samples"
    assert sorted(path.name for path in superseded.iterdir()) == names_of(2)
    assert sorted(page_of(sampled.run_dir)) == names_of(0, 1, 2)
    assert samples_in(sampled.run_dir)["epoch_002_00.wav"] == last  # trained again alike


def test_samples_that_keep_other_processes_waiting_are_given_up(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Samples, "_deadline", lambda self: 0.0)
    with caplog.at_level(logging.WARNING):
        assert train(request_for(**SAMPLED)).steps == 6
    assert samples_in(request_for().run_dir) == {}
    assert "it took too long while other processes wait" in caplog.text
