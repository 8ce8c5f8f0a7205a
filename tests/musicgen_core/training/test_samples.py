"""Sample clips of a training: the base model first, then each epoch, and nothing of it touches what is learned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings, TrainSettings
from musicgen_core.errors import Cancelled
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.training.distributed import World
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.samples import sample_prompts
from musicgen_core.training.train import train

MakeRequest = Callable[..., TrainRequest]
LeftIn = Callable[[str], Any]
SameWeights = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]
PROMPTS = ["slow piano", "a fast breakbeat"]
SAMPLED: dict[str, Any] = {"sample_prompts": PROMPTS, "sample_seconds": 0.4}


def samples_in(run_dir: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((Path(run_dir) / "samples").iterdir())}


def names_of(*epochs: int) -> list[str]:
    return [f"epoch_00{epoch}_0{i}.wav" for epoch in epochs for i in range(len(PROMPTS))]


@pytest.fixture
def sampled(request_for: MakeRequest) -> TrainRequest:
    """Of a learning rate that is heard at once."""
    request = request_for("sampled", **SAMPLED, learning_rate=3e-2)
    train(request)
    return request


def test_each_epoch_leaves_a_sample_a_prompt_and_the_base_model_the_first(sampled: TrainRequest) -> None:
    samples = samples_in(sampled.run_dir)
    assert list(samples) == names_of(0, 1, 2)
    for i in range(len(PROMPTS)):
        assert len({samples[f"epoch_00{epoch}_0{i}.wav"] for epoch in (0, 1, 2)}) == 3  # the change can be heard
    audio, rate = soundfile.read(Path(sampled.run_dir) / "samples" / "epoch_002_01.wav")
    assert (rate, audio.shape) == (32_000, (12_800,)) and np.abs(audio).max() < 1


@pytest.mark.parametrize("epoch", [0, 2], ids=["base", "last epoch"])
def test_a_sample_is_what_generate_would_render(sampled: TrainRequest, tmp_path: Path, epoch: int) -> None:
    adapter = str(Path(sampled.run_dir) / "lora_weights" / "final_lora.pt") if epoch else None
    settings = SamplingSettings(duration=0.4, seed=sampled.settings.seed)
    prompts = [Prompt(prompt=text) for text in PROMPTS]
    pieces = render(RenderRequest(str(tmp_path / "out"), prompts, sampled.model, settings, adapter, device="cpu"))
    for i, piece in enumerate(pieces):
        expected, _ = soundfile.read(piece.wav)
        found, _ = soundfile.read(Path(sampled.run_dir) / "samples" / f"epoch_00{epoch}_0{i}.wav")
        # Not bit for bit: there the adapter is merged, and each prompt renders alone.
        assert np.corrcoef(expected, found)[0, 1] > 0.999


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


def test_what_an_interrupted_training_did_not_render_is_rendered_when_it_goes_on(
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


def test_told_to_stop_while_it_renders_the_training_stops_and_goes_on_later(request_for: MakeRequest) -> None:
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


def test_a_sample_that_can_not_be_rendered_is_told_and_costs_nothing_else(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*given: Any, **named: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "generate", out_of_memory)
    with caplog.at_level(logging.WARNING):
        assert train(request_for(**SAMPLED)).steps == 6
    told = [record.message for record in caplog.records if "no samples" in record.message]
    assert [text.split(":")[0] for text in told] == [f"no samples of epoch {epoch}" for epoch in (0, 1, 2)]


def test_by_default_a_cpu_renders_none_and_a_gpu_the_usual_prompts() -> None:
    here = World.alone(torch.device("cpu"))
    assert sample_prompts(TrainSettings(), here) == ()
    assert sample_prompts(TrainSettings(), replace(here, device=torch.device("cuda"))) == DEFAULT_PROMPTS
    assert sample_prompts(TrainSettings(sample_prompts=[]), here) == []


def test_a_training_whose_own_layers_peft_runs_samples_too(request_for: MakeRequest) -> None:
    request = request_for(**SAMPLED, lora_dora=True, learning_rate=3e-2)
    train(request)
    samples = samples_in(request.run_dir)
    assert list(samples) == names_of(0, 1, 2)
    assert samples["epoch_000_00.wav"] != samples["epoch_002_00.wav"]
