"""A sample is made again from its sidecar, whatever made it; what the studio cannot make is refused with a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.generation.seam_settings import SeamSettings
from musicgen_core.model.weighted_adapters import WeightedAdapter
from tests.studio_site import Site

SAMPLING = SamplingSettings(duration=2, seed=7, top_p=0.9, overlap=10, temperature=0.8)


def rendered(site: Site, prompt: Prompt, **given: Any) -> str:
    """Render a prompt as `generate` does, into the studio's folder; return the stem of the last sample."""
    request = RenderRequest(
        **{"out": str(site.served.folder.path), "prompts": [prompt], "model": "debug", "device": "cpu"}
        | {"settings": SAMPLING}
        | given
    )
    return Path(render(request)[-1].wav).stem


def form_of(site: Site, stem: str, **given: Any) -> dict[str, Any]:
    answer = site.client.get(f"/api/pieces/{stem}/form", params=given)
    assert answer.status_code == 200, answer.text
    values: dict[str, Any] = answer.json()["values"]
    return values


def change(site: Site, stem: str, **values: Any) -> None:
    path = site.served.folder.path / f"{stem}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(site: Site, stem: str) -> str:
    answer = site.client.get(f"/api/pieces/{stem}/form")
    assert answer.status_code == 422
    return str(answer.json()["error"])


PROMPT = Prompt(prompt="slow piano", tempo=90, key="A minor", instruments=("piano", "strings"), negative_prompt="drums")


@pytest.mark.parametrize(
    ("prompt", "given"),
    [
        (PROMPT.model_copy(update={"sections": ("0:intro", "1:drums enter")}), {"variations": 2}),
        (PROMPT, {"seams": SeamSettings(loop=True, seam_candidates=2)}),
        (Prompt(prompt="greedy"), {"settings": SAMPLING.model_copy(update={"greedy": True})}),
        (Prompt(prompt="best", best_of=2), {}),
    ],
    ids=["fields, sections, second variation", "loop", "greedy", "best of two"],
)
def test_a_sample_of_generate_is_made_again_by_the_form(site: Site, prompt: Prompt, given: dict[str, Any]) -> None:
    stem = rendered(site, prompt, **given)
    wav = site.served.folder.path / f"{stem}.wav"
    before = wav.read_bytes()
    job = site.wait(site.make(**form_of(site, stem)))
    assert stem in job["pieces"], (job, form_of(site, stem))  # the same sample: it replaces itself
    assert wav.read_bytes() == before


def test_a_part_made_again_is_made_again_with_another_seed(site: Site) -> None:
    (whole,) = site.wait(site.make(prompt="whole", duration=1))["pieces"]
    (redone,) = site.wait(site.make(prompt="whole", source=whole, redo="0.4-0.6", seam_candidates=2))["pieces"]
    values = form_of(site, redone)
    assert (values["source"], values["redo"], values["seam_candidates"]) == (whole, "0.4-0.6", 2)
    job = site.wait(site.make(**values | {"seed": 5}))
    assert job["state"] == "done", job
    assert soundfile.info(site.served.folder.path / f"{job['pieces'][0]}.wav").duration == 1
    without = form_of(site, redone, with_source=False)
    assert not {"source", "redo", "duration"} & without.keys()


def test_an_adapter_is_found_however_its_path_is_spelled(
    site: Site, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter,) = site.client.get("/api/adapters").json()
    monkeypatch.chdir(runs.parent)
    mix = (WeightedAdapter(f"{runs.name}/jazz/lora_weights/best_lora.pt", 0.5),)
    stem = rendered(site, Prompt(prompt="mixed"), adapters=mix)
    assert form_of(site, stem)["strengths"] == {adapter["id"]: 0.5}


def test_what_the_studio_cannot_make_again_is_refused_with_a_reason(site: Site) -> None:
    (first,) = site.wait(site.make(prompt="first", seed=1, duration=0.5))["pieces"]
    (stem,) = site.wait(site.make(prompt="more", seed=1, duration=0.5, source=first))["pieces"]
    site.wait(site.make(prompt="first", seed=2, duration=0.5))
    change(site, stem, continued_from="/elsewhere/generated_000.wav")
    assert f"{stem} continues /elsewhere/generated_000.wav" in refusal(site, stem)
    assert "source" not in form_of(site, stem, with_source=False)
    change(site, stem, continued_from=str(site.served.folder.path / f"{first}.wav"), continued_from_sha256="0" * 64)
    assert "isn't in the studio's folder as it was" in refusal(site, stem)
    change(site, stem, adapter={"path": "/runs/gone/lora_weights/best_lora.pt", "strength": 1})
    assert "the adapter gone/best_lora.pt" in refusal(site, stem)
    change(site, stem, adapter=None, model="facebook/musicgen-large@sha256:00")
    assert "made with the model facebook/musicgen-large" in refusal(site, stem)
    change(site, stem, model=None, melody="/m.wav")
    assert "follows a melody" in refusal(site, stem)
    change(site, stem, melody=None, continued_from=None, sampling={"temperature": "hot"})
    assert "temperature" in refusal(site, stem)
    assert "there is no sample generated_999" in refusal(site, "generated_999")


def test_values_that_do_not_fit_together_are_refused_at_once_without_options_of_the_command_line(site: Site) -> None:
    (stem,) = site.wait(site.make(prompt="first", seed=1, duration=0.5))["pieces"]
    for form, found in (
        ({"loop": True, "source": stem}, "a loop can't continue a recording"),
        ({"source": stem, "redo": "0-0.5"}, "is all of"),
        ({"negative_prompt": "drums", "guidance": 1}, "no effect at guidance 1"),
    ):
        answer = site.client.post("/api/jobs", json=form)
        assert answer.status_code == 422
        assert found in answer.json()["error"] and "--" not in answer.json()["error"]


def test_the_state_tells_that_another_program_wrote_a_sample(site: Site) -> None:
    before = site.client.get("/api/state").json()["music"]
    assert site.client.get("/api/state").json()["music"] == before
    rendered(site, Prompt(prompt="by another program"))
    assert site.client.get("/api/state").json()["music"] != before
