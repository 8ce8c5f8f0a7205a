"""`musicgen-flows doctor` as a person meets it: a table, what to fix, an exit code, and nothing left behind."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deployments.checks.disk import check_disk, run_directory_bytes
from deployments.checks.finding import Check, Finding, attempt, attempt_all, redact
from deployments.checks.machine import check_compiler, check_gpus
from deployments.checks.memory import needed_gib
from deployments.checks.model_size import measure_model
from deployments.checks.packages import check_packages
from deployments.checks.places import check_places
from deployments.cli import COMMANDS, main
from deployments.doctor import show
from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.training.room import Sizes

ROOT = Path(__file__).resolve().parent.parent.parent
DEBUG = ["--model", "debug", "--device", "cpu"]
HANGS = "exec sleep 300"
LOGIN = "admin:login-not-to-be-seen"
SECRET = "wandb-0123456789-not-to-be-seen"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.console.output.width", 400)
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where no server is set: also in a session where other tests have one."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "")  # nor is one looked for
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def rows(printed: str) -> dict[str, tuple[str, str]]:
    """check → level and what was found; a check that stands there twice keeps its last row."""
    lines = (line.strip("│").split("│") for line in printed.splitlines() if line.startswith("│"))
    return {name.strip(): (level.strip(), found.strip()) for name, level, found in lines}


def fixes(printed: str) -> list[str]:
    """The numbered list under `To fix:`."""
    return re.findall(r"^\d+\. (.*)$", printed.partition("To fix:")[2].partition("If you want")[0], re.MULTILINE)


def run_doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["doctor", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err and captured.err == ""
    return code, captured.out


@pytest.mark.usefixtures("without_server")
class TestCommand:
    def test_a_machine_that_is_fine_for_the_debug_model(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, printed = run_doctor(capsys, *DEBUG, "--clips", "100", str(tmp_path))
        assert code == 0, printed
        assert "There is nothing to fix." in printed
        table = rows(printed)
        assert {level for level, _ in table.values()} <= {"ok", "warning"}
        for check in ("Python", "packages", "GPU", "C compiler", "memory", "disk", "HF_TOKEN", "storage"):
            assert check in table
        assert table["Prefect API"][0] == "warning" and "temporary" in table["Prefect API"][1]
        assert "musicgen-flows up" in printed

    def test_a_problem_makes_it_fail_and_says_what_to_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("not a folder")
        code, printed = run_doctor(capsys, *DEBUG, f"--runs={tmp_path / 'file' / 'runs'}")
        assert code == 1
        level, found = rows(printed)["storage: runs"]
        assert level == "problem" and f"{tmp_path}/file/runs: can't write there" in found
        [fix] = fixes(printed)
        assert "ls -ld" in fix

    def test_an_error_in_one_check_is_that_checks_problem(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_device: str) -> list[Finding]:
            raise SystemExit("the driver took the process with it")

        monkeypatch.setattr("deployments.checks.machine.check_machine", broken)
        code, printed = run_doctor(capsys, *DEBUG, str(tmp_path))
        assert code == 1
        level, found = rows(printed)["GPU"]
        assert level == "problem" and "SystemExit: the driver took the process with it" in found
        assert rows(printed)["storage"][0] == "ok"

    def test_a_directory_that_is_no_model_is_told_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, printed = run_doctor(capsys, "--model", str(tmp_path), "--device", "cpu", str(tmp_path))
        assert code == 1
        assert "has no state_dict.bin" in rows(printed)["model"][1]
        assert len(fixes(printed)) == 1

    def test_wrong_usage_lists_every_problem_at_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--device", "tpu", "--clips", "0", "--colour"]) == 2
        printed = capsys.readouterr().err
        assert all(text in printed for text in ("not 'tpu'", "--clips: should be 1 or more", "no option --colour"))
        assert main(["doctor", "--clips", "many"]) == 2
        assert "--clips" in capsys.readouterr().err

    def test_help_explains_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--help"]) == 0
        assert "--model" in capsys.readouterr().out and "not there" not in COMMANDS["doctor"].summary


class Failing(MemoryFileSystem):
    """A storage on which one step fails."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    _step = ""

    @classmethod
    @contextmanager
    def at(cls, step: str) -> Iterator[None]:
        cls._step = step
        yield
        cls._step = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("failing://"))

    def _fail_at(self, step: str) -> None:
        if self._step == step:
            raise OSError(5, "Input/output error")

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            self._fail_at("read")
        return super().open(path, mode, **options)

    def glob(self, path: str, **options: Any) -> Any:
        self._fail_at("list")
        return super().glob(path, **options)

    def rm(self, path: str, **options: Any) -> None:
        self._fail_at("delete")
        super().rm(path, **options)


