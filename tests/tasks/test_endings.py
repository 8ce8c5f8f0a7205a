"""Failed and cancelled runs: state, summary and log give the reason and the next step."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.flow_engine import run_flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelling

from flows.archive_runs import ArchivesFailed
from flows.finetune import finetune
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.errors import AdapterError
from tasks import training
from tasks.forms import in_form
from tasks.interruption import interruptible
from tasks.next_steps import from_comment
from tasks.progress import Update, listening
from tests.fixture_types import Shown
from tests.run_directories import steps

pytestmark = pytest.mark.usefixtures("prefect_server")
QUICK: dict[str, Any] = {"batch_size": 2, "gradient_accumulation_steps": 1, "segment_seconds": 0.5, "max_steps": 40}
AGAIN = "uv run musicgen-flows train tokens run --max-steps 40"


def run_as_worker(flow: Flow[..., Any], error: type[BaseException], **parameters: Any) -> FlowRun:
    """Run a flow as a worker's process does, in which Prefect logs the final state."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(flow, parameters=parameters)
        with pytest.raises(error):
            run_flow(flow, flow_run=run, error_logger=flow_run_logger(run))
        return client.read_flow_run(run.id)


def message_of(run: FlowRun) -> str:
    assert run.state is not None
    return str(run.state.message)


def last_section(summary: str) -> str:
    """Return a summary page's last section, without the time and the outcome that no page shows."""
    return summary[summary.rindex("## ") :].partition("\n\nAs of ")[0]


def assert_ends_with_message(caplog: pytest.LogCaptureFixture, run: FlowRun) -> None:
    """Assert that the log ends with the run's state and message, and contains no traceback."""
    records = [record for record in caplog.records if record.name in ("prefect.flow_runs", "prefect.task_runs")]
    last = records[-1].getMessage()
    assert run.state is not None and last.startswith(f"Finished in state {run.state.name}(") and message_of(run) in last
    assert not any(record.exc_info for record in records)


