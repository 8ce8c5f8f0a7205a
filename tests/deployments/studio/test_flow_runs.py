"""Many prompts run as a flow from the studio, and runs link to the studio while it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.variables import Variable

from deployments.studio import flow_runs
from deployments.studio.adapters import OfferedAdapter
from deployments.studio.form_request import FlowForm, StudioForm
from musicgen_core.errors import MusicgenError
from musicgen_core.model.weights import BaseModel
from tasks import studio_link
from tasks.studio_link import StudioServer
from tests.studio_site import Site


def test_without_a_server_the_reason_is_given(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_runs, "has_api", lambda: False)
    reason = "no Prefect server is running. Start one: uv run musicgen-flows up, then the studio again"
    assert site.client.get("/api/flow").json() == {"reason": reason}
    answer = site.client.post("/api/flow", json={"prompts": ["one"], "form": {}})
    assert (answer.status_code, answer.json()["error"]) == (422, reason)
    assert site.client.post("/api/flow", json={"prompts": [], "form": {}}).status_code == 422


def test_prompts_run_as_a_flow_with_the_settings_of_the_form(
    client: SyncPrefectClient, site: Site, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.client.get("/api/flow").json() == {"reason": ""}
    (adapter,) = site.client.get("/api/adapters").json()
    form = {"strengths": {adapter["id"]: 0.5}, "seed": 3, "duration": 4, "top_k": 20, "tempo": 90, "guidance": 2}
    answer = site.client.post("/api/flow", json={"prompts": ["one", "two"], "form": form})
    assert answer.status_code == 201, answer.text
    (run,) = (run for run in client.read_flow_runs() if run.name == "generate-music")
    given = run.parameters
    assert (given["prompts"], given["output"], given["model"]) == (
        ["one", "two"],
        str(site.served.folder.path),
        "debug",
    )
    assert (given["adapter"], given["seed"], given["duration"]) == (f"{runs / 'jazz'}:0.5", 3, 4)
    assert (given["sampling"]["top_k"], given["sampling"]["guidance"]) == (20, 2)
    assert given["control"]["tempo"] == 90
    client.delete_flow_run(run.id)


def test_a_flow_has_a_seed_of_its_own_and_the_recording_to_continue(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []

    def start(given: dict[str, Any]) -> str:
        started.append(given)
        return ""

    monkeypatch.setattr(flow_runs, "start", start)
    (stem,) = site.wait(site.make(prompt="first", seed=1, duration=1))["pieces"]
    for _ in range(2):
        form = {"source": stem, "until": 0.4, "duration": 2}
        answer = site.client.post("/api/flow", json={"prompts": ["more"], "form": form})
        assert answer.status_code == 201, answer.text
    one, other = started
    assert one["seed"] != other["seed"] and one["duration"] == pytest.approx(2.4)
    assert soundfile.info(one["continue_from"]).duration == pytest.approx(0.4)


def test_adapters_and_models_of_this_machine_have_absolute_paths_in_flows(
    site: Site, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    offered = {"a": OfferedAdapter("a", "jazz", "jazz"), "b": OfferedAdapter("b", "someone/on-the-hub", "hub")}
    form = FlowForm(prompts=("one",), form=StudioForm(strengths={"a": 0.5, "b": 1}))
    given = form.parameters(site.served.folder, offered, BaseModel("jazz", runs / "jazz"), stereo=False)
    assert (given["adapter"], given["model"]) == (f"{runs / 'jazz'}:0.5, someone/on-the-hub", str(runs / "jazz"))


@pytest.mark.usefixtures("prefect_server")
def test_a_deployment_of_another_version_is_to_be_registered_again() -> None:
    with pytest.raises(
        MusicgenError, match=r"generate-music was registered by another version: .*unheard_of"
    ) as raised:
        flow_runs.start({"prompts": ["one"], "unheard_of": 1})
    assert "Register it again: uv run musicgen-flows up" in str(raised.value)


@pytest.mark.usefixtures("prefect_server")
def test_runs_link_to_the_studio_while_it_answers(site: Site) -> None:
    server = StudioServer(site.url + "/", site.url)

    @flow
    def link() -> str:
        studio_link._studio.cache_clear()
        return studio_link.studio_link("Make more")

    assert link() == ""
    server.publish()
    assert link() == f"[Make more]({site.url}/)"
    StudioServer("http://127.0.0.1:1/", "http://127.0.0.1:1").publish()
    assert link() == ""
    server.retract()  # another one's stays
    assert Variable.get(studio_link.VARIABLE) is not None
    Variable.unset(studio_link.VARIABLE)
    assert studio_link.studio_link("outside of a run") == ""
