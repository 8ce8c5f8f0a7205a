"""A run of other inputs is refused, with every difference, and left unchanged."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import Cancelled, RunDirectoryError
from musicgen_core.evaluation.evaluate import stored_evaluation
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.files.resuming import check_same, fixed_values
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest

SHARDS = {f"archive_batch_{i:04d}": f"codes{i} captions{i}" for i in range(9)}


def fixed(base: str = "debug@sha256:0", shards: dict[str, str] | None = None, **given: Any) -> dict[str, Any]:
    return fixed_values(TrainSettings(**given), base, 16, SHARDS if shards is None else shards)


def refusal(then: dict[str, Any], now: dict[str, Any]) -> str:
    with pytest.raises(RunDirectoryError) as refused:
        check_same(then, now, "/runs/one")
    return refused.value.found


@pytest.mark.parametrize(
    "given",
    [{"learning_rate": 1.0}, {"num_epochs": 9}, {"weight_decay": 0.0}, {"keep_last": 1}, {"schedule": "cosine"}],
    ids=str,
)
def test_what_may_change_is_no_other_training(given: dict[str, Any]) -> None:
    check_same(fixed(), fixed(**given), "/runs/one")


@pytest.mark.parametrize(
    "given",
    [
        *({"lora_r": 4}, {"lora_alpha": 8.0}, {"lora_dropout": 0.0}, {"seed": 1}, {"validation_fraction": 0.5}),
        *({"layers": "1"}, {"ranks": "0=2"}, {"optimizer_name": "prodigy"}),
    ],
    ids=str,
)
def test_what_must_not_change_is_refused_with_both_values(given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    default = TrainSettings().model_dump(mode="json")[name]
    assert f"{name} is {default} there and {value} here" in refusal(fixed(), fixed(**given))


def test_every_difference_is_named_at_once() -> None:
    found = refusal(fixed(), fixed("debug@sha256:1", SHARDS | {"new": "a b"}, lora_r=4, lora_alpha=8))
    assert all(word in found for word in ("base_model", "lora_r", "lora_alpha", "new", "/runs/one"))


def test_a_model_is_the_same_under_another_name() -> None:
    check_same(fixed("facebook/musicgen-small@sha256:0"), fixed("local@sha256:0"), "/runs/one")


def test_archives_that_came_went_or_changed_are_named() -> None:
    now = {stem: value for stem, value in SHARDS.items() if not stem.endswith("1")}
    now |= {"new": "a b", "archive_batch_0002": "other captions2", "archive_batch_0003": "codes3 other"}
    found = refusal(fixed(), fixed(shards=now))
    assert "were added: new" in found and "are missing: archive_batch_0001" in found
    assert "other contents: archive_batch_0002" in found and "other descriptions: archive_batch_0003" in found


def test_of_many_archives_a_few_are_named_and_the_rest_counted() -> None:
    assert "archive_batch_0004 and 4 more" in refusal(fixed(), fixed(shards={}))


def copied(tokens: Path, folder: Path, *stems: str) -> Path:
    """The only archive of `tokens` as archives of other names and contents."""
    folder.mkdir()
    for file in tokens.iterdir():
        for stem in stems:
            path = folder / f"{stem}{file.suffix}"
            path.write_bytes(file.read_bytes())
            if file.suffix == ".json":
                path.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": stem}))
    return folder


def test_archives_added_during_a_run_are_ignored_and_logged(
    request_for: MakeRequest, tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = copied(tokens, tmp_path / "more", "archive_batch_0000")
    interrupted = dataclasses.replace(request_for("interrupted", max_steps=4), tokens=str(more))
    done: list[Any] = []
    with pytest.raises(Cancelled):
        train(interrupted, on_step=done.append, cancelled=partial(bool, done))
    copied(tokens, tmp_path / "new", "archive_batch_0001")
    for file in (tmp_path / "new").iterdir():
        file.rename(more / file.name)
    assert train(interrupted).resumed_from > 0
    assert "archives added since this run began are ignored until the next run: archive_batch_0001" in caplog.text
    whole = request_for("whole", max_steps=4)
    train(dataclasses.replace(whole, tokens=str(copied(tokens, tmp_path / "as before", "archive_batch_0000"))))
    one, other = (
        load_adapter(storage.as_path(request.run_dir) / "lora_weights" / "final_lora.pt").lora
        for request in (interrupted, whole)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_damaged_files_beside_latest_do_not_stop_a_run(
    request_for: MakeRequest, left_in: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(max_steps=4, full_models="none", sample_prompts=["calm"], sample_seconds=0.2)
    done: list[Any] = []

    def count(row: Any) -> None:
        done.append(row)

    with pytest.raises(Cancelled):
        train(request, on_step=count, cancelled=lambda: len(done) > 2)
    root = Path(request.run_dir)
    first, second, *others = (root / "metrics.jsonl").read_bytes().splitlines()
    (root / "metrics.jsonl").write_bytes(b"\n".join([first, second[:-9] + b"\xff", *others]) + b"\n")
    for name in ("config.json", "samples/prompts.json", "wandb/logged.json"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(b"\xff\xfe[1")
    (root / "evaluation").mkdir()
    os.mkfifo(root / "evaluation" / "evaluation.json")
    os.mkfifo(root / "checkpoint_step_99.pt")
    result = train(request)
    assert result.resumed_from == 3 and result.steps == 4
    assert [row["step"] for row in left_in(request.run_dir).rows] == [1, 3, 4]
    assert (root / "metrics.damaged-1.jsonl").exists() and (root / "config.damaged-1.json").exists()
    assert stored_evaluation(root) is None
    assert "config.json can't be read" in caplog.text


def test_a_run_whose_archives_are_gone_is_refused_and_left_alone(
    request_for: MakeRequest, tokens: Path, tmp_path: Path
) -> None:
    request = request_for(max_steps=1)
    train(request)
    other = copied(tokens, tmp_path / "other", "archive_batch_0001")
    with pytest.raises(RunDirectoryError, match=r"archives were added: archive_batch_0001.*are missing"):
        train(dataclasses.replace(request, tokens=str(other)))
    assert train(request).steps == 1


@pytest.mark.parametrize(
    ("other", "difference"),
    [({"lora_r": 4}, "lora_r is 8 there and 4 here"), ({"seed": 1}, "seed is 0 there and 1 here")],
)
@pytest.mark.parametrize("resume", ["auto", "checkpoint_step_2.pt"])
def test_a_run_of_other_settings_is_refused_with_the_difference(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    other: dict[str, Any],
    difference: str,
    resume: str,
    left_in: Callable[[str], Any],
) -> None:
    run_dir = uninterrupted[0].run_dir
    before = left_in(run_dir).contents
    by_name = resume if resume == "auto" else f"{run_dir}/{resume}"
    with pytest.raises(RunDirectoryError, match=difference):
        train(request_for(run_dir=run_dir, resume=by_name, **other))
    assert left_in(run_dir).contents == before


@pytest.fixture
def other_model(debug_model: BaseModel, tmp_path: Path) -> BaseModel:
    """The debug model with another bit at the end of its file: the same shapes, another hash."""
    other = BaseModel("other", tmp_path / "other_model")
    other.directory.mkdir()
    for file in debug_model.directory.iterdir():
        if file.name != "state_dict.bin":
            (other.directory / file.name).symlink_to(file)
    other.lm_path.write_bytes(debug_model.lm_path.read_bytes() + b"\0")
    return other


def test_a_run_of_another_model_is_refused_with_both(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    other_model: BaseModel,
    debug_model: BaseModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(RunDirectoryError) as refused:
        train(request_for(run_dir=uninterrupted[0].run_dir, model=str(other_model.directory)))
    hashes = [model.identity.rpartition("@")[2] for model in (other_model, debug_model)]
    assert all(digest in refused.value.found for digest in hashes)
    assert "resuming" not in caplog.text


def test_a_checkpoint_of_another_model_is_refused_for_a_new_run(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, other_model: BaseModel
) -> None:
    checkpoint = f"{uninterrupted[0].run_dir}/checkpoint_step_2.pt"
    with pytest.raises(RunDirectoryError, match=r"checkpoint_step_2\.pt belongs to another run: base_model is"):
        train(request_for("new", model=str(other_model.directory), resume=checkpoint))


def test_a_foreign_checkpoint_is_refused_in_the_directory_of_a_run(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    request = request_for("own", max_steps=1)
    train(request)
    elsewhere = f"{uninterrupted[0].run_dir}/checkpoint_step_2.pt"
    with pytest.raises(RunDirectoryError, match="holds a training run of its own"):
        train(dataclasses.replace(request, resume=elsewhere))


def test_resume_never_refuses_a_directory_with_a_training_in_it(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    with pytest.raises(RunDirectoryError, match="holds a training run, and resume is never") as refused:
        train(request_for(run_dir=uninterrupted[0].run_dir, resume="never"))
    assert "--resume auto" in refused.value.next_step
    assert train(request_for("fresh", resume="never", max_steps=1)).steps == 1


@pytest.mark.parametrize(
    "name", ["full_models/best_model.pt", "full_models/final_model.pt", "lora_weights/best_lora.pt"]
)
def test_weights_alone_are_not_resumed_from(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, name: str
) -> None:
    with pytest.raises(RunDirectoryError, match=name) as refused:
        train(request_for(resume=f"{uninterrupted[0].run_dir}/{name}"))
    assert "--init-adapter" in refused.value.next_step
