"""The findings of `musicgen-flows doctor` about storage: on disks, on failing storage, and in a bucket."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deployments.checks.capacity import check_disk
from deployments.checks.places import check_places
from musicgen_core import storage
from musicgen_core.model.model_size import measure_model


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
    def test_a_failed_step_leaves_no_file_unless_deletion_fails(self, step: str) -> None:
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
        size = measure_model("debug")  # imports what another user may not read
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            found = check_places({"tokens": str(theirs), "runs": str(theirs / "new" / "run")})
            room = check_disk(size, {"runs": str(theirs / "new")}, clips=10)
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
            [found] = check_places({}, [place])
        # Not ftp's own error, which it raises after 30 s
        assert found.level == "problem" and found.found == f"{place}: no answer within 1 seconds"


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers the requests of the probe like Google Cloud Storage, and refuses the given permissions."""

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
        if bucket.objects:  # deletion is refused: then the name of the file is reported
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
