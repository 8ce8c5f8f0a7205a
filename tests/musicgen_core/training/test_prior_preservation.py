"""Prior preservation: clips that the base model generates, mixed into each epoch and never into validation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.shards import described_clips
from musicgen_core.errors import Cancelled, ConfigError, RunDirectoryError
from musicgen_core.generation.engine import Engine
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.settings import validate
from musicgen_core.training import prior_preservation
from musicgen_core.training.batches import BatchSize
from musicgen_core.training.files.checkpoint import load_checkpoint
from musicgen_core.training.loop import Trainer
from musicgen_core.training.prior_preservation import PriorRequest, general_prompts, load_prior, prior_share
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest

SHORT = {"segment_seconds": 0.4, "full_models": "none"}
WITH_PRIOR = {"prior_preservation": 0.5, **SHORT}
PROMPTS = general_prompts(TrainSettings())


@pytest.fixture(scope="module")
def text(debug_model: BaseModel) -> TextEncoder:
    return TextEncoder(debug_model.text_encoder)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips each call of the engine was asked for, from here on."""
    calls: list[int] = []
    whole = Engine.generate

    def counting(self: Engine, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(prompts))
        return whole(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Engine, "generate", counting)
    return calls


def shard_of(request: TrainRequest) -> Path:
    (parquet,) = (Path(request.run_dir) / "prior").glob("*.parquet")
    return parquet


def prior_clips(request: TrainRequest, model: BaseModel) -> Clips:
    return load_clips(storage.as_path(request.run_dir) / "prior", codec_identity(model))


# What an epoch holds


@pytest.mark.parametrize(
    ("own", "fraction", "share"), [(75, 0.25, 25), (100, 0.5, 100), (9, 0.1, 1), (3, 0.01, 1), (10, 0.99, 990)]
)
def test_the_share_of_an_epoch_is_the_fraction(own: int, fraction: float, share: int) -> None:
    assert prior_share(own, fraction) == share


@pytest.mark.parametrize("most", [256, 2])
def test_an_epoch_holds_each_own_clip_once_and_the_fraction(
    request_for: MakeRequest,
    debug_model: BaseModel,
    clips: Clips,
    text: TextEncoder,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prior_preservation, "MAX_CLIPS", most)
    request = request_for(max_steps=1, **WITH_PRIOR)
    train(request)
    made = prior_clips(request, debug_model)
    assert len(made) == min(5, most)  # five of the six clips train
    trainer = Trainer(
        lm=load_lm(debug_model, "cpu", torch.float32),
        text=text,
        clips=clips,
        settings=request.settings,
        batch_size=BatchSize(2, 1),
        cfg_dropout=0.0,
        prior=made,
    )
    assert trainer.order.steps_per_epoch == 5
    for epoch in (0, 1):
        steps = range(5 * epoch + 1, 5 * epoch + 6)
        seen = Counter(int(one) for step in steps for one in trainer.batches.of_step(step).hashes)
        own, generated = (Counter({one: seen[one] for one in map(int, of)}) for of in (clips.hashes, made.hashes))
        assert own + generated == seen
        assert (own.total(), max(own.values()), generated.total()) == (5, 1, 5)
        assert max(generated.values()) - min(generated.values()) <= 1
    assert trainer.batches.validation_clips.max() < len(clips)
    assert not set(trainer.batches.training_clips) & set(trainer.batches.validation_clips)


def test_generated_clips_have_a_segments_length_and_their_prompts(
    request_for: MakeRequest, debug_model: BaseModel
) -> None:
    request = request_for(max_steps=1, **WITH_PRIOR)
    train(request)
    made = prior_clips(request, debug_model)
    assert set(made.frames.tolist()) == {20}
    assert [made.description(i) for i in range(5)] == PROMPTS[:5]
    assert len({made.codes_of(i).tobytes() for i in range(5)}) == 5


