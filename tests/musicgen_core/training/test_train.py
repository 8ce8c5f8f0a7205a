"""Whole trainings: the files they leave, and that nothing shows of an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_core import storage, tracking
from musicgen_core.config import TrainSettings
from musicgen_core.errors import AdapterError, Cancelled, RunDirectoryError, TokensError
from musicgen_core.model.lora import load_adapter
from musicgen_core.model.weights import BaseModel
from musicgen_core.training import saving
from musicgen_core.training.distributed import World
from musicgen_core.training.loop import Trainer
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.run_directory import RunDirectory
from musicgen_core.training.train import train

MakeRequest = Callable[..., TrainRequest]
MakeTokens = Callable[..., Path]
Row = dict[str, float]

SAVE_EVERY = 2
FILES = {
    "config.json",
    "latest.pt",
    "loss.png",
    "metrics.jsonl",
    *(f"checkpoint_step_{step}.pt" for step in (2, 4, 6)),
    *(f"full_models/{name}.pt" for name in ("best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2")),
    *(f"lora_weights/{name}_lora.pt" for name in ("best", "final", "latest")),
    *(f"lora_weights/lora_epoch_{epoch}.pt" for epoch in (1, 2)),
}


class Killed(BaseException):
    """Like Prefect's TerminationSignal: no Exception, and it can come at any place."""


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def uninterrupted(
    debug_model: BaseModel, tokens: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, TrainResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        settings = {"batch_size": 2, "gradient_accumulation_steps": 1, "num_epochs": 2, "learning_rate": 1e-3}
        request = TrainRequest(
            str(tokens),
            str(tmp_path_factory.mktemp("run") / "run"),
            str(debug_model.directory),
            TrainSettings(**settings, save_every_steps=SAVE_EVERY),
            device="cpu",
        )
        return request, train(request)


def files_in(run_dir: str) -> set[str]:
    root = storage.as_path(run_dir)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def rows_of(run_dir: str) -> list[Row]:
    return tracking.read_metrics(Path(run_dir) / "metrics.jsonl")


def without_times(row: Row) -> Row:
    return {name: value for name, value in row.items() if "sec" not in name}


def contents_of(run_dir: str) -> dict[str, tuple[int, bytes]]:
    root = Path(run_dir)
    return {name: ((root / name).stat().st_mtime_ns, (root / name).read_bytes()) for name in files_in(run_dir)}


def adapter_in(run_dir: str, name: str = "final_lora") -> dict[str, torch.Tensor]:
    return load_adapter(storage.as_path(run_dir) / "lora_weights" / f"{name}.pt").lora


def assert_same_training(run_dir: str, expected_dir: str) -> None:
    """The same files, the same metrics, each step once, and adapters that are the same bit for bit."""
    assert files_in(run_dir) == files_in(expected_dir)
    assert [without_times(row) for row in rows_of(run_dir)] == [without_times(row) for row in rows_of(expected_dir)]
    for name in ("final_lora", "best_lora", "latest_lora", "lora_epoch_1"):
        adapter, expected = adapter_in(run_dir, name), adapter_in(expected_dir, name)
        assert adapter.keys() == expected.keys()
        assert all(torch.equal(adapter[key], expected[key]) for key in expected)
    for name in ("best_model", "final_model"):
        full = torch.load(Path(run_dir) / "full_models" / f"{name}.pt", weights_only=True)["best_state"]
        wanted = torch.load(Path(expected_dir) / "full_models" / f"{name}.pt", weights_only=True)["best_state"]
        assert all(torch.equal(full[key], wanted[key]) for key in wanted)


# What a training leaves


def test_the_run_directory_holds_exactly_these_files(uninterrupted: tuple[TrainRequest, TrainResult]) -> None:
    run_dir = uninterrupted[0].run_dir
    assert files_in(run_dir) == FILES
    assert (Path(run_dir) / "samples").is_dir()


def test_each_step_stands_in_the_metrics_once_with_these_names(uninterrupted: tuple[TrainRequest, TrainResult]) -> None:
    rows = rows_of(uninterrupted[0].run_dir)
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    of_a_step = {"step", "epoch", "train/loss", "train/lr", "train/grad_norm", "train/skipped_steps"}
    of_a_step |= {"train/audio_seconds_per_sec"}
    of_an_epoch = {"train/epoch_loss", "val/loss", "val/perplexity", "epoch_seconds", "best/loss"}
    of_an_epoch |= {f"val/{name}_codebook_{k}" for name in ("loss", "perplexity") for k in range(4)}
    assert [row.keys() - of_a_step for row in rows] == [set(), set(), of_an_epoch, set(), set(), of_an_epoch]
    assert all(row.keys() >= of_a_step for row in rows)


def test_the_config_tells_what_was_trained(
    uninterrupted: tuple[TrainRequest, TrainResult], debug_model: BaseModel
) -> None:
    config = json.loads((Path(uninterrupted[0].run_dir) / "config.json").read_text())
    assert config["model_dir"] == str(debug_model.directory)
    assert config["base_model"].rpartition("@")[2] == debug_model.identity.rpartition("@")[2]
    assert (config["lora_r"], config["lora_alpha"], config["batch_size"]) == (8, 32, 2)
    assert config["versions"].keys() >= {"torch", "peft", "audiocraft"}


def test_adapters_say_which_step_they_are_of(uninterrupted: tuple[TrainRequest, TrainResult]) -> None:
    folder = storage.as_path(uninterrupted[0].run_dir) / "lora_weights"
    adapters = {name: load_adapter(folder / f"{name}.pt") for name in ("lora_epoch_1", "final_lora", "latest_lora")}
    assert {name: (a.epoch, a.global_step) for name, a in adapters.items()} == {
        "lora_epoch_1": (1, 3),
        "final_lora": (2, 6),
        "latest_lora": (2, 6),
    }
    assert adapters["final_lora"].loss == rows_of(uninterrupted[0].run_dir)[-1]["train/loss"]


def test_the_result_sums_it_up(uninterrupted: tuple[TrainRequest, TrainResult]) -> None:
    request, result = uninterrupted
    rows = rows_of(request.run_dir)
    assert (result.steps, result.epochs, result.resumed_from) == (6, 2, 0)
    epochs = [row["train/epoch_loss"] for row in rows if "train/epoch_loss" in row]
    assert (result.first_loss, result.last_loss) == (epochs[0], epochs[-1])
    assert result.best_loss == min(rows[2]["val/loss"], rows[5]["val/loss"])


def test_a_remote_run_directory_gets_every_file(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, tmp_path: Path
) -> None:
    remote = f"memory://{tmp_path.name}/runs/one"
    done = train(request_for(run_dir=remote, save_every_steps=SAVE_EVERY))
    assert done.run_dir == remote
    assert files_in(remote) == FILES
    lines = (storage.as_path(remote) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    final, expected = adapter_in(remote), adapter_in(uninterrupted[0].run_dir)
    assert all(torch.equal(final[name], expected[name]) for name in expected)


# What is learned


def repeated_clips() -> list[np.ndarray]:
    """Clips of four codes that take turns: easy to learn."""
    return [np.tile(np.array([[i], [40 + i], [80 + i], [120 + i]], dtype=np.uint16), (1, 40)) for i in (1, 2, 3, 4)]


def test_the_loss_falls_where_there_is_something_to_learn(request_for: MakeRequest, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(repeated_clips() * 40)
    request = request_for(tokens=str(tokens), batch_size=8, num_epochs=2, learning_rate=1e-2, lora_dropout=0)
    result = train(request)
    first, last = (rows_of(request.run_dir)[index]["train/loss"] for index in (0, -1))
    assert last < 0.5 * first
    assert result.best_loss is not None and result.best_loss < 0.5 * first


def test_the_lowest_validation_loss_is_the_best(request_for: MakeRequest) -> None:
    """On noise, validation gets worse with time, while training gets better."""
    request = request_for(num_epochs=4, learning_rate=5e-2)
    result = train(request)
    rows = [row for row in rows_of(request.run_dir) if "val/loss" in row]
    by_epoch = [row["val/loss"] for row in rows]
    best_epoch = int(np.argmin(by_epoch)) + 1
    assert (result.best_epoch, result.best_loss) == (best_epoch, min(by_epoch))
    assert best_epoch != 1 + int(np.argmin([row["train/epoch_loss"] for row in rows]))  # the two would disagree
    best, expected = (adapter_in(request.run_dir, name) for name in ("best_lora", f"lora_epoch_{best_epoch}"))
    assert all(torch.equal(best[name], expected[name]) for name in expected)


def test_one_clip_is_enough_and_the_training_loss_selects(request_for: MakeRequest, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([np.ones((4, 30), dtype=np.uint16)])
    request = request_for(tokens=str(tokens), num_epochs=3)
    result = train(request)
    rows = rows_of(request.run_dir)
    assert len(rows) == 3 and not any("val/loss" in row for row in rows)
    assert result.best_loss == min(row["train/epoch_loss"] for row in rows)


def test_a_training_can_start_from_an_adapter(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    request = request_for(init_adapter=uninterrupted[0].run_dir, learning_rate=1e-12, max_steps=1)
    train(request)
    final, start = adapter_in(request.run_dir), adapter_in(uninterrupted[0].run_dir, "best_lora")
    for name, tensor in start.items():
        torch.testing.assert_close(final[name], tensor, atol=1e-7, rtol=0)


@pytest.mark.parametrize("other", [{"lora_r": 4}, {"lora_alpha": 8}])
def test_an_adapter_of_another_shape_is_no_start(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, other: dict[str, Any]
) -> None:
    with pytest.raises(AdapterError, match="lora_r 8 and lora_alpha 32") as refused:
        train(request_for(init_adapter=uninterrupted[0].run_dir, **other))
    assert "--lora-r 8 --lora-alpha 32" in refused.value.next_step


def test_tokens_of_another_codec_are_refused(request_for: MakeRequest, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(repeated_clips(), codec="sha256:0123")
    with pytest.raises(TokensError, match="sha256:0123"):
        train(request_for(tokens=str(tokens)))


# Resuming


@contextlib.contextmanager
def killed_in(function: str, call: int, by: BaseException) -> Iterator[None]:
    """Raises instead of the `call`-th call, from 1, of a function that saving.py uses, and expects it to come out."""
    calls = 0
    whole = getattr(saving, function)

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise by
        return whole(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, function, killing)
        with pytest.raises(type(by)):
            yield


@pytest.mark.parametrize("steps", [[2], [3], [1, 4, 5], [6]], ids=str)
def test_killed_after_a_step_and_started_again_nothing_shows(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, steps: list[int]
) -> None:
    request = request_for(save_every_steps=SAVE_EVERY)
    for step in steps:

        def kill(row: Row, step: int = step) -> None:
            if row["step"] == step:
                raise Killed

        with pytest.raises(Killed):
            train(request, on_step=kill)
    result = train(request)
    assert result.resumed_from == steps[-1]
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


def test_cancelled_at_every_step_and_started_again_nothing_shows(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    request = request_for(save_every_steps=SAVE_EVERY)
    for step in range(1, 6):
        done: list[Row] = []
        with pytest.raises(Cancelled, match=f"after step {step}"):
            train(request, on_step=done.append, cancelled=partial(bool, done))
    assert train(request).resumed_from == 5
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("save_adapter", 2),  # lora_epoch_1: the step checkpoint's latest_lora is the first
        ("save_adapter", 3),  # best_lora
        ("save_checkpoint", 2),  # checkpoint_step_2, after latest
        ("save_checkpoint", 3),  # owed, what the full models of the epoch are made from
        ("save_checkpoint", 4),  # latest, at the end of the epoch
        ("save_checkpoint", 9),  # the second epoch
    ],
)
def test_killed_between_the_files_of_an_epochs_end_and_started_again_nothing_shows(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, function: str, call: int
) -> None:
    request = request_for(save_every_steps=SAVE_EVERY)
    with killed_in(function, call, Killed()):
        train(request)
    train(request)
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


@pytest.mark.parametrize("call", range(3, 20, 4))
def test_gone_without_a_word_at_any_file_and_started_again_nothing_shows(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """As after SIGKILL: from the `call`-th file on nothing is written any more, also not on the way out."""
    whole, calls = storage.publish, 0

    @contextlib.contextmanager
    def publish(target: Any) -> Iterator[Path]:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise Killed
        with whole(target) as path:
            yield path

    request = request_for(save_every_steps=SAVE_EVERY)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", publish)
        with pytest.raises(Killed):
            train(request)
    train(request)
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


def test_a_remote_training_resumes_too(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, tmp_path: Path
) -> None:
    request = request_for(run_dir=f"memory://{tmp_path.name}/run", save_every_steps=SAVE_EVERY)
    for step in (3, 4):

        def kill(row: Row, step: int = step) -> None:
            if row["step"] == step:
                raise Killed

        with pytest.raises(Killed):
            train(request, on_step=kill)
    train(request)
    assert files_in(request.run_dir) == FILES
    lines = (storage.as_path(request.run_dir) / "metrics.jsonl").read_text().splitlines()
    expected = [without_times(row) for row in rows_of(uninterrupted[0].run_dir)]
    assert [without_times(json.loads(line)) for line in lines] == expected


def test_with_latest_damaged_it_goes_on_from_the_one_before(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(save_every_steps=SAVE_EVERY)
    with killed_in("save_checkpoint", 9, Killed()):  # in step 6; step 4 is the one before
        train(request)
    latest, before = (Path(request.run_dir) / name for name in ("latest.pt", "checkpoint_step_6.pt"))
    for path in (latest, before):
        path.write_bytes(path.read_bytes()[:-100])
    assert train(request).resumed_from == 4
    assert "latest.pt can't be read" in caplog.text
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


def test_a_finished_training_says_so_and_changes_nothing(
    uninterrupted: tuple[TrainRequest, TrainResult], caplog: pytest.LogCaptureFixture
) -> None:
    request, result = uninterrupted
    before = contents_of(request.run_dir)
    starts: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO):
        again = train(request, on_start=lambda done, total: starts.append((done, total)))
    assert "is complete: 6 of 6 steps" in caplog.text
    assert starts == [(6, 6)]
    assert again == dataclasses.replace(result, resumed_from=6)
    assert contents_of(request.run_dir) == before


def test_more_epochs_go_on_where_fewer_ended(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    train(request_for(num_epochs=1, save_every_steps=SAVE_EVERY))
    request = request_for(num_epochs=2, save_every_steps=SAVE_EVERY)
    assert train(request).resumed_from == 3
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


def test_resume_never_refuses_a_directory_with_a_training_in_it(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    with pytest.raises(RunDirectoryError, match="has a training in it") as refused:
        train(request_for(run_dir=uninterrupted[0].run_dir, resume="never"))
    assert "--resume auto" in refused.value.next_step
    assert train(request_for("fresh", resume="never", max_steps=1)).steps == 1


@pytest.mark.parametrize(
    ("other", "difference"),
    [({"lora_r": 4}, "lora_r is 8 there and 4 here"), ({"seed": 1}, "seed is 0 there and 1 here")],
)
@pytest.mark.parametrize("resume", ["auto", "checkpoint_step_2.pt"])
def test_a_run_of_other_settings_is_refused_with_the_difference_and_left_alone(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    other: dict[str, Any],
    difference: str,
    resume: str,
) -> None:
    run_dir = uninterrupted[0].run_dir
    before = contents_of(run_dir)
    by_name = resume if resume == "auto" else f"{run_dir}/{resume}"
    with pytest.raises(RunDirectoryError, match=difference):
        train(request_for(run_dir=run_dir, resume=by_name, **other))
    assert contents_of(run_dir) == before


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
) -> None:
    with pytest.raises(RunDirectoryError) as refused:
        train(request_for(run_dir=uninterrupted[0].run_dir, model=str(other_model.directory)))
    hashes = [model.identity.rpartition("@")[2] for model in (other_model, debug_model)]
    assert all(digest in refused.value.found for digest in hashes)


def test_a_checkpoint_of_another_model_is_refused_in_a_new_directory_too(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, other_model: BaseModel
) -> None:
    checkpoint = f"{uninterrupted[0].run_dir}/checkpoint_step_2.pt"
    with pytest.raises(RunDirectoryError, match=r"checkpoint_step_2\.pt is of another training: base_model is"):
        train(request_for("new", model=str(other_model.directory), resume=checkpoint))


def test_a_checkpoint_by_name_sets_later_files_aside(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    request = request_for(save_every_steps=SAVE_EVERY)
    train(request)
    by_name = dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_2.pt")
    with killed_in("save_checkpoint", 1, Killed()):
        train(by_name)
    later = {"latest", "checkpoint_step_4", "checkpoint_step_6", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    later |= {"best_lora", "final_lora", "latest_lora", "lora_epoch_1", "lora_epoch_2", "best_model", "final_model"}
    set_aside = {f"superseded/1/{path}" for path in FILES if Path(path).stem in later}
    here = {"checkpoint_step_2.pt", "config.json", "loss.png", "metrics.jsonl"}
    killed_while_saving = {"lora_weights/latest_lora.pt"}
    assert files_in(request.run_dir) - killed_while_saving == set_aside | here
    train(request)
    assert files_in(request.run_dir) == FILES | set_aside
    assert rows_of(request.run_dir)[-1]["train/epoch_loss"] == uninterrupted[1].last_loss
    again = contents_of(f"{request.run_dir}/superseded/1")
    (Path(request.run_dir) / "latest.pt").rename(Path(request.run_dir) / "moved_away")
    train(by_name)
    assert contents_of(f"{request.run_dir}/superseded/1") == again
    assert files_in(f"{request.run_dir}/superseded/2") | {"latest.pt"} == files_in(f"{request.run_dir}/superseded/1")


def test_killed_before_the_files_are_set_aside_the_metrics_have_no_hole(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(num_epochs=1, save_every_steps=SAVE_EVERY)
    train(request)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "set_aside_after", kill)
        with pytest.raises(Killed):
            train(dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_2.pt"))
    assert train(request_for(save_every_steps=SAVE_EVERY)).resumed_from == 3
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


def test_the_best_of_between_two_epochs_is_not_mistaken_for_that_of_its_epochs_end(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses = iter([1.0, 2.0, 3.0, 0.5])  # after steps 2, 3, 4 and 6
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"val/loss": next(losses)})
    request = request_for(validate_every_steps=2, save_every_steps=5)
    assert train(request).best_epoch == 2
    losses = iter([7.0])
    by_name = dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_5.pt")
    assert train(by_name).best_loss == 7.0
    assert "the best adapter until then is gone" in caplog.text


def test_going_back_in_an_object_store_fetches_no_full_model(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = request_for(run_dir=f"memory://{tmp_path.name}/run", save_every_steps=SAVE_EVERY)
    train(request)
    root, fetched, whole = storage.as_path(request.run_dir), list[str](), storage.staged

    def staged(path: Any) -> Any:
        fetched.append(path.name)
        return whole(path)

    monkeypatch.setattr(storage, "staged", staged)
    files = RunDirectory(root, tmp_path / "stage")
    assert files.set_aside_after(4) == root / "superseded" / "1"
    here = {name for name in files_in(request.run_dir) if not name.startswith("superseded")}
    assert here >= {"full_models/checkpoint_epoch_1.pt", "checkpoint_step_4.pt", "lora_weights/lora_epoch_1.pt"}
    assert not here & {"full_models/checkpoint_epoch_2.pt", "checkpoint_step_6.pt", "latest.pt"}
    assert not [name for name in fetched if name.startswith("checkpoint")]


# Several processes


@dataclasses.dataclass(frozen=True)
class SecondRank(World):
    """The second of two processes. `waits` happens while it waits for the first, which says what is in `told`."""

    waits: Callable[[], object] = lambda: None
    told: list[Any] = dataclasses.field(default_factory=list)

    def barrier(self) -> None:
        self.waits()

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast_object(self, value: Any) -> Any:
        return self.told.pop(0)


def test_a_rank_reads_the_run_directory_once_the_main_one_holds_its_lock(request_for: MakeRequest) -> None:
    """Another training may have gone on there until then."""
    train(request_for(num_epochs=1))
    request = request_for()
    world = SecondRank(1, 2, torch.device("cpu"), lambda: train(request), [6, True])
    assert train(request_for(batch_size=1), world=world).resumed_from == 6


def test_ranks_that_would_begin_at_different_steps_refuse(request_for: MakeRequest) -> None:
    request = request_for(num_epochs=1)
    train(request)
    world = SecondRank(1, 2, torch.device("cpu"), told=[2])
    with pytest.raises(RunDirectoryError, match="rank 1 begins after step 3, the main one after step 2"):
        train(request, world=world)


def test_the_best_of_before_a_named_checkpoint_is_the_best_again(
    request_for: MakeRequest, make_tokens: MakeTokens
) -> None:
    tokens = str(make_tokens(repeated_clips() * 4))
    request = request_for(tokens=tokens, num_epochs=3, lora_dropout=0)
    assert train(request).best_epoch == 3
    by_name = dataclasses.replace(request, resume=f"{request.run_dir}/full_models/checkpoint_epoch_2.pt")
    best_model = Path(request.run_dir) / "full_models" / "best_model.pt"

    def once_it_is_written() -> bool:
        deadline = time.monotonic() + 60
        while not best_model.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return True

    with pytest.raises(Cancelled):  # before a third epoch could be better
        train(by_name, cancelled=once_it_is_written)
    best, expected = (adapter_in(request.run_dir, name) for name in ("best_lora", "lora_epoch_2"))
    assert all(torch.equal(best[name], expected[name]) for name in expected)
    merged = torch.load(best_model, weights_only=True)["best_state"]
    epoch_2 = torch.load(by_name.resume, weights_only=True)["best_state"]
    assert all(torch.equal(merged[name], epoch_2[name]) for name in epoch_2)


def test_a_checkpoint_of_elsewhere_starts_a_new_directory(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    run_dir = uninterrupted[0].run_dir
    before = contents_of(run_dir)
    request = request_for("new", resume=f"{run_dir}/full_models/checkpoint_epoch_1.pt", save_every_steps=SAVE_EVERY)
    train(request)
    final, expected = adapter_in(request.run_dir), adapter_in(run_dir)
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    assert "lora_weights/best_lora.pt" in files_in(request.run_dir)
    assert contents_of(run_dir) == before


def test_a_checkpoint_of_elsewhere_is_refused_where_another_training_is(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    request = request_for("own", max_steps=1)
    train(request)
    elsewhere = f"{uninterrupted[0].run_dir}/checkpoint_step_2.pt"
    with pytest.raises(RunDirectoryError, match="has a training of its own"):
        train(dataclasses.replace(request, resume=elsewhere))


def test_a_training_that_began_with_a_named_checkpoint_goes_on_when_it_is_started_again_in_the_same_way(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the checkpoint was of elsewhere or of its own directory."""
    elsewhere = request_for("new", resume=f"{uninterrupted[0].run_dir}/checkpoint_step_2.pt", save_every_steps=2)
    own = request_for("new", resume=str(Path(elsewhere.run_dir) / "checkpoint_step_4.pt"), save_every_steps=2)

    def kill(row: Row) -> None:
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(elsewhere, on_step=kill)
    assert train(elsewhere).resumed_from == 5
    with pytest.raises(Killed):
        train(own, on_step=kill)
    assert train(own).resumed_from == 5
    caplog.set_level(logging.INFO)
    assert train(own).resumed_from == 6
    assert "to begin there again, move latest.pt away" in caplog.text
    (Path(own.run_dir) / "latest.pt").unlink()
    assert train(own).resumed_from == 4


@pytest.mark.parametrize(
    "name", ["full_models/best_model.pt", "full_models/final_model.pt", "lora_weights/best_lora.pt"]
)
def test_weights_alone_are_not_resumed_from(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, name: str
) -> None:
    with pytest.raises(RunDirectoryError, match=name) as refused:
        train(request_for(resume=f"{uninterrupted[0].run_dir}/{name}"))
    assert "--init-adapter" in refused.value.next_step


def test_a_half_written_line_of_metrics_is_mended(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest
) -> None:
    request = request_for(save_every_steps=SAVE_EVERY)
    with killed_in("save_checkpoint", 2, Killed()):
        train(request)
    with open(Path(request.run_dir) / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "tra')
    train(request)
    assert_same_training(request.run_dir, uninterrupted[0].run_dir)


# WandB


def test_the_wandb_run_goes_under_the_run_directory(request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    request = request_for(max_steps=2)
    assert train(request).wandb_url is None
    run_id = json.loads((Path(request.run_dir) / "config.json").read_text())["wandb_id"]
    (file,) = (Path(request.run_dir) / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    logged = file.read_bytes()  # test_tracking.py reads one record by record
    assert all(name.encode() in logged for name in ("train/loss", "global_step", "val/perplexity_codebook_3"))


def test_a_wandb_that_fails_does_not_stop_a_training(request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no connection")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("wandb.init", fail)
    request = request_for(max_steps=2)
    assert train(request).steps == 2
    assert [row["step"] for row in rows_of(request.run_dir)] == [1, 2]