def test_a_refused_run_shows_why_in_state_summary_and_log(
    tmp_path: Path, shown: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    quick = {"model": "debug", "device": "cpu", "tokens": str(tmp_path), "run_dir": str(tmp_path / "run")}
    run = run_as_worker(train_lora, AdapterError, **quick, init_adapter=str(tmp_path / "none_lora.pt"))
    reason = f"there is no adapter at {tmp_path}/none_lora.pt"
    assert message_of(run).startswith(f"{reason}. Give a *_lora.pt file")
    found = shown(run.id)
    summary = str(found["summary"].data)
    assert reason in summary.replace("\\", "") and "**What to do.** Give a" in summary
    assert last_section(summary).startswith("## What next\n\n**Try again:** run the command again, ")
    assert (outcome := from_comment(summary)) is not None and outcome.is_refused
    page = str(found["training"].data).replace("\\", "")
    assert "| state | refused |" in page and page.count(reason) == 1
    assert page.index(f"**Reason.** {reason}") > page.index("| state |")
    assert str(found["training"].description).endswith(": refused")
    assert_ends_with_message(caplog, run)


def test_a_refused_run_has_no_line_on_an_earlier_wandb_run(tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    places = {"tokens": str(tmp_path), "run_dir": str(tmp_path / "run"), "init_adapter": str(tmp_path / "none_lora.pt")}
    state: Any = train_lora(**places, model="debug", device="cpu", return_state=True)
    assert "WandB" not in str(shown(state.state_details.flow_run_id)["training"].data)


def test_a_training_run_that_fails_in_its_steps_is_no_refusal(demo_tokens: Path, tmp_path: Path, shown: Shown) -> None:
    def fail(update: Update) -> None:
        if update.stage == "train" and update.done == 2:
            raise OSError(5, "Input/output error", "/data/latest.pt")

    (tmp_path / "run" / "wandb").mkdir(parents=True)
    places = {"tokens": str(demo_tokens), "run_dir": str(tmp_path / "run"), "model": "debug", "device": "cpu"}
    with listening(fail):
        state: Any = train_lora(**places, **QUICK, return_state=True)
    page = str(shown(state.state_details.flow_run_id)["training"].data)
    assert "| state | failed |" in page and page.count("input/output error: /data/latest.pt") == 1
    assert "WandB runs offline" in page


def test_advice_names_form_fields_in_the_ui_and_options_elsewhere(tmp_path: Path, shown: Shown) -> None:
    places = {"tokens": str(tmp_path), "run_dir": str(tmp_path / "run")}
    state: Any = train_lora(**places, model="debug", gpus=99, sample_prompts=[], return_state=True)
    assert state.message.startswith("gpus 99 was asked for") and "--" not in state.message
    assert "gpus 99 was asked for" in str(shown(state.state_details.flow_run_id)["summary"].data)
    assert str(state.result(raise_on_failure=False)).startswith("--gpus 99 was asked for")


def test_short_options_are_fields_and_other_programs_keep_theirs() -> None:
    text = "Give --epochs 9 or --sample-prompt, or run uv sync --extra dask; a-word--model, --init-adapter."
    with FlowRunContext.model_construct(flow=train_lora):
        assert in_form(text) == (
            "Give num_epochs 9 or sample_prompts, or run uv sync --extra dask; a-word--model, init_adapter."
        )
    assert in_form(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "there is no prompt 'piano --epochs --model' in \"a --resume b\", `--lora-r` or “--seed”",
        "start it with musicgen-flows generate OUT --model demo --epochs 3, or uv run musicgen-flows up --model debug",
        "look whether it fits (uv run musicgen-flows doctor --model demo), or run uv run musicgen-flows run -p seed=1",
        "/data/--model/x, ./--epochs.txt and ../a--resume can't be read",
    ],
)
def test_quotations_commands_and_paths_are_not_rewritten(text: str) -> None:
    with FlowRunContext.model_construct(flow=train_lora):
        assert in_form(text) == text


def test_a_negated_option_is_the_value_of_its_field() -> None:
    text = (
        "It can't be done: give --no-evaluate (uv run musicgen-flows train --no-evaluate), or --no-such-thing; "
        "it doesn't --epochs."
    )
    with FlowRunContext.model_construct(flow=train_lora):
        assert in_form(text) == (
            "It can't be done: give evaluate false (uv run musicgen-flows train --no-evaluate), or --no-such-thing; "
            "it doesn't num_epochs."
        )


def test_failed_tokenizing_ends_with_its_message_and_next_step(
    tmp_path: Path, shown: Shown, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "as of a worker")
    (tmp_path / "archive_batch_0001.zip").write_bytes(b"not an archive")
    places = {"archives": str(tmp_path), "tokens": str(tmp_path / "tokens")}
    run = run_as_worker(tokenize_archives, ArchivesFailed, **places, model="debug", device="cpu")
    assert message_of(run).startswith(f"1 of 1 archive failed: {tmp_path}/archive_batch_0001.zip can't be read")
    assert_ends_with_message(caplog, run)
    last = last_section(str(shown(run.id)["summary"].data))
    assert last.startswith(
        "## What next\n\n**Fix what is listed, then tokenize again, which keeps finished archives:** "
    )
    assert f"*Retry* on [the page of the run](/runs/flow-run/{run.id})" in last and "*Copy to new run*" in last


def test_failed_archives_reach_the_caller_from_another_process(tmp_path: Path) -> None:
    from flows.tokenize_archives import TokenizeResult

    error = ArchivesFailed("1 of 2 archives failed", TokenizeResult("/tokens", [], {"a": "broken"}))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.result) == (str(error), error.result)