class TestPlaces:
    def test_nothing_stays_in_a_place_that_is_fine(self, tmp_path: Path) -> None:
        memory = storage.as_path(f"memory://{uuid.uuid4().hex}/folder")
        there, missing = tmp_path / "there [1]*", tmp_path / "not" / "there" / "yet"
        there.mkdir()
        places = {"runs": str(memory), "tokens": str(there), "output": str(missing)}
        assert [finding.level for finding in check_places(places)] == ["ok"] * 3
        assert list(tmp_path.rglob("*")) == [there]
        assert memory.fs.find(memory.path) == []

    @pytest.mark.filterwarnings("ignore:UPath 'failing'")
    @pytest.mark.parametrize("step", ["read", "list", "delete"])
    def test_nothing_stays_where_a_step_fails_unless_it_is_the_deletion(self, step: str) -> None:
        fsspec.register_implementation("failing", Failing, clobber=True)
        folder = uuid.uuid4().hex
        with Failing.at(step):
            [found] = check_places({"runs": f"failing://{folder}"})
        assert found.level == "problem"
        assert f"{folder}: can't {step} there (Input/output error" in found.found
        left = [name for name in Failing.store if folder in name]
        assert [name for name in left if name.rpartition("/")[2] not in found.found] == []
        assert len(left) == (step == "delete")

    def test_another_users_folder_is_a_problem_that_names_it(self, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o500)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            found = check_places({"tokens": str(theirs), "runs": str(theirs / "new" / "run")})
            room = check_disk(measure_model("debug"), {"runs": str(theirs / "new")}, clips=10)
        finally:
            os.seteuid(user)
        for finding in found:
            assert finding.level == "problem" and f"{theirs}" in finding.found, finding
            assert "can't write there" in finding.found and "ermission denied" in finding.found
        assert [finding.level for finding in room] == ["ok"]
        assert list(theirs.iterdir()) == []

    def test_archives_are_only_read(self, demo_archives: Path, tmp_path: Path) -> None:
        before = sorted(demo_archives.rglob("*"))
        [found] = check_places({"archives": f"{demo_archives}/*.zip"})
        assert found.level == "ok" and "2 of them" in found.found
        assert sorted(demo_archives.rglob("*")) == before
        [found] = check_places({"archives": str(tmp_path)})
        assert found.level == "warning" and "no archives found" in found.found

    def test_a_kind_of_url_that_is_not_known(self) -> None:
        [found] = check_places({}, ["nothingknown://here"])
        assert found.level == "problem" and "nothingknown://here" in found.found

    def test_a_server_that_is_not_there(self) -> None:
        [found] = check_places({}, ["ftp://127.0.0.1:9/folder"])
        assert found.level == "problem" and "ftp://127.0.0.1:9/folder can't be reached" in found.found

    def test_a_place_that_hangs_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ftp to a port that accepts and never speaks."""
        monkeypatch.setattr("deployments.checks.places.SECONDS", 1.0)
        monkeypatch.setattr("deployments.checks.places.CLEAN_UP_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            place = f"ftp://127.0.0.1:{silent.getsockname()[1]}/folder"
            begun = time.monotonic()
            [found] = check_places({}, [place])
            assert time.monotonic() - begun < 25  # ftp itself gives up after 30
        assert found.level == "problem" and found.found == f"{place}: no answer within 1 seconds"


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers as Google Cloud Storage does, for as much as the probe asks. Rights are refused as told."""

    denied: frozenset[str] = frozenset()
    is_missing = False
    refuses_login = False
    objects: dict[str, bytes]

    def log_message(self, *_args: object) -> None:
        pass

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode())

    def _refuse(self, right: str) -> bool:
        if self.refuses_login:
            self._json({"error": {"code": 401, "message": "Anonymous caller"}}, 401)
        elif self.is_missing:
            self._json({"error": {"code": 404, "message": "The specified bucket does not exist."}}, 404)
        elif right in self.denied:
            message = f"worker@project does not have storage.objects.{right} access to the bucket."
            self._json({"error": {"code": 403, "message": message}}, 403)
        return self.refuses_login or self.is_missing or right in self.denied

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._refuse("create"):
            boundary = body.split(b"\n", 1)[0]
            _, described, content, _ = body.split(boundary)
            name = json.loads(described.split(b"\n\n", 1)[1])["name"]
            self.objects[name] = content.split(b"\n\n", 1)[1].removesuffix(b"\n")
            self._json(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        size = str(len(self.objects[name]))
        return {"name": name, "bucket": "bucket", "size": size, "generation": "1", "contentType": "text/plain"}

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        name = urllib.parse.unquote(url.path.partition("/o/")[2])
        if not name:
            if not self._refuse("list"):
                prefix = query.get("prefix", [""])[0]
                self._json({"items": [self._describe(one) for one in self.objects if one.startswith(prefix)]})
        elif not self._refuse("get"):
            if name not in self.objects:
                self._json({"error": {"code": 404, "message": "No such object"}}, 404)
            elif query.get("alt") == ["media"]:
                self._answer(200, self.objects[name])
            else:
                self._json(self._describe(name))

    def do_DELETE(self) -> None:
        if not self._refuse("delete"):
            self.objects.pop(urllib.parse.unquote(self.path.partition("/o/")[2]).partition("?")[0])
            self._answer(204, b"")


@contextmanager
def google(monkeypatch: pytest.MonkeyPatch, **given: Any) -> Iterator[type[Bucket]]:
    """gcsfs itself, against a server on this machine."""
    import gcsfs

    handler = type("GivenBucket", (Bucket,), {"objects": {}, **given})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        gcsfs.GCSFileSystem.clear_instance_cache()
        try:
            yield handler
        finally:
            gcsfs.GCSFileSystem.clear_instance_cache()
            server.shutdown()


class TestGoogle:
    def test_a_bucket_that_is_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with google(monkeypatch) as bucket:
            [found] = check_places({}, ["gs://bucket/folder"])
        assert found.level == "ok", found
        assert bucket.objects == {}

    @pytest.mark.parametrize(
        ("denied", "step"), [("create", "write"), ("get", "read"), ("list", "list"), ("delete", "delete")]
    )
    def test_a_right_that_is_missing_is_named_with_its_url(
        self, denied: str, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with google(monkeypatch, denied=frozenset([denied])) as bucket:
            [found] = check_places({}, ["gs://bucket/folder"])
        assert found.level == "problem"
        assert f"gs://bucket/folder: can't {step} there, which needs the right storage.objects.{denied}" in found.found
        assert "add-iam-policy-binding gs://bucket " in found.fix
        if bucket.objects:  # it may not be deleted: then its name is told
            [name] = bucket.objects
            assert f"{name.rpartition('/')[2]} stays there" in found.found

    def test_archives_in_a_bucket_need_nothing_but_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        archives = {"folder/archive_batch_0001.zip": b"PK\x03\x04"}
        with google(monkeypatch, denied=frozenset(["create", "delete"]), objects=archives):
            [found] = check_places({"archives": "gs://bucket/folder"})
        assert found.level == "ok" and "1 of them" in found.found
        with google(monkeypatch, denied=frozenset(["get"]), objects=archives):
            [found] = check_places({"archives": "gs://bucket/folder"})
        assert found.level == "problem" and "storage.objects.get" in found.found

    def test_a_login_that_google_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with google(monkeypatch, refuses_login=True):
            [found] = check_places({}, ["gs://bucket/folder"])
        assert found.level == "problem" and "Google refuses this machine's login" in found.found
        assert "gcloud auth application-default login" in found.fix

    def test_a_bucket_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with google(monkeypatch, is_missing=True):
            [found] = check_places({}, ["gs://bucket/folder"])
        assert found.level == "problem" and "there is no bucket gs://bucket" in found.found
        assert found.fix.endswith("gcloud storage buckets create gs://bucket")


@contextmanager
def answering(answer: tuple[int, bytes] | None) -> Iterator[str]:
    """The address of a web server that answers everything with one status and content, or not at all."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
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

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()


class TestServer:
    @pytest.mark.usefixtures("prefect_server")
    def test_a_real_server(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from prefect.blocks.system import Secret
        from prefect.client.orchestration import get_client
        from prefect.variables import Variable

        monkeypatch.setenv("HF_TOKEN", f"{SECRET}-of-hf")
        names = [f"musicgen_{name}" for name in ("archives", "tokens", "runs", "output")]
        with get_client(sync_client=True) as client:
            if any(pool.name == "gpu" for pool in client.read_work_pools()):
                client.delete_work_pool("gpu")
        Secret(value=SECRET).save("wandb-api-key", overwrite=True)
        for name in names:
            Variable.set(name, str(tmp_path / name), overwrite=True)
        try:
            code, printed = run_doctor(capsys, *DEBUG, "--clips", "100")
        finally:
            Secret.delete("wandb-api-key")
            for name in names:
                Variable.unset(name)
        assert code == 0, printed
        table = rows(printed)
        assert table["Prefect API"][0] == "ok"
        assert table["workers"][0] == "warning" and "prefect work-pool create gpu" in printed
        assert "train-lora" in table["deployments"][1]
        assert table["WANDB_API_KEY"] == ("ok", "stored as the Prefect Secret block wandb-api-key")
        assert table["HF_TOKEN"] == ("ok", "set in the environment")
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
            """What a worker asks the server for, every few seconds."""
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
    def test_an_automation_that_is_paused_is_told(self) -> None:
        from prefect.client.orchestration import get_client

        from deployments.checks.server import look_at_server
        from deployments.registering import ensure_automations, read_automations

        def told() -> list[Finding]:
            return [finding for finding in look_at_server().findings if finding.check == "automations"]

        with get_client(sync_client=True) as client:
            automations = read_automations()
            ensure_automations(client, automations)
            created = [one for spec in automations for one in client.read_automations_by_name(spec["name"])]
            try:
                assert [finding.level for finding in told()] == ["ok"]
                client.pause_automation(created[0].id)
                [finding] = told()
                assert finding.level == "warning" and finding.found.startswith(f"paused: {automations[0]['name']};")
            finally:
                for one in created:
                    client.delete_automation(one.id)

    def test_a_closed_port(self, capsys: pytest.CaptureFixture[str]) -> None:
        level, found = self.told("http://127.0.0.1:9/api", capsys)
        assert level == "problem" and found.startswith("nothing answers at http://127.0.0.1:9/api")

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ((401, b'{"exception_message": "Unauthorized"}'), "refuses the login (HTTP 401)"),
            ((200, b"<html>another program</html>"), "is not Prefect's API"),
            ((404, b""), "is not Prefect's API"),
            (None, "nothing answers at"),
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
            level, found = self.told(f"http://{LOGIN}@{address}/api", capsys)
        assert level == "problem" and said in found

    def told(self, url: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
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


class TestSecrets:
    @pytest.mark.parametrize("secret", [SECRET, f"{SECRET}\n", f" two\twords {SECRET} ", "päss'wörd-" + SECRET])
    def test_no_form_of_a_key_is_shown(
        self, secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", secret)
        encoded = base64.b64encode(secret.encode()).decode()

        def leaks() -> Finding:
            raise RuntimeError(f"Illegal header value {f'Bearer {secret}'!r}, {secret}, Basic {encoded} {'x' * 300}")

        found = attempt(5, Check("network", leaks))
        show([found, Finding("other", "warning", f"found {secret}", f"run it with {secret}")])
        printed = capsys.readouterr().out
        assert "not-to-be-seen" not in printed and encoded not in printed
        assert "Illegal header value" in printed

    def test_one_thing_to_do_is_told_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        show([Finding(name, "problem", "missing", "run uv sync") for name in ("packages", "keys")])
        assert fixes(capsys.readouterr().out) == ["packages, keys: run uv sync"]

    def test_the_login_in_a_url_is_not_shown(self) -> None:
        assert (
            redact("at https://user:pass@host/folder, and gs://bucket/a@b")
            == "at https://…@host/folder, and gs://bucket/a@b"
        )


class TestMachine:
    def test_a_check_that_hangs_does_not_hold_up_the_rest(self) -> None:
        never = threading.Event()

        def hangs() -> Finding:
            never.wait(200)
            return Finding("never", "ok", "")

        begun = time.monotonic()
        found = attempt_all(2.0, [Check("driver", hangs), Check("quick", lambda: Finding("quick", "ok", "there"))])
        assert time.monotonic() - begun < 100
        never.set()
        assert found[0].level == "problem" and "no answer within 2 seconds" in found[0].found
        assert found[1] == Finding("quick", "ok", "there")

    def test_no_gpu_is_a_warning_unless_one_is_asked_for(self) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        [found] = check_gpus("auto")
        assert found.level == "warning" and "--model debug" in found.found
        assert check_gpus("cuda")[0].level == "problem"
        assert check_gpus("cpu")[0].level == "ok"

    @pytest.mark.parametrize(
        ("script", "environment", "said"),
        [
            ('echo "535.183.01, NVIDIA A100-SXM4-80GB"', {}, "the driver is too old"),
            ('echo "590.01, NVIDIA L4"', {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES is ''"),
            ('echo "590.01, NVIDIA L4"', {}, "Found no NVIDIA driver"),
            (
                'echo "NVIDIA-SMI has failed because it could not talk to the driver."; exit 9',
                {},
                "NVIDIA-SMI has failed",
            ),
            (HANGS, {}, "TimeoutExpired"),
        ],
    )
    def test_a_gpu_that_torch_cannot_use_is_a_problem_with_its_reason(
        self, script: str, environment: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is no GPU here: another program says what nvidia-smi would."""
        import torch

        if torch.cuda.is_available() or torch.version.cuda is None:
            pytest.skip("wants a torch with CUDA and no GPU")
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr("deployments.checks.machine.SMI_SECONDS", 1.0 if script == HANGS else 120.0)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        [found] = check_gpus("auto")
        assert found.level == "problem" and said in found.found and found.fix

    def test_a_compiler_is_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert check_compiler(on_gpu=True).level == "ok"
        monkeypatch.setenv("CC", "false")
        assert [check_compiler(on_gpu).level for on_gpu in (True, False)] == ["problem", "warning"]
        monkeypatch.delenv("CC")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert check_compiler(on_gpu=True).level == "warning"

    def test_packages_are_compared_with_pyproject(self, tmp_path: Path) -> None:
        assert [finding.level for finding in check_packages()] == ["ok", "ok"]
        project = tmp_path / "pyproject.toml"
        project.write_text(
            '[project]\nrequires-python = ">=3.99"\n'
            'dependencies = ["prefect==1.0", "no-such-package>=2", "rich", "wandb<0; sys_platform == \'never\'"]\n'
        )
        python, packages = check_packages(project)
        assert python.level == "problem" and "not >=3.99" in python.found
        assert packages.level == "problem" and packages.fix.endswith("uv sync")
        assert "prefect is 3." in packages.found and "no-such-package>=2 is missing" in packages.found
        assert "rich" not in packages.found and "wandb" not in packages.found


class TestCapacity:
    def test_sizes_are_those_of_the_model_itself(self) -> None:
        size = measure_model("debug")
        file = debug_model_directory() / "state_dict.bin"
        assert size.file_bytes == pytest.approx(file.stat().st_size, rel=0.1)
        assert measure_model(str(file.parent)).parameters == size.parameters

    def test_musicgen_large_is_as_measured_on_an_h200(self) -> None:
        """bench/RESULTS.md: GiB at most at each micro-batch; README: 78 MB an adapter."""
        size = measure_model("facebook/musicgen-large")
        for micro, measured in ((1, 10.2), (2, 14.0), (4, 21.4), (8, 36.3), (16, 66.3)):
            assert needed_gib(size, "fused", micro) == pytest.approx(measured, rel=0.06)
        assert needed_gib(size, "checkpointing", 1) == pytest.approx(6.9, rel=0.06)
        assert 4 * size.lora_parameters / 2**20 == pytest.approx(78, rel=0.02)

    def test_a_disk_without_room_names_what_fits(self, tmp_path: Path) -> None:
        size = measure_model("debug")
        places = {"runs": str(tmp_path / "runs"), "tokens": str(tmp_path / "tokens")}
        assert [finding.level for finding in check_disk(size, places, clips=100)] == ["ok"]
        [found] = check_disk(size, places, clips=10**12)
        assert found.level == "problem" and "--keep-last 1" in found.fix and "a run directory" in found.found

    def test_a_remote_run_directory_takes_no_room_here(self) -> None:
        size = measure_model("facebook/musicgen-large")
        places = {"runs": "memory://bucket/runs", "tokens": "memory://bucket/tokens"}
        found = check_disk(size, places, clips=1000)
        assert found and all("a run directory" not in finding.found for finding in found)

    def test_the_run_directory_is_as_room_reckons_it(self) -> None:
        size = measure_model("facebook/musicgen-large")
        needed = run_directory_bytes(size, TrainSettings(save_every_steps=10**6), 16 * 100)
        sizes = Sizes(size.file_bytes, 4 * size.lora_parameters)
        assert 7 * sizes.full_model < needed < 7.6 * sizes.full_model
