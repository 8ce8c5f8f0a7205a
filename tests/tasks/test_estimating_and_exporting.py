"""Runs of `estimate` and `export`, and their summaries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.variables import Variable

from flows.estimate import estimate
from flows.export import export
from tasks.progress import Update, listening
from tests.fixture_types import Shown
from tests.stand_in_hub import TOKEN, StandInHub

pytestmark = pytest.mark.usefixtures("prefect_server")


def summary_of(state: Any, shown: Shown) -> str:
    return str(shown(state.state_details.flow_run_id)["summary"].data)


def test_the_summary_of_an_estimate_has_its_figures_and_prices(
    demo_archives: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen_core.estimate.LEAST_SECONDS", 0.0)
    state: Any = estimate(
        archives=str(demo_archives), clips=4, hourly_price=3.5, model="debug", device="cpu", return_state=True
    )
    assert state.is_completed() and state.message.startswith("tokenizing takes about ")
    summary = summary_of(state, shown)
    assert summary.startswith(f"# estimate · {demo_archives.name} · ")
    for name in ("archives", "clips", "measured on", "speed", "time to go", "disk", "cost", "training"):
        assert f"| {name} | " in summary
    assert "4 clips of 2 archives" in summary and "3.50 an hour" in summary


def test_an_estimate_without_archives_says_what_is_missing() -> None:
    state: Any = estimate(archives="/nowhere", model="debug", device="cpu", return_state=True)
    assert state.is_failed() and "/nowhere" in state.message


def test_the_summary_of_an_export_links_what_was_written(
    finetuned: tuple[Path, Any], tmp_path: Path, shown: Shown
) -> None:
    folder, _ = finetuned
    state: Any = export(adapter=str(folder / "runs" / "jazz"), out=str(tmp_path / "shared"), return_state=True)
    assert state.is_completed() and state.message == f"exported jazz for peft to {tmp_path / 'shared'}"
    summary = summary_of(state, shown)
    assert "adapter_model.safetensors" in summary and summary.count("README.md`") == 1


def test_an_export_defaults_to_the_last_adapter_and_a_new_folder(finetuned: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = finetuned
    Variable.set("musicgen_runs", str(folder / "runs"), overwrite=True)
    Variable.set("musicgen_output", str(tmp_path), overwrite=True)
    try:
        state: Any = export(return_state=True)
    finally:
        Variable.unset("musicgen_runs")
        Variable.unset("musicgen_output")
    [made] = tmp_path.iterdir()
    assert state.is_completed() and made.name.startswith("export-")
    assert (made / "adapter_model.safetensors").exists()


def test_a_pushed_export_shows_its_progress_and_its_page(
    finetuned: tuple[Path, Any],
    tmp_path: Path,
    shown: Shown,
    log_lines: Callable[[UUID], list[str]],
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder, _ = finetuned
    given = {"adapter": str(folder / "runs" / "jazz"), "out": str(tmp_path / "shared"), "push_to": "somebody/jazz"}
    with listening((heard := list[Any]()).append):
        state: Any = export(**given, return_state=True)
    assert state.is_completed() and state.message.endswith(f", and pushed it to {hub.url}/somebody/jazz")
    artifacts = shown(state.state_details.flow_run_id)
    assert artifacts["pushing"].data == 100.0 and "somebody/jazz" in str(artifacts["pushing"].description)
    assert f"{hub.url}/somebody/jazz" in str(artifacts["summary"].data) and "private" in str(artifacts["summary"].data)
    updates = [update for update in heard if isinstance(update, Update) and update.stage == "push"]
    assert updates[-1].done == updates[-1].total and "MB/s, somebody/jazz" in updates[-1].text
    recorded = [state.model_dump_json(), *log_lines(state.state_details.flow_run_id)]
    recorded += [one.model_dump_json() for one in artifacts.values()]
    assert not [text for text in recorded if TOKEN in text or "signature" in text]
    assert hub.repositories["somebody/jazz"].access == "private"


def test_a_push_that_is_refused_fails_the_run_before_the_export(
    finetuned: tuple[Path, Any], tmp_path: Path, hub: StandInHub
) -> None:
    folder, _ = finetuned
    given = {"adapter": str(folder / "runs" / "jazz"), "out": str(tmp_path / "shared"), "push_to": "somebody/jazz"}
    state: Any = export(**given, return_state=True)
    assert state.is_failed() and "needs an HF_TOKEN" in state.message and "hf-token" in state.message
    assert not (tmp_path / "shared").exists()
