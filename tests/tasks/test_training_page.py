from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from musicgen_core import storage
from musicgen_core.stages import Stage
from musicgen_core.tracking import Wandb
from tasks.artifacts import Artifacts
from tasks.training_log import TrainingLog
from tasks.training_page import TrainingFigures, newest_samples, samples_page, training_page, wandb_line


def figures_of(*rows: dict[str, float], total: int = 1000) -> TrainingFigures:
    figures = TrainingFigures(total=total)
    for row in rows:
        figures.add(row)
    return figures


def row(step: int, epoch: int = 1, **values: float) -> dict[str, float]:
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return {"step": step, "epoch": epoch, "train/lr": 1e-4, "train/audio_seconds_per_sec": 800.0} | named


def test_the_line_shows_step_epoch_losses_skips_and_throughput() -> None:
    figures = figures_of(
        row(1, train__loss=4.0), row(2, train__loss=3.0, val__loss=3.25), row(3, 2, train__skipped_steps=1)
    )
    assert figures.line() == "step 3 of 1,000, epoch 2, loss 3.500, validation 3.250, 1 skipped, 800.0 audio-s/s"


def test_rows_without_their_fields_do_not_stop_a_resume(tmp_path: Path) -> None:
    rows = [row(1), {"step": 2, "best/loss": 1.0}, {**row(3), "epoch": None, "best/loss": 2.0}, row(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    log = TrainingLog("run", str(tmp_path), cast(Artifacts, SimpleNamespace(progress=lambda *_: None)))
    log.start(4, 10)
    assert [one["step"] for one in log._figures.rows] == [1, 4]


def test_progress_shows_the_current_stage_and_the_steps(tmp_path: Path) -> None:
    shown: list[str] = []
    record = SimpleNamespace(progress=lambda *shows: shown.append(shows[-1]), markdown=lambda *_: None)
    log = TrainingLog("jazz", str(tmp_path), cast(Artifacts, record))
    log.begin_stage(Stage("reading the model demo"))
    log.start(0, 1000)
    log.hear(row(1, train__loss=4.0))
    log.begin_stage(Stage("validating"))
    log.hear(row(2, train__loss=4.0))
    log.show("complete")
    training = ["jazz: step 1 of 1,000, epoch 1, loss 4.000", "jazz: step 2 of 1,000, epoch 1, loss 4.000"]
    said = [text.partition(", 800")[0] for text in dict.fromkeys(shown)]
    assert said[:2] == ["jazz: reading the model demo", "jazz: step 0 of 1,000"]
    assert said[-2:] == [training[1], f"jazz: complete; {training[1].removeprefix('jazz: ')}"]
    assert f"jazz: validating; {training[0].removeprefix('jazz: ')}" in said


def test_a_training_that_has_not_begun_has_no_step(tmp_path: Path) -> None:
    shown: list[str] = []
    record = SimpleNamespace(progress=lambda *_: None, markdown=lambda *shows: shown.append(shows[-1]))
    TrainingLog("jazz", str(tmp_path), cast(Artifacts, record)).stop("refused", "no GPU")
    assert shown == ["jazz: refused"]


def test_the_best_is_the_epoch_in_which_it_changed_last() -> None:
    figures = figures_of(
        row(10, 1, val__loss=3.0, best__loss=3.0),
        row(20, 2, val__loss=2.0, best__loss=2.0),
        row(30, 3, val__loss=2.5, best__loss=2.0),
        row(31, 4),
    )
    table = figures.table("running")
    assert "| best validation loss | 2.0000 in epoch 2 |" in table
    assert "| validation loss | 2.5000 after step 30 |" in table
    assert "| epoch | 4 |" in table and "| learning rate | 0.0001 |" in table


def test_the_eta_ignores_steps_of_earlier_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("tasks.training_page.time.monotonic", lambda: now[0])
    figures = figures_of(*(row(step) for step in range(1, 500)))  # of before the training was resumed
    assert figures.eta_seconds is None
    for step in range(500, 511):
        figures.add(row(step))
        figures.time_step()
        now[0] += 2.0
    assert figures.steps_per_sec == pytest.approx(10 / 22)
    assert figures.eta_seconds == pytest.approx(490 * 2.2)
    assert "| ETA | 0:17:58 |" in figures.table("running")


def test_a_page_of_a_long_noisy_training_stays_under_100_kb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [row(step, train__loss=3 + rng.normal(0, 0.2)) for step in range(1, 20_001)]
    figures = figures_of(*rows)
    page = training_page(figures.table("running"), figures.rows, storage.as_path(tmp_path), None)
    assert page.count("data:image/png;base64,") == 2
    assert len(page) < 100_000


def test_before_the_first_step_there_is_a_page_too(tmp_path: Path) -> None:
    page = training_page(TrainingFigures().table("stopped"), [], storage.as_path(tmp_path), None)
    assert "| state | stopped |" in page and "data:image" not in page


def test_the_newest_samples_play_and_partial_files_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    assert newest_samples(storage.as_path(tmp_path)) == ()
    for epoch in range(3):
        for prompt in range(3):
            soundfile.write(folder / f"epoch_{epoch:03d}_{prompt:02d}.wav", np.zeros(3200), 32_000)
    (folder / "epoch_002_01.wav").write_bytes(b"RIFF")
    found = newest_samples(storage.as_path(tmp_path))
    shown = [f"epoch_{name}.wav" for name in ("000_00", "002_00", "000_01", "002_01")]
    assert [Path(file).name for file in found] == shown
    page = samples_page(found)
    assert page.count("<audio controls") == 3 and "epoch_002_01.wav" not in page
    (folder / "prompts.json").write_text('{"prompts": ["slow | piano", "drums", "bells"]}')
    page = samples_page(found)
    assert "**base model** · slow \\| piano · " in page and "**after epoch 2** · slow \\| piano · " in page
    for later in ("001", "002"):
        for file in folder.glob(f"epoch_{later}_*"):
            file.unlink()
    assert [Path(file).name for file in newest_samples(storage.as_path(tmp_path))] == shown[::2]


def test_an_online_run_stores_its_link_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Online:
        url = "https://wandb.test/r/1"
        settings = SimpleNamespace(log_internal=tmp_path / "debug-internal.log", sync_file=tmp_path / "run.wandb")

        def define_metric(self, *names: str, **axis: str) -> None: ...

        def finish(self, exit_code: int) -> None: ...

    def init(**options: Any) -> Online:
        (tmp_path / "wandb").mkdir()
        return Online()

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    run = Wandb(tmp_path, "id", "name", "train", {})
    run.finish()
    assert run.url == Online.url
    assert wandb_line(storage.as_path(tmp_path)) == f"[WandB run]({Online.url})"


def test_the_page_links_wandb_or_shows_how_to_upload_offline_runs(tmp_path: Path) -> None:
    folder = storage.as_path(tmp_path)
    assert wandb_line(folder) == ""
    (tmp_path / "wandb").mkdir()
    assert f"`uv run --no-sync wandb sync --no-skip-online {tmp_path}/wandb`" in wandb_line(folder)
    (tmp_path / "wandb" / "run-url").write_text("https://wandb.test/r/1")
    assert wandb_line(folder) == "[WandB run](https://wandb.test/r/1)"
    assert wandb_line(folder, "https://wandb.test/r/2") == "[WandB run](https://wandb.test/r/2)"
