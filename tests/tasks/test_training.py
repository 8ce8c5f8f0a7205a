"""The pages of training runs, after real ones with the debug model."""

from __future__ import annotations

import base64
import io
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry
from prefect.variables import Variable
from upath import UPath

from flows.finetune import finetune
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core import storage
from musicgen_core.training.files import saving
from tasks import runs, training_log
from tasks.progress import Update, listening, quieted
from tasks.training_page import training_page
from tests.fixture_types import Shown
from tests.killing import Killed

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def tokens(prefect_server: None, demo_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    tokenize_archives(archives=str(demo_archives), tokens=str(folder), model="debug", device="cpu")
    return folder


def train(tokens: Path, run_dir: Path | None, **settings: Any) -> State[Any]:
    quick: dict[str, Any] = {"batch_size": 2, "gradient_accumulation_steps": 1, "segment_seconds": 0.5, "num_epochs": 4}
    state: Any = train_lora(
        tokens=str(tokens),
        run_dir=str(run_dir) if run_dir else None,
        model="debug",
        device="cpu",
        full_models="none",
        return_state=True,
        **(quick | settings),
    )
    return state


def id_of(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def pictures(page: str) -> list[Image.Image]:
    encoded = re.findall(r"!\[[^]]+\]\(data:image/png;base64,([^)]+)\)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


def test_a_training_run_shows_figures_curves_and_its_files(
    tokens: Path, tmp_path: Path, shown: Shown, log_lines: Callable[[UUID], list[str]]
) -> None:
    state = train(tokens, tmp_path / "runs" / "jazz-2026-11-23")
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(id_of(state)).name.startswith("train-lora · jazz-2026-11-23 · 20")
    result, found = state.result(), shown(id_of(state))
    assert set(found) == {"training-progress", "training", "summary"}
    assert found["training-progress"].data == 100.0

    page = str(found["training"].data)
    assert "| state | complete |" in page and f"| step | {result.steps} of {result.steps} (100.0 %) |" in page
    assert f"| best validation loss | {result.best_loss:.4f} in epoch {result.best_epoch} |" in page
    for row in ("throughput", "training loss", "validation loss", "learning rate", "skipped steps"):
        assert f"| {row} | " in page
    losses, rates = pictures(page)
    assert losses.size == rates.size == (960, 540)
    assert len(losses.convert("RGB").getcolors() or []) > 5  # curves, and no empty page
    assert losses.tobytes() != rates.tobytes()
    assert len(page) < 100_000

    summary = str(found["summary"].data)
    for name in ("lora_weights/best_lora.pt", "lora_weights/final_lora.pt", "latest.pt", "loss.png", "metrics.jsonl"):
        assert f"`{tmp_path}/runs/jazz-2026-11-23/{name}`" in summary
    assert "full_models/" not in summary and "samples/" not in summary  # there are none

    lines = log_lines(id_of(state))
    assert result.steps >= 30 and len(lines) < 30, lines
    assert any(re.match(rf"step 1 of {result.steps}, epoch 1, loss \d", line) for line in lines)


def test_a_run_is_named_after_its_new_folder_also_when_retried(tokens: Path, tmp_path: Path) -> None:
    Variable.set("musicgen_runs", str(tmp_path / "runs"), overwrite=True)
    failed = train(tokens / "nowhere", None)
    assert failed.is_failed()
    run_id = id_of(failed)
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(run_id).name
        parameters = client.read_flow_run(run_id).parameters | {"tokens": str(tokens), "max_steps": 2}
        client.set_flow_run_state(run_id, AwaitingRetry(), force=True)  # what the Retry button does
        again: Any = run_flow(
            train_lora, flow_run=client.read_flow_run(run_id), parameters=parameters, return_type="state"
        )
        assert client.read_flow_run(run_id).name == name
        this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        deadline = time.monotonic() + 120  # the server records task runs with a delay
        while not (tasks := client.read_task_runs(flow_run_filter=this_run)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert again.is_completed()
    assert {f"train-lora · {task.name}" for task in tasks if task.name.startswith("train-")} == {name}
    [made] = (tmp_path / "runs").iterdir()
    assert name == f"train-lora · {made.name}" and re.fullmatch(r"train-\d{8}-\d{6}-\w{6}", made.name)


def test_a_resumed_run_draws_all_steps_in_the_same_artifacts(
    tokens: Path,
    tmp_path: Path,
    shown: Shown,
    log_lines: Callable[[UUID], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_log, "SHOW_EVERY_SECONDS", 0.0)

    live = threading.Event()

    def kill(update: Update) -> None:
        if update.done == 5:
            assert live.wait(120)  # another thread renders the page, perhaps late
        if update.done == 10:
            raise Killed

    drawn: list[int] = []

    def watched(table: str, rows: Any, *others: Any) -> str:
        drawn.append(len(rows))
        live.set()
        return training_page(table, rows, *others)

    monkeypatch.setattr(training_log, "training_page", watched)
    with pytest.raises(Killed), listening(kill):
        train(tokens, tmp_path / "run", save_every_steps=5, num_epochs=2)
    assert len(drawn) > 1 and drawn[-1] == 10  # live, and once more after it stopped
    resumed = train(tokens, tmp_path / "run", save_every_steps=5, num_epochs=2)
    result = resumed.result()
    assert result.resumed_from == 10
    assert drawn[-1] == result.steps
    assert f"resumed at step {result.resumed_from}" in str(shown(id_of(resumed))["summary"].data)
    lines = log_lines(id_of(resumed))
    assert any(line.startswith("resuming from") and line.endswith("step 10") for line in lines)
    assert resumed.message is not None and re.fullmatch(
        rf"trained: {result.steps} steps, best validation loss \d\.\d{{4}} in epoch \d, in .*/run", resumed.message
    )


@pytest.fixture
def seen_waiting(monkeypatch: pytest.MonkeyPatch) -> list[list[FlowRun]]:
    """Return the states of the training flow run and its parent, during and after waiting for disk space."""
    whole, seen = storage.publish, list[list[FlowRun]]()

    def publish(target: UPath) -> Any:
        if target.name == "latest.pt" and not seen:
            raise OSError(28, "No space left on device", str(target))
        return whole(target)

    def show_waiting(reason: str | None) -> None:
        runs.show_waiting(reason)
        ids = dict.fromkeys(UUID(str(run)) for run in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id))
        with get_client(sync_client=True) as client:
            seen.append([client.read_flow_run(run) for run in ids])

    monkeypatch.setattr(saving, "RETRY_DELAYS_S", ())
    monkeypatch.setattr(saving, "WAITING_DELAY_S", 0.0)
    monkeypatch.setattr(storage, "publish", publish)
    monkeypatch.setattr(training_log, "show_waiting", show_waiting)
    return seen


def test_a_run_that_waits_for_disk_space_shows_it_as_its_state(
    tokens: Path, tmp_path: Path, seen_waiting: list[list[FlowRun]], log_lines: Callable[[UUID], list[str]]
) -> None:
    state = train(tokens, tmp_path / "run", max_steps=4, save_every_steps=2)
    [waiting], [running] = seen_waiting
    assert (waiting.state_name, waiting.state_type) == ("WaitingForDisk", StateType.RUNNING)
    assert waiting.state is not None and "no space left on device" in str(waiting.state.message)
    assert (running.state_name, waiting.run_count, running.run_count) == ("Running", 1, 1)
    assert state.is_completed() and state.result().steps == 4
    assert any("the run waits until it can be saved" in line for line in log_lines(id_of(state)))


def test_a_finetune_that_waits_for_disk_space_shows_it_too(
    demo_archives: Path, tmp_path: Path, seen_waiting: list[list[FlowRun]]
) -> None:
    state: Any = finetune(
        archives=str(demo_archives),
        tokens=str(tmp_path / "tokens"),
        run_dir=str(tmp_path / "run"),
        output=str(tmp_path / "music"),
        model="debug",
        device="cpu",
        captions="none",
        prompts=["calm"],
        duration=0.1,
        evaluate=False,
        full_models="none",
        batch_size=2,
        gradient_accumulation_steps=1,
        segment_seconds=0.5,
        max_steps=2,
        return_state=True,
    )
    waiting, running = seen_waiting
    assert [run.name.split()[0] for run in waiting] == ["train-lora", "finetune"]
    assert waiting[1].id == id_of(state)
    for run in waiting:
        assert (run.state_name, run.state_type, run.run_count) == ("WaitingForDisk", StateType.RUNNING, 1)
        assert run.state is not None and "no space left on device" in str(run.state.message)
    assert [(run.state_name, run.run_count) for run in running] == [("Running", 1), ("Running", 1)]
    assert state.is_completed()


def test_messages_of_every_step_are_limited_to_one_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("musicgen_core.training.loop")
    with caplog.at_level("INFO"), quieted(logger.name):
        for step in range(100):
            logger.warning("step %d gave a loss of nan, and was skipped", step)
        logger.info("something else")
    assert [record.getMessage() for record in caplog.records] == [
        "step 0 gave a loss of nan, and was skipped",
        "something else",
    ]
    logger.warning("not quieted any more")
    assert caplog.records[-1].getMessage() == "not quieted any more"


def test_generating_prior_clips_is_reported_as_progress(tokens: Path, tmp_path: Path) -> None:
    heard: list[Update] = []
    with listening(heard.append):
        train(tokens, tmp_path / "run", prior_preservation=0.3, max_steps=1, evaluate=False)
    generated = [update for update in heard if update.stage == "generate"]
    assert generated and generated[-1].done == generated[-1].total
    first_step = next(index for index, update in enumerate(heard) if update.stage == "train")
    assert heard.index(generated[-1]) < first_step