def test_prompts_come_from_a_file_and_take_turns(request_for: MakeRequest, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("slow jazz\n\nfast rock\n")
    request = request_for(max_steps=1, prior_prompts=str(tmp_path / "prompts.txt"), **WITH_PRIOR)
    train(request)
    parquet = shard_of(request)
    described = described_clips(storage.as_path(parquet.parent), parquet.stem)
    assert [words for _, words in described] == ["slow jazz", "fast rock", "slow jazz", "fast rock", "slow jazz"]


def test_validation_is_the_same_with_and_without_generated_clips(
    request_for: MakeRequest, left_in: LeftIn, debug_model: BaseModel
) -> None:
    losses = []
    for name, given in (("with", WITH_PRIOR), ("without", SHORT)):
        request = request_for(name, max_steps=1, learning_rate=1e-12, **given)
        train(request)
        losses.append([row["val/loss"] for row in left_in(request.run_dir).rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_progress_is_reported_in_frames_before_the_first_step(request_for: MakeRequest) -> None:
    heard: list[tuple[str, int, int]] = []
    train(
        request_for(max_steps=1, **WITH_PRIOR),
        on_start=lambda done, total: heard.append(("start", done, total)),
        on_prior=lambda done, total: heard.append(("prior", done, total)),
    )
    *progress, last = heard
    assert last == ("start", 0, 1) and progress[-1] == ("prior", 5 * 20, 5 * 20)
    assert progress == sorted(progress)


def helping_rank(batches: int) -> World:
    """Return rank 1 of two, while rank 0 generates so many batches."""
    answers = iter([*([True] * batches), False])

    class HelpingRank(World):
        def any(self, flag: bool) -> bool:
            assert not flag
            return next(answers)

    return HelpingRank(1, 2, torch.device("cpu"))


def test_other_ranks_wait_for_the_main_one_and_read_the_same(
    request_for: MakeRequest, debug_model: BaseModel, text: TextEncoder, generated: list[int]
) -> None:
    request = request_for(max_steps=1, **WITH_PRIOR)
    train(request)
    made = len(generated)
    wanted = PriorRequest.of(request.settings, debug_model, PROMPTS, own=5)
    found = load_prior(
        folder=storage.as_path(request.run_dir) / "prior",
        request=wanted,
        model=debug_model,
        text=text,
        world=helping_rank(batches=2),
        on_progress=lambda done, total: None,
        cancelled=lambda: False,
        is_resumed=False,
    )
    assert len(generated) == made
    assert found.hashes.tolist() == prior_clips(request, debug_model).hashes.tolist()


# Resuming


def test_a_resumed_run_learns_the_same_from_the_same_generated_clips(
    request_for: MakeRequest,
    killed_after: Callable[[TrainRequest, int], None],
    left_in: LeftIn,
    same_weights: Callable[..., None],
    generated: list[int],
) -> None:
    whole, cut_off = request_for("whole", **WITH_PRIOR), request_for("cut off", **WITH_PRIOR)
    train(whole)
    killed_after(cut_off, 3)
    before = len(generated)
    assert train(cut_off).resumed_from == 3
    assert len(generated) == before, "they are generated once a run"
    same_weights(left_in(cut_off.run_dir).adapter(), left_in(whole.run_dir).adapter())
    assert left_in(cut_off.run_dir).untimed_rows == left_in(whole.run_dir).untimed_rows


@pytest.mark.parametrize("damage", ["parquet", "json", "missing"])
def test_damaged_generated_clips_are_generated_again_and_are_the_same(
    damage: str,
    request_for: MakeRequest,
    killed_after: Callable[[TrainRequest, int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = request_for(**WITH_PRIOR)
    killed_after(request, 3)
    parquet = shard_of(request)
    whole = parquet.read_bytes()
    if damage == "parquet":
        middle = len(whole) // 3
        parquet.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    elif damage == "json":
        parquet.with_suffix(".json").write_text("{")
    else:
        parquet.unlink()
    assert train(request).resumed_from == 3
    assert parquet.read_bytes() == whole
    assert "missing or damaged and are generated again" in caplog.text


def test_a_run_cancelled_while_it_generates_can_start_again(request_for: MakeRequest) -> None:
    request = request_for(max_steps=1, **WITH_PRIOR)
    with pytest.raises(Cancelled, match="generating was cancelled"):
        train(request, cancelled=lambda: True)
    assert not (Path(request.run_dir) / "prior").exists()
    assert train(request).steps == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prior_preservation": 0.0}, "prior_preservation is 0.5 there and 0.0 here"),
        ({"prior_preservation": 0.2}, "prior_preservation is 0.5 there and 0.2 here"),
        ({"prior_prompts": "one.txt"}, r"general_prompts is 64 texts \(\w+\) there and 1 text \(\w+\) here"),
    ],
    ids=str,
)
def test_another_share_or_other_prompts_are_another_run(
    change: dict[str, Any],
    named: str,
    request_for: MakeRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("slow jazz")
    request = request_for(max_steps=1, **WITH_PRIOR)
    train(request)
    other = request.settings.model_copy(update={"max_steps": 2, **change})
    with pytest.raises(RunDirectoryError, match=named):
        train(dataclasses.replace(request, settings=other))


# Without


def test_without_it_a_run_generates_and_notes_nothing(request_for: MakeRequest, generated: list[int]) -> None:
    request = request_for(max_steps=1, **SHORT)
    train(request)
    assert not generated and not (Path(request.run_dir) / "prior").exists()
    fixed = load_checkpoint(storage.as_path(request.run_dir) / "latest.pt").fixed
    assert not {"prior_preservation", "general_prompts"} & fixed.keys()


# What is refused


def test_wrong_values_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        validate(TrainSettings, {"prior_preservation": 1.0, "prior_prompts": 3, "seed": -1})
    assert all(name in refused.value.found for name in ("3 problems", "prior_preservation", "prior_prompts", "seed"))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_is_at_least_0_and_below_1(fraction: float) -> None:
    with pytest.raises(ConfigError, match="prior_preservation"):
        validate(TrainSettings, {"prior_preservation": fraction})


def test_prompts_without_a_fraction_are_refused() -> None:
    with pytest.raises(ConfigError, match="prior_prompts: should only be given with prior_preservation"):
        validate(TrainSettings, {"prior_prompts": "prompts.txt"})


def test_general_prompts_are_short_and_different() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) == 64
    assert all(len(words) < 80 for words in PROMPTS)
