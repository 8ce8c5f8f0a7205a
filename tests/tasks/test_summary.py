"""The summary and music pages after a real `finetune` run with the debug model."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import soundfile
from prefect.client.schemas.objects import FlowRun

from flows.generate_music import generate_music
from musicgen_core.data.shards import Rejected, ShardReport
from musicgen_core.generation.request import Rendered, RenderRequest, outcome_of
from tasks import summary
from tasks.next_steps import Made, Outcome, Step, from_comment
from tasks.summary import rendered_section, tokenized_section
from tests.fixture_types import Shown

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_the_summary_of_finetune_lists_the_files_of_all_parts(
    demo_archives: Path,
    finetuned: tuple[Path, Any],
    shown: Shown,
    subflows: Callable[[UUID], dict[str, FlowRun]],
) -> None:
    folder, state = finetuned
    assert state.is_completed()
    run_id = state.state_details.flow_run_id
    page = str(shown(run_id)["summary"].data)
    assert page.startswith("# finetune · jazz · ")
    for place in ("tokens", "runs/jazz", "runs/jazz/lora_weights/best_lora.pt", "runs/jazz/full_models/best_model.pt"):
        assert f"`{folder}/{place}`" in page
    assert "| `generated_000.wav` | 0.5 | with the adapter | calm \\| plucked strings |" in page
    assert page.count(f"`{folder}/music`") == 1
    assert "Rejected: 1." in page
    outcome = from_comment(page)
    assert outcome is not None
    made = {one.thing: one.place for one in outcome.made}
    assert made["tokens"] == f"{folder}/tokens" and made["best adapter"].endswith("lora_weights/best_lora.pt")
    assert [step.command for step in outcome.steps] == ["generate", "export"]
    assert f"- best adapter:  \n  `{made['best adapter']}`" in page.partition("## What was made")[2]
    visible = page.partition("<!--")[0]
    for place in made.values():
        assert visible.count(f"`{place.removeprefix(f'{folder}/music/')}`") == 1, place

    parts = subflows(run_id)
    assert {run.name.rpartition(" · ")[0] for run in parts.values()} == {  # without the time
        f"tokenize-archives · {demo_archives.name}",
        "train-lora · jazz",
        "generate-music · calm | plucked strings",
    }
    of_parts = {name: shown(run.id) for name, run in parts.items()}
    assert {name: set(found) for name, found in of_parts.items()} == {
        "tokenize-archives": {"dataset", "tokenizing", "tokenized-archives", "summary"},
        "train-lora": {"training-progress", "training", "summary"},
        "generate-music": {"rendering", "music", "generated-music", "summary"},
    }
    best = f"{folder}/runs/jazz/lora_weights/best_lora.pt"
    page = str(of_parts["generate-music"]["summary"].data)
    assert f"Played by the adapter `{best}`." in page and page.count(f"`{folder}/music`") == 1
    message = str(parts["generate-music"].state and parts["generate-music"].state.message)
    assert message == f"2 samples made with {best}, in {folder}/music"
    page = str(of_parts["generate-music"]["music"].data)
    encoded = re.search(r'src="data:audio/mpeg;base64,([^"]+)"', page)
    assert encoded is not None and page.index(r"### calm \| plucked strings") < page.index("### energetic drums")
    assert page.count("<audio controls") == page.count("![Spectrogram of generated_") == 2
    sound = soundfile.info(io.BytesIO(base64.b64decode(encoded[1])))
    assert sound.duration == pytest.approx(0.5, abs=0.1) and sound.samplerate == 32_000


@pytest.mark.parametrize(
    ("voices", "section", "outcome"),
    [
        ([False], "Played by the base model.", "1 sample made with the base model, in music"),
        ([True, True], "Played by the adapter `a_lora.pt`.", "2 samples made with a_lora.pt, in music"),
        (
            [False, True],
            "Played by the adapter `a_lora.pt` and by the base model.",
            "2 samples made with a_lora.pt and the base model, in music",
        ),
    ],
)
def test_summary_and_state_name_the_models_that_played(voices: list[bool], section: str, outcome: str) -> None:
    pieces = [Rendered("music/a.wav", "calm", 0, 0, 1.0, own, ("a_lora.pt",) if own else ()) for own in voices]
    assert section in rendered_section(pieces) and outcome_of(pieces) == outcome


def test_the_summary_names_failed_archives_and_the_fix() -> None:
    report = ShardReport("a.zip", 1, "f", "c", 7, 3600.0, [Rejected("x.wav", "silent")])
    failed = {"/data/archive_batch_0007.zip": "archive_batch_0007.zip is not an | archive"}
    section = tokenized_section("/tokens", [report], failed, ["a remark"])
    assert "Archives: 1. Clips: 7, 1.0 hours of audio. Rejected: 1." in section
    assert "**1 archive failed.**" in section
    assert r"- `/data/archive_batch_0007.zip`: is not an \| archive" in section
    assert "- a remark" in section


def test_a_step_is_a_form_if_a_deployment_exists_else_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "form_link", lambda name, parameters: f"/{name}?{parameters['tokens']}")
    train = Step("Train on them", "train", {"tokens": "/t"}, {"run_dir": "/runs/a`b"})
    up = Step("Work in a browser", "up")
    page = summary.outcome_section(Outcome((Made("tokens", "/t"),), (train, up)))
    assert "**Train on them:** [open the form, filled in](/train-lora?/t)" in page
    assert page.endswith(f"**Work in a browser**, in a terminal:\n\n    {up.command_line()}")
    monkeypatch.setattr(summary, "form_link", lambda name, parameters: None)
    assert f"\n\n    {train.command_line()}" in summary.outcome_section(Outcome(steps=(train, up)))
    assert summary.outcome_section(Outcome()) == ""


def test_one_page_plays_both_voices_of_all_prompts(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musicgen_core.generation import render

    def rendered(request: RenderRequest, on_progress: Any, on_piece: Any) -> list[Rendered]:
        pieces = []
        for number in (0, 2, 1, 3):  # all of one voice, then of the other
            prompt = request.prompts[number // 2].prompt
            wav = Path(request.out) / f"generated_{number:03d}.wav"
            wav.parent.mkdir(exist_ok=True)
            soundfile.write(wav, [0.0] * 3200, 32_000)
            pieces.append(Rendered(str(wav), prompt, number // 2, 0, 0.1, with_adapter=bool(number % 2)))
            on_progress(number + 1, 4, f"sample {number + 1} of 4")
            on_piece(pieces[-1])
        return pieces

    monkeypatch.setattr(render, "render", rendered)
    state: Any = generate_music(
        output=str(tmp_path / "music"), prompts=["one", "two"], adapter="any", compare=True, return_state=True
    )
    found = shown(state.state_details.flow_run_id)
    assert set(found) == {"rendering", "music", "generated-music", "summary"}
    page = str(found["music"].data)
    assert page.count("<audio controls") == 4
    names = ["### one", *(f"generated_{number:03d}.wav" for number in (0, 1)), "### two"]
    places = [page.index(name) for name in (*names, "generated_002.wav", "generated_003.wav")]
    assert places == sorted(places)
    voices = re.findall(r"\*\*(base model|with the adapter)\*\*", page)
    assert voices == ["base model", "with the adapter"] * 2


@pytest.mark.parametrize("again", ["", "Fix what is listed"])
def test_a_failure_comes_before_the_notice_on_descriptions(again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", "tokenizing")
    pages: list[str] = []
    artifacts: Any = SimpleNamespace(markdown=lambda key, page, description: pages.append(page()))
    outcome = Outcome(notice="None of the 8 clips has a description")
    summary.show_summary(artifacts, lambda: "**1 archive failed.**", outcome=lambda: outcome, again=again)
    [page] = pages
    visible = page.partition("<!--")[0]
    assert visible.count(outcome.notice) == 1
    assert (visible.index("1 archive failed") < visible.index(outcome.notice)) == bool(again)
