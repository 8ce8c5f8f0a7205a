"""Runs that `run` creates, with and without `--watch`, on a real, temporary server."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.states import Completed, Failed, Running

from deployments.cli import main
from deployments.registering import POOL
from musicgen_core.escaping import markdown_text
from tasks.next_steps import Made, Outcome, Step, as_comment
from tests.deployments.registered import deployed, offered


def test_run_shows_the_outcome_and_refuses_unknown_parameters(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["-p", "lora_rank=4", "-p", "num_epochs=many"]
    assert main(["run", "train-lora", *wrong]) == 2
    error = capsys.readouterr().err
    assert "no parameter 'lora_rank' (perhaps lora_r); it has tokens, run_dir, model" in error
    assert "num_epochs" in error

    created: list[UUID] = []

    def fail(seconds: float) -> None:
        """Let the watched run fail, as a worker would report it."""
        created.append(UUID(capsys.readouterr().out.partition("/runs/flow-run/")[2].split()[0]))
        client.set_flow_run_state(created[0], Failed(message="2 of 3 archives failed"), force=True)

    monkeypatch.setattr("deployments.watching.time", SimpleNamespace(sleep=fail))  # others sleep, too
    assert main(["run", "tokenize-archives", "-p", "limit=3", "--watch"]) == 1
    *_, retry = printed = capsys.readouterr().out.splitlines()
    assert any(line.endswith("Failed: 2 of 3 archives failed") for line in printed)
    assert retry.endswith(f" prefect flow-run retry {created[0]}")
    assert client.read_flow_run(created[0]).parameters == {"limit": 3}


@pytest.mark.parametrize("ending", ["refused", "invalid", "failed"])
def test_a_watched_run_that_is_refused_advises_to_correct_its_parameters(
    ending: str, client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = {"invalid": "Validation of flow parameters failed with error:\nlora_r: 0"}
    pages: list[str] = []

    def end(seconds: float) -> None:
        """End the run as its flow would, with or without a summary."""
        pages.append(next(line for line in capsys.readouterr().out.splitlines() if "/runs/flow-run/" in line))
        run = UUID(pages[0].rpartition("/")[2])
        if ending != "invalid":
            page = f"# Title\n\n{as_comment(Outcome(is_refused=ending == 'refused'))}"
            client.create_artifact(ArtifactCreate(key="summary", type="markdown", data=page, flow_run_id=run))
        client.set_flow_run_state(run, Failed(message=messages.get(ending, "it can't")), force=True)

    monkeypatch.setattr("deployments.watching.time", SimpleNamespace(sleep=end))  # others sleep, too
    assert main(["run", "train-lora", "--watch"]) == 1
    *_, advice, place = capsys.readouterr().out.splitlines()
    if ending == "failed":
        assert advice == "to run it again once the reason is gone:" and " prefect flow-run retry " in place
    else:
        assert advice == "to correct its parameters, press Copy to new run on its page:" and place == pages[0]


def test_an_unwatched_run_prints_its_name_and_its_page(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "train-lora", "-p", "seed=3"]) == 0
    *_, said, page = capsys.readouterr().out.splitlines()
    run = client.read_flow_run(UUID(page.partition("/runs/flow-run/")[2]))
    assert said.startswith(f"Created the run {run.name}. ") and "--watch" in said
    assert page.startswith("http") and run.parameters == {"seed": 3}


def test_a_watched_run_shows_progress_outputs_and_next_command(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step("Train on them", "train", {"tokens": "/a b/tokens"}, {"run_dir": "/runs/run"})
    page = f"# Title\n\n{as_comment(Outcome((Made('tokens', '/a b/tokens'),), (step,)))}"
    printed: list[str] = []

    def work(seconds: float) -> None:
        """Report progress and then a summary, as the run would."""
        printed.append(capsys.readouterr().out)
        run = UUID("".join(printed).partition("/runs/flow-run/")[2].split()[0])
        if len(printed) == 1:
            progress = ArtifactCreate(key="tokenizing", type="progress", data=40.0, flow_run_id=run)
            progress.description = markdown_text("Tokenizing: 2 of 5 archives [x]")
            client.create_artifact(progress)
        else:
            client.create_artifact(ArtifactCreate(key="summary", type="markdown", data=page, flow_run_id=run))
            client.set_flow_run_state(run, Completed(), force=True)

    monkeypatch.setattr("deployments.watching.time", SimpleNamespace(sleep=work))  # others sleep, too
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert main(["run", "tokenize-archives", "--watch"]) == 0
    lines = ("".join(printed) + capsys.readouterr().out).splitlines()
    assert any("waiting for a worker" in line for line in lines)
    assert "tokenizing: 40 of 100, Tokenizing: 2 of 5 archives [x]" in lines
    assert lines[lines.index("tokens:") + 1] == "/a b/tokens"
    assert lines[-1] == "musicgen-flows run train-lora -p 'tokens=/a b/tokens' --watch"


def test_a_watched_run_shows_once_why_it_waits(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client.create_flow_run_from_deployment(deployed(client, "tokenize-archives").id, name="the-one-before")
    shown: list[str] = []

    def go_on(seconds: float) -> None:
        """Twice each: no worker, a worker with the run before, the same worker with nothing to do; then the end."""
        shown.append(capsys.readouterr().out)
        if len(shown) == 2:
            client.request("POST", f"/work_pools/{POOL}/workers/heartbeat", json={"name": "worker-of-the-test"})
            assert offered(client)
            client.set_flow_run_state(before.id, Running(), force=True)
        elif len(shown) == 4:
            client.set_flow_run_state(before.id, Completed(), force=True)
        elif len(shown) == 6:
            run = UUID("".join(shown).partition("/runs/flow-run/")[2].split()[0])
            client.set_flow_run_state(run, Completed(), force=True)

    monkeypatch.setattr("deployments.watching.PATIENCE", timedelta(0))
    monkeypatch.setattr("deployments.watching.time", SimpleNamespace(sleep=go_on))  # others sleep, too
    assert main(["run", "tokenize-archives", "--watch"]) == 0
    lines = "".join(shown).splitlines()
    assert lines.count("Waiting: the queue tokenizing is busy with the-one-before") == 1
    [nobody] = [line for line in lines if line.startswith("no worker is online in the pool gpu for the queue tokeniz")]
    assert nobody.endswith("uv run prefect worker start --pool gpu --limit 1 --work-queue tokenizing")
    assert len([line for line in lines if line.startswith("http")]) == 1  # the run's page, to be copied


def test_no_second_start_is_advised_when_the_server_stops(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr("deployments.run.watch_run", stop)
    assert main(["run", "tokenize-archives", "--watch"]) == 1
    printed = capsys.readouterr()
    client.delete_flow_run(UUID(printed.out.partition("/runs/flow-run/")[2].split()[0]))
    assert "stopped answering" in printed.err and "its UI shows the run" in printed.err
    assert "Run the same command again" not in printed.err
