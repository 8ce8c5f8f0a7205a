"""Refusals of Google Cloud Storage are reported at once: the URL, the attempted operation, and the fix."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import google.oauth2.credentials
import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import find_archives
from musicgen_core.data.dataset import load_clips
from musicgen_core.data.shards import read_report
from musicgen_core.errors import MusicgenError, StorageError
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.files.run_lock import RunLock
from tests.gcs.conftest import Proxy

pytestmark = pytest.mark.timeout(60)
AT_ONCE_S = 20.0  # gcsfs alone retries some refusals for half a minute
WHO = "worker@project.iam.gserviceaccount.com"


def denied(permission: str) -> str:
    return (
        f"{WHO} does not have {permission} access to the Google Cloud Storage object. "
        f"Permission '{permission}' denied on resource (or it may not exist)."
    )


def refused(action: Callable[[], object]) -> StorageError:
    began = time.monotonic()
    with pytest.raises(StorageError) as raised:
        action()
    assert time.monotonic() - began < AT_ONCE_S
    return raised.value


@pytest.mark.parametrize(
    ("permission", "request_", "role", "action"),
    [
        ("storage.objects.create", "POST /upload/", "objectUser", lambda at: storage.write_text(at / "x", "text")),
        ("storage.objects.delete", "POST /upload/", "objectUser", lambda at: storage.write_text(at / "x", "text")),
        ("storage.objects.get", "GET ", "objectViewer", lambda at: (at / "x").read_bytes()),
        ("storage.objects.get", "GET ", "objectViewer", lambda at: read_report(at, "x")),
        ("storage.objects.list", "GET ", "objectViewer", lambda at: find_archives(at / "archives")),
        ("storage.objects.list", "GET ", "objectViewer", lambda at: load_clips(at / "tokens", "codec")),
        ("storage.objects.list", "GET ", "objectViewer", lambda at: storage.glob(f"{at}/*.zip")),
        ("storage.objects.get", "GET ", "objectViewer", lambda at: RunDirectory(at, Path("no")).has_training()),
        ("storage.objects.create", "POST /upload/", "objectUser", lambda at: RunLock(at / "run").__enter__()),
        ("storage.objects.delete", "DELETE ", "objectUser", lambda at: (at / "x").unlink()),
    ],
)
def test_a_permission_that_is_missing_is_named(
    permission: str, request_: str, role: str, action: Callable[[UPath], object], place: UPath, proxy: Proxy
) -> None:
    storage.write_text(place / "x", "text")
    place.fs.invalidate_cache()
    proxy.fail(403, request_, times=1_000, message=denied(permission))
    error = refused(lambda: action(place))
    assert isinstance(error, MusicgenError) and error.code == 403
    assert str(place).rstrip("/") in error.found and permission in error.found and WHO in error.found
    assert f"roles/storage.{role}" in error.next_step and f"gs://{place.drive}" in error.next_step


def test_object_permissions_suffice_without_bucket_permissions(place: UPath, proxy: Proxy) -> None:
    storage.write_text(place / "a.zip", "text")
    proxy.fail(403, r"GET /storage/v1/b/[^/]+$", times=1_000, message=denied("storage.buckets.get"))
    assert [path.name for path in find_archives(place)] == ["a.zip"]


@pytest.mark.parametrize(
    "message", ["Anonymous caller does not have storage.objects.get access", "Invalid Credentials"]
)
def test_a_login_that_google_refuses_is_asked_for(message: str, place: UPath, proxy: Proxy) -> None:
    proxy.fail(401, ".", times=1_000, message=message)
    for action in (lambda: storage.write_text(place / "x", "text"), (place / "x").exists, (place / "x").read_bytes):
        error = refused(action)
        assert error.code == 401 and f"{place}x" in error.found
        assert "gcloud auth application-default login" in error.next_step


def test_a_login_that_can_not_be_renewed_is_asked_for(
    place: UPath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated = google.oauth2.credentials.Credentials(
        None, refresh_token="r", client_id="i", client_secret="s", token_uri=f"{proxy.address}/token"
    )
    monkeypatch.setattr(place.fs.credentials, "credentials", outdated)
    proxy.fail(400, "POST /token", times=1_000, message="Token has been expired or revoked.")
    error = refused((place / "x").exists)
    assert "gcloud auth application-default login" in error.next_step and "expired or revoked" in error.found


def test_a_bucket_that_is_missing_is_named(proxy: Proxy) -> None:
    place = storage.as_path("gs://no-such-bucket/folder")
    for action in (
        lambda: storage.write_text(place / "x", "text"),
        place.is_dir,
        lambda: find_archives(place),
        lambda: find_archives(f"{place}/*.zip"),
        lambda: load_clips(place, "codec"),
        lambda: RunLock(place).__enter__(),
    ):
        error = refused(action)
        assert error.code == 404 and "there is no bucket gs://no-such-bucket" in error.found
        assert error.next_step.endswith("gcloud storage buckets create gs://no-such-bucket")