@pytest.fixture
def deaf_to_sigterm() -> Iterator[None]:
    """Ignore SIGTERM, which Prefect raises again for the previous handler."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("deaf_to_sigterm")
@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_cancelled_training_run_says_where_a_retry_continues(
    demo_tokens: Path,
    tmp_path: Path,
    shown: Shown,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_cancelled: bool,
) -> None:
    whole, ends = training.is_cancelling, []

    def is_cancelling() -> bool:
        ends.append(whole())
        return ends[-1]

    def end(update: Update) -> None:
        if update.stage != "train" or update.done < 3:
            return
        if is_cancelled:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(str(runtime.flow_run.id)), Cancelling())
        raise TerminationSignal(signal=signal.SIGTERM)

    monkeypatch.setattr(training, "is_cancelling", is_cancelling)
    parameters = {"model": "debug", "device": "cpu", "tokens": str(demo_tokens), "run_dir": str(tmp_path / "run")}
    parameters |= {"batch_size": 2, "gradient_accumulation_steps": 1, "segment_seconds": 0.5, "max_steps": 40}
    ending: Any = CancelledRun if is_cancelled else TerminationSignal
    with listening(end):
        run = run_as_worker(train_lora, ending, **parameters, num_epochs=10, full_models="none")
    assert run.state is not None and ends == [is_cancelled]
    if is_cancelled:
        assert (run.state.name, run.state.message) == (
            "Cancelled",
            "cancelled at step 3 of 40; Retry continues from there",
        )
        assert_ends_with_message(caplog, run)
        assert not any("Crash" in line for line in caplog.messages)
        ended = [record for record in caplog.records if "Finished in state Cancelled" in record.getMessage()]
        assert ended and {record.levelname for record in ended} == {"INFO"}
        assert "Retry continues from there" in str(shown(run.id)["summary"].data)
        assert steps(tmp_path / "run") == [1, 2, 3]
    else:
        assert run.state.name == "Crashed"


@pytest.mark.usefixtures("deaf_to_sigterm")
def test_a_cancelled_finetune_says_where_its_training_continues(
    demo_archives: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def end(update: Update) -> None:
        if update.stage == "train" and update.done == 2:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(str(runtime.flow_run.root_flow_run_id)), Cancelling())
            raise TerminationSignal(signal=signal.SIGTERM)

    places = {"archives": str(demo_archives), "tokens": str(tmp_path / "tokens"), "output": str(tmp_path / "music")}
    quick = {"batch_size": 2, "gradient_accumulation_steps": 1, "segment_seconds": 0.5, "max_steps": 4}
    with listening(end):
        run = run_as_worker(
            finetune,
            CancelledRun,
            **places,
            **quick,
            run_dir=str(tmp_path / "run"),
            model="debug",
            device="cpu",
            captions="none",
        )
    assert (run.state_name, message_of(run)) == ("Cancelled", "cancelled at step 2 of 4; Retry continues from there")
    assert_ends_with_message(caplog, run)
    assert not (tmp_path / "music").exists()


def interrupt(update: Update) -> None:
    """Do what Ctrl-C does in the third step."""
    if update.stage == "train" and update.done >= 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize("parts", ["train", "finetune"])
def test_ctrl_c_in_a_terminal_cancels_and_names_the_next_command(
    demo_archives: Path,
    demo_tokens: Path,
    tmp_path: Path,
    shown: Shown,
    subflows: Callable[[UUID], dict[str, FlowRun]],
    caplog: pytest.LogCaptureFixture,
    parts: str,
) -> None:
    places = {"tokens": str(demo_tokens), "run_dir": str(tmp_path / "run"), "model": "debug", "device": "cpu"}
    with listening(interrupt), interruptible(AGAIN) as command:
        if parts == "train":
            run = run_as_worker(train_lora, CancelledRun, **places, **QUICK)
        else:
            places |= {"archives": str(demo_archives), "tokens": str(tmp_path / "tokens"), "output": str(tmp_path)}
            run = run_as_worker(finetune, CancelledRun, **places, **QUICK, captions="none")
    assert command.is_interrupted and run.state is not None
    state = "interrupted in the terminal at step 3 of 40"
    assert (run.state.type, run.state.name) == (StateType.CANCELLED, "Cancelled")
    assert run.state.message == f"{state}; to continue from there: {AGAIN}"
    assert_ends_with_message(caplog, run)
    assert not any("Crash" in line for line in caplog.messages)
    assert steps(tmp_path / "run") == [1, 2, 3]
    section = last_section(str(shown(run.id)["summary"].data))
    assert section == f"## Cancelled\n\n{state.capitalize()}; to continue from there:\n\n    {AGAIN}"
    trained = run.id if parts == "train" else subflows(run.id)["train-lora"].id
    page = str(shown(trained)["training"].data)
    assert f"| state | {state} |" in page and page.count(f"To continue from there:\n\n    {AGAIN}") == 1


def test_a_command_that_cannot_continue_suggests_none(demo_tokens: Path, tmp_path: Path) -> None:
    places = {"tokens": str(demo_tokens), "run_dir": str(tmp_path / "run"), "model": "debug", "device": "cpu"}
    with listening(interrupt), interruptible(""):
        run = run_as_worker(train_lora, CancelledRun, **places, **QUICK)
    assert message_of(run) == "interrupted in the terminal at step 3 of 40"


def test_the_same_signal_in_any_other_process_is_a_crash(demo_tokens: Path, tmp_path: Path, shown: Shown) -> None:
    places = {"tokens": str(demo_tokens), "run_dir": str(tmp_path / "run"), "model": "debug", "device": "cpu"}
    with listening(interrupt):
        run = run_as_worker(train_lora, KeyboardInterrupt, **places, **QUICK)
    assert run.state is not None and run.state.type == StateType.CRASHED
    assert "| state | interrupted |" in str(shown(run.id)["training"].data)
