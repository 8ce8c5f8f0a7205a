"""Many prompts run as a flow from the studio, and runs link to the studio while it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.variables import Variable

from deployments.studio import flow_runs
from musicgen_core.errors import MusicgenError
from tasks import studio_link
from tasks.studio_link import StudioServer
from tests.studio_site import Site


def test_without_a_server_the_reason_is_given(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_runs, "has_api", lambda: False)
    reason = "no Prefect server is running. Start one: uv run musicgen-flows up, then the studio again"
    assert site.client.get("/api/flow").json() == {"reason": reason}
    answer = site.client.post("/api/flow", json={"prompts": ["one"], "wish": {}})
    assert (answer.status_code, answer.json()["error"]) == (422, reason)
    assert site.client.post("/api/flow", json={"prompts": [], "wish": {}}).status_code == 422


def test_prompts_run_as_a_flow_with_the_settings_of_the_form(
    client: SyncPrefectClient, site: Site, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.client.get("/api/flow").json() == {"reason": ""}
    (adapter,) = site.client.get("/api/adapters").json()
    wish = {"strengths": {adapter["id"]: 0.5}, "seed": 3, "duration": 4, "top_k": 20, "tempo": 90, "guidance": 2}
    answer = site.client.post("/api/flow", json={"prompts": ["one", "two"], "wish": wish})
    assert answer.status_code == 201, answer.text
    (run,) = (run for run in client.read_flow_runs() if run.name == "generate-music")
    given = run.parameters
    assert (given["prompts"], given["output"]) == (["one", "two"], str(site.served.folder.path))
    assert (given["adapter"], given["seed"], given["duration"]) == (f"{runs / 'jazz'}:0.5", 3, 4)
    assert (given["sampling"]["top_k"], given["sampling"]["guidance"]) == (20, 2)
    assert "90" in str(given)
    client.delete_flow_run(run.id)


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
