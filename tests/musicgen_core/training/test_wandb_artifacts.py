"""The samples and adapters that WandB receives, read from the files of an offline run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core.model.weights import BaseModel
from musicgen_core.tracking import wandb_run
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import KillAfter, LeftIn, MakeRequest
from tests.musicgen_core.tracking.offline_files import Logged
from tests.musicgen_core.training.conftest import tiny_request

PROMPTS = ["slow piano", "a fast breakbeat"]
SAMPLED: dict[str, Any] = {"sample_prompts": PROMPTS, "sample_seconds": 0.4, "learning_rate": 3e-2}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE")
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setattr(wandb_run, "INTERRUPTED_SECONDS", 120.0)  # a busy machine takes long to begin a run
        yield


@pytest.fixture(scope="module")
def killed_after(killed_after: KillAfter) -> KillAfter:
    def run(request: TrainRequest, step: int) -> None:
        killed_after(request, step)
        wait_for_the_next_second()

    return run


def wait_for_the_next_second() -> None:
    """By its second WandB names each part of a run; a resumed process takes longer to start than these tests."""
    time.sleep(1 - time.time() % 1)


@pytest.fixture(scope="module")
def resumed(
    offline: None,
    debug_model: BaseModel,
    tokens: Path,
    tmp_path_factory: pytest.TempPathFactory,
    killed_after: KillAfter,
) -> TrainRequest:
    """Two epochs of three steps, killed in the second one and gone on with to its end. Not to be written to."""
    run_dir = str(tmp_path_factory.mktemp("runs") / "resumed")
    request = tiny_request(debug_model, tokens=str(tokens), run_dir=run_dir, **SAMPLED, save_every_steps=2)
    killed_after(request, 5)
    assert train(request).resumed_from == 5
    return request


def test_a_resumed_training_is_one_run_with_each_step_each_sample_and_each_adapter(
    resumed: TrainRequest, left_in: LeftIn
) -> None:
    run_dir, left = Path(resumed.run_dir), left_in(resumed.run_dir)
    logged, config = Logged(run_dir), json.loads((run_dir / "config.json").read_text())
    assert len(logged.parts) == 2 and {run.run_id for run in logged.runs} == {config["wandb_id"]}
    assert logged.axes == {"global_step": "", "*": "global_step"}

    # The same names and numbers as in metrics.jsonl, whose replayed steps WandB may have twice at the same x.
    rows = {row["global_step"]: row for row in logged.history if "train/lr" in row}
    assert [{"step": step, **without(row, "global_step")} for step, row in sorted(rows.items())] == left.rows
    whole = {"train/loss", "train/epoch_loss", "train/lr", "train/grad_norm", "train/audio_seconds_per_sec"}
    whole |= {"epoch_seconds", "val/loss", "val/perplexity", "best/loss", "best/epoch", "best/step"}
    whole |= {f"val/perplexity_codebook_{k}" for k in range(4)}
    assert whole <= set(rows[3]) and whole <= set(rows[6])
    assert {name: logged.summary[name] for name in ("best/loss", "best/epoch", "best/step")} == {
        name: left.rows[-1][name] for name in ("best/loss", "best/epoch", "best/step")
    }

    # The base model first, then each epoch once, though the second part began with samples there.
    audio = [row for row in logged.history if "samples/00" in row]
    assert [(row["global_step"], row["epoch"]) for row in audio] == [(0, 0), (3, 1), (6, 2)]
    for row in audio:
        for i, prompt in enumerate(PROMPTS):
            assert row[f"samples/{i:02d}"]["caption"] == prompt
            sample = run_dir / "samples" / f"epoch_{row['epoch']:03d}_{i:02d}.wav"
            assert logged.media(row, f"samples/{i:02d}") == sample.read_bytes()

    assert logged.config["lora_r"] == 8 and logged.config["base_model"] == config["base_model"]
    assert (logged.config["training_clips"], logged.config["validation_clips"]) == (5, 1)
    assert (logged.config["total_steps"], logged.config["device"]) == (6, "cpu")


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def test_best_and_final_adapters_are_versions_with_what_is_needed_to_use_them(
    resumed: TrainRequest, debug_model: BaseModel
) -> None:
    versions = Logged(Path(resumed.run_dir)).adapters
    final = [one for one in versions if "final" in one[0]]
    best = [one for one in versions if "best" in one[0]]
    assert len(final) == 1 and len(best) >= 1
    for name, (_, about, files) in (("best_lora.pt", best[-1]), ("final_lora.pt", final[0])):
        content = (Path(resumed.run_dir) / "lora_weights" / name).read_bytes()
        assert files == {name: content}
        assert about["sha256"] == hashlib.sha256(content).hexdigest()
        assert about["base_model"].split("@")[1] == debug_model.identity.split("@")[1]
        assert about["model"] == str(debug_model.directory)
        assert (about["lora"]["r"], about["lora"]["lora_alpha"]) == (8, 32.0)
        assert "fc1" in " ".join(about["lora"]["target_modules"])
        assert f"--adapter {name}" in about["load"]
        assert {"torch", "peft", "audiocraft"} <= set(about["versions"])
    assert (final[0][1]["epoch"], final[0][1]["global_step"]) == (2, 6)
    assert final[0][1]["loss"] > 0


def test_a_finished_training_that_is_started_again_logs_nothing(resumed: TrainRequest) -> None:
    before = sorted((Path(resumed.run_dir) / "wandb").rglob("*"))
    assert train(resumed).ending == "complete before"
    assert sorted((Path(resumed.run_dir) / "wandb").rglob("*")) == before


def test_samples_not_logged_before_a_kill_are_logged_after_resuming(
    request_for: MakeRequest, killed: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for("killed", **SAMPLED)

    def kill(*_: object) -> None:
        raise killed

    with monkeypatch.context() as patch:
        patch.setattr("musicgen_core.training.session.WandbArtifacts.epoch", kill)
        with pytest.raises(killed):
            train(request)
    assert [row["epoch"] for row in Logged(Path(request.run_dir)).history if "samples/00" in row] == [0]
    wait_for_the_next_second()
    train(request)
    assert [row["epoch"] for row in Logged(Path(request.run_dir)).history if "samples/00" in row] == [0, 1, 2]


def test_other_prompts_are_heard_from_the_base_model_on(request_for: MakeRequest, killed_after: KillAfter) -> None:
    killed_after(request_for("other", **SAMPLED), 4)
    train(request_for("other", **{**SAMPLED, "sample_prompts": ["a choir"]}))
    rows = [row for row in Logged(Path(request_for("other").run_dir)).history if "samples/00" in row]
    assert [(row["epoch"], row["samples/00"]["caption"]) for row in rows] == [
        (0, "slow piano"),
        (1, "slow piano"),
        (0, "a choir"),
        (2, "a choir"),
    ]


def test_a_remote_run_directory_gets_wandb_and_plots_and_no_row_twice(
    request_for: MakeRequest, bucket: UPath, killed_after: KillAfter, tmp_path: Path
) -> None:
    request = request_for(run_dir=str(bucket / "run"), **SAMPLED)
    killed_after(request, 5)
    train(request)
    copied = tmp_path / "copied"
    for path in (bucket / "run").rglob("*"):
        if path.is_file():
            target = copied / str(path.relative_to(bucket / "run"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    logged = Logged(copied)
    assert [row["epoch"] for row in logged.history if "samples/00" in row] == [0, 1, 2]
    assert sum("final" in aliases for aliases, _, _ in logged.adapters) == 1
    for name in ("loss.png", "perplexity.png", "learning_rate.png"):
        assert (copied / name).read_bytes().startswith(b"\x89PNG")


def test_a_wandb_that_fails_does_not_stop_a_training(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, left_in: LeftIn
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no connection")

    monkeypatch.setattr("wandb.init", fail)
    request = request_for(max_steps=2)
    assert train(request).steps == 2
    assert [row["step"] for row in left_in(request.run_dir).rows] == [1, 2]
