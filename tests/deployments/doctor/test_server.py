"""Findings of `doctor` about the Prefect server: one that works, and others that don't."""

from __future__ import annotations

import base64
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.checks.finding import Finding
from deployments.doctor import show
from deployments.environment import ROOT
from tests.deployments.doctor.printed import DEBUG, LOGIN, SECRET, fixes, rows, run_doctor
from tests.stand_in_hub import TOKEN, StandInHub


@contextmanager
def answering(answer: tuple[int, bytes] | None) -> Iterator[str]:
    """Yield the address of a web server that answers everything with one status and content, or not at all."""
    over = threading.Event()

    class OneAnswer(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

        def do_GET(self) -> None:
            if answer is None:
                over.wait(200)
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneAnswer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()


class TestServer:
    @pytest.mark.usefixtures("prefect_server")
    def test_a_real_server(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hub: StandInHub
    ) -> None:
        from prefect.blocks.system import Secret
        from prefect.client.orchestration import get_client
        from prefect.variables import Variable

        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("deployments.checks.services.check_services", list)  # a temporary server has few of them
        names = [f"musicgen_{name}" for name in ("archives", "tokens", "runs", "output")]
        with get_client(sync_client=True) as client:
            if any(pool.name == "gpu" for pool in client.read_work_pools()):
                client.delete_work_pool("gpu")
        Secret(value=SECRET).save("wandb-api-key", overwrite=True)
        variables = {name: str(tmp_path / name) for name in names}
        variables |= {
            "musicgen_model": "debug",
            "musicgen_device": "cpu",
        }  # of `up --model … --device …`
        for name, value in variables.items():
            Variable.set(name, value, overwrite=True)
        try:
            code, printed = run_doctor(capsys, "--clips", "100")
        finally:
            Secret.delete("wandb-api-key")
            for name in variables:
                Variable.unset(name)
        assert code == 0, printed
        table = rows(printed)
        assert table["Prefect API"][0] == "ok"
        assert table["workers"][0] == "warning" and "uv run prefect work-pool create gpu" in printed
        assert "train-lora" in table["deployments"][1]
        assert table["model of jobs"][1].startswith("debug, ") and "--device cpu" in table["GPU"][1]
        assert table["WANDB_API_KEY"] == ("ok", "stored as the Prefect Secret block wandb-api-key")
        assert table["HF_TOKEN"] == ("ok", f"set in the environment, of {hub.user}") and TOKEN not in printed
        assert [table[f"storage: {name}"][0] for name in ("archives", "tokens", "runs", "output")] == [
            "warning",
            *["ok"] * 3,
        ]
        assert "not-to-be-seen" not in printed
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("prefect_server")
    def test_workers_are_those_that_take_jobs_from_both_queues(self) -> None:
        import anyio
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import WorkPoolCreate

        from deployments.checks.server import look_at_server

        def workers() -> Finding:
            return next(finding for finding in look_at_server().findings if finding.check == "workers")

        async def poll(*queues: str) -> None:
            """Send a heartbeat and poll the queues once, as a worker does every few seconds."""
            async with get_client() as client:
                await client.send_worker_heartbeat("gpu", "worker-of-the-test")
                await client.get_scheduled_flow_runs_for_work_pool("gpu", work_queue_names=list(queues))

        with get_client(sync_client=True) as client:
            client.create_work_pool(WorkPoolCreate(name="gpu", type="process"), overwrite=True)
            try:
                client.create_work_queue("tokenizing", work_pool_name="gpu")
                assert workers().level == "warning"
                anyio.run(poll, "default")
                assert workers().level == "warning" and "--work-queue tokenizing" in workers().fix
                anyio.run(poll, "tokenizing")
                assert workers() == Finding("workers", "ok", "online in the pool gpu: worker-of-the-test")
            finally:
                client.delete_work_pool("gpu")

    @pytest.mark.usefixtures("prefect_server")
    def test_a_run_that_breaks_lists_is_named_with_what_deletes_it(self) -> None:
        from prefect.client.orchestration import get_client

        from deployments.checks.server import check_run_lists

        with get_client(sync_client=True) as client:
            flow = str(client.create_flow_from_name("lists"))
            numbers = (1, 10**20, 2)
            created = [
                client.request("POST", "/flow_runs/", json={"flow_id": flow, "parameters": {"limit": number}}).json()
                for number in numbers
            ]
            [finding] = check_run_lists(client)
            broken = created[1]["id"]
            assert finding.level == "problem" and finding.fix.endswith(f"&& uv run prefect flow-run delete {broken}")
            client.delete_flow_run(broken)
            assert check_run_lists(client) == []
            for run in (created[0], created[2]):
                client.delete_flow_run(run["id"])

    @pytest.mark.usefixtures("prefect_server")
    def test_a_paused_automation_is_reported(self) -> None:
        from prefect.client.orchestration import get_client

        from deployments.checks.server import look_at_server
        from deployments.registering import ensure_automations, read_automations

        def findings() -> list[Finding]:
            return [finding for finding in look_at_server().findings if finding.check == "automations"]

        with get_client(sync_client=True) as client:
            for one in client.read_automations():
                client.delete_automation(one.id)  # left on this server by other tests
            automations = read_automations()
            ensure_automations(client, automations)
            created = [one for spec in automations for one in client.read_automations_by_name(spec["name"])]
            try:
                assert [finding.level for finding in findings()] == ["ok"]
                client.pause_automation(created[0].id)
                [finding] = findings()
                assert finding.level == "warning" and finding.found.startswith(f"paused: {automations[0]['name']};")
            finally:
                for one in created:
                    client.delete_automation(one.id)

    @pytest.mark.usefixtures("prefect_server")
    def test_each_service_that_does_nothing_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from prefect.client.orchestration import get_client

        from deployments.checks import services
        from deployments.checks.services import PREFIX

        monkeypatch.setattr(services, "SECONDS", 0.0)  # too little for any
        found = services.check_services()
        assert {finding.level for finding in found} == {"problem"}
        for name in ("scheduler", "late runs", "cancellation cleanup", "event log", "automations on silence"):
            [finding] = [finding for finding in found if finding.found.startswith(f"{name}: did nothing")]
            assert "Restart the server" in finding.fix
        with get_client(sync_client=True) as client:
            assert not [flow for flow in client.read_flows() if flow.name.startswith(PREFIX)]
            assert not [one for one in client.read_automations() if one.name.startswith(PREFIX)]

    def test_a_closed_port(self, capsys: pytest.CaptureFixture[str]) -> None:
        level, found = self.finding("http://127.0.0.1:9/api", capsys)
        assert level == "problem" and found.startswith("nothing answers at http://127.0.0.1:9/api")

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ((401, b'{"exception_message": "Unauthorized"}'), "refuses the login (HTTP 401)"),
            ((200, b"<html>another program</html>"), "is not Prefect's API"),
            ((404, b""), "is not Prefect's API (HTTP 404)"),
            (None, "accepts connections but does not answer"),
        ],
        ids=["login", "page", "nothing there", "silence"],
    )
    def test_a_server_that_does_not_serve_us(
        self,
        answer: tuple[int, bytes] | None,
        said: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("deployments.checks.server.REQUEST_SECONDS", 120.0 if answer else 0.5)
        with answering(answer) as address:
            level, found = self.finding(f"http://{LOGIN}@{address}/api", capsys)
        assert level == "problem" and said in found

    def finding(self, url: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        from deployments.checks.server import look_at_server

        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: LOGIN}):
            show(look_at_server().findings)
        printed = capsys.readouterr().out
        assert "not-to-be-seen" not in printed and base64.b64encode(LOGIN.encode()).decode() not in printed
        return rows(printed)["Prefect API"]

    def test_the_whole_command_with_a_server_that_refuses_the_login(self, tmp_path: Path) -> None:
        """In a process of its own, which reads Prefect's settings from the environment."""
        with answering((401, b'{"exception_message": "Unauthorized"}')) as address:
            done = subprocess.run(
                [sys.executable, "-m", "deployments.cli", "doctor", *DEBUG, "--clips", "100", str(tmp_path / "runs")],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PREFECT_HOME": str(tmp_path / "prefect"),
                    "PREFECT_API_URL": f"http://{address}/api",
                    "PREFECT_API_AUTH_STRING": LOGIN,
                    "WANDB_API_KEY": SECRET,
                    "COLUMNS": "400",
                },
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
            )
        assert done.returncode == 1 and done.stderr == ""
        assert "refuses the login" in rows(done.stdout)["Prefect API"][1]
        assert "export PREFECT_API_AUTH_STRING=USER:PASSWORD" in fixes(done.stdout)[0]
        assert rows(done.stdout)["WANDB_API_KEY"] == ("ok", "set in the environment")
        assert rows(done.stdout)["storage"][0] == "ok" and not (tmp_path / "runs").exists()
        assert "not-to-be-seen" not in done.stdout
