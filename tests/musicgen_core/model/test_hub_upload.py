"""Uploads to the stand-in Hub, through huggingface_hub's own client: what arrives, how it resumes, who is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from musicgen_core.errors import ConfigError, MusicgenError, StorageError
from musicgen_core.model import hub_upload
from musicgen_core.model.hub_target import Target, check_target
from musicgen_core.model.hub_upload import Pushed, UploadProgress, upload_folder
from tests.stand_in_hub import TOKEN, Fault, Repository, StandInHub

REPO = "somebody/jazz"
WEIGHTS = bytes(range(256)) * 16_000  # 4 MB
CARD = b"---\nlibrary_name: peft\ntags:\n- musicgen\n---\n# jazz\n"
FILES = {"README.md": CARD, "adapter_model.safetensors": WEIGHTS, "samples/adapter_00.wav": b"RIFF" * 500}


@pytest.fixture(autouse=True)
def _of_somebody(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the token, and have huggingface_hub retry at once."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


Push = Callable[..., Pushed]


@pytest.fixture
def push(tmp_path: Path) -> Push:
    def push_files(
        files: dict[str, bytes] = FILES, heard: list[UploadProgress] | None = None, is_public: bool = False
    ) -> Pushed:
        target = check_target(REPO, "peft", "musicgen")
        listener = (lambda progress: None) if heard is None else heard.append
        return upload_folder(folder_of(tmp_path / "export", files), list(files), target, is_public, listener)

    return push_files


@contextmanager
def refused(kind: type[MusicgenError], *parts: str, next_step: str = "") -> Iterator[None]:
    with pytest.raises(kind) as refusal:
        yield
    assert [part for part in parts if part not in refusal.value.found] == []
    assert next_step in refusal.value.next_step
    assert TOKEN not in str(refusal.value) and "signature" not in str(refusal.value)


def test_a_new_repository_is_private_and_has_every_file(hub: StandInHub, push: Push) -> None:
    pushed = push()
    repository = hub.repositories[REPO]
    assert {name: data for name, data in repository.files.items() if name != ".gitattributes"} == FILES
    assert repository.access == "private"
    assert pushed == Pushed(REPO, f"{hub.url}/{REPO}", repository.commit, is_private=True)
    assert len(hub.uploads.commits) == 1


def test_a_repository_is_public_if_asked_for(hub: StandInHub, push: Push) -> None:
    assert not push(is_public=True).is_private
    assert hub.repositories[REPO].access == "public"


@pytest.mark.parametrize("part_size", [0, 1_000_000], ids=["whole", "in parts"])
def test_progress_counts_bytes_up_to_the_last(
    hub: StandInHub, push: Push, part_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub.uploads.part_size = part_size
    heard: list[UploadProgress] = []
    with caplog.at_level("INFO", "musicgen_core"):
        push(heard=heard)
    total = sum(map(len, FILES.values()))
    assert (heard[-1].done, heard[-1].total) == (total, total) and heard[-1].bytes_per_sec > 0
    assert [one.done for one in heard] == sorted(one.done for one in heard)
    assert f"pushing {REPO} to the Hugging Face Hub, 4.1 MB" in caplog.text and f"pushed {REPO}" in caplog.text
    assert hub.repositories[REPO].files["adapter_model.safetensors"] == WEIGHTS


def test_progress_is_reported_while_a_file_is_sent(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_upload, "REPORT_EVERY_SECONDS", 0.0)
    heard: list[UploadProgress] = []
    push(heard=heard)
    assert len([one for one in heard if 0 < one.done < len(WEIGHTS)]) > 10


def test_an_upload_updates_what_an_earlier_one_left(hub: StandInHub, push: Push) -> None:
    push({**FILES, "samples/adapter_01.wav": b"RIFF", "samples/base_01.wav": b"RIFF"})
    hub.repositories[REPO].files["notes.md"] = b"by hand"
    received = hub.uploads.received
    push({**FILES, "README.md": CARD + b"new"})
    files = hub.repositories[REPO].files
    assert files["README.md"] == CARD + b"new" and files["notes.md"] == b"by hand"
    assert hub.uploads.commits[-1] == (
        "Update the export",
        ["README.md"],
        ["samples/adapter_01.wav", "samples/base_01.wav"],
    )
    assert hub.uploads.received == received, "the weights are there already"


def test_an_upload_of_the_same_files_makes_no_commit(hub: StandInHub, push: Push) -> None:
    first = push()
    assert push() == first and len(hub.uploads.commits) == 1


def test_an_update_leaves_the_visibility_alone(hub: StandInHub, push: Push) -> None:
    push()
    assert push({**FILES, "README.md": CARD + b"new"}, is_public=True).is_private
    assert hub.repositories[REPO].access == "private"


# Broken connections


@pytest.mark.parametrize(
    "path", ["/api/whoami-v2", "/api/repos/create", "/preupload/", "/objects/batch", "/lfs/", "/commit/", "/lfs-verify"]
)
@pytest.mark.parametrize(("status", "takes"), [(503, None), (0, 0)], ids=["busy", "dropped"])
def test_one_failed_request_does_not_end_it(
    hub: StandInHub, push: Push, path: str, status: int, takes: int | None
) -> None:
    hub.faults.append(Fault(path, status=status, takes=takes))
    push()
    assert hub.repositories[REPO].files["adapter_model.safetensors"] == WEIGHTS


def test_a_dropped_connection_sends_only_the_part_again(hub: StandInHub, push: Push) -> None:
    hub.uploads.part_size = 1_000_000
    hub.faults.append(Fault("/3", takes=400_000))
    push()
    assert hub.repositories[REPO].files["adapter_model.safetensors"] == WEIGHTS
    small = len(FILES["samples/adapter_00.wav"])
    assert len(WEIGHTS) + 400_000 <= hub.uploads.received <= len(WEIGHTS) + 400_000 + small + 2_000


def test_an_upload_that_failed_continues_after_the_last_file(hub: StandInHub, push: Push) -> None:
    files = {**FILES, "more.safetensors": WEIGHTS[::-1]}
    hub.faults.append(Fault(f"/lfs/{sha256(WEIGHTS[::-1]).hexdigest()}", takes=1_000_000, times=99))
    with refused(StorageError, REPO, "connection to the Hugging Face Hub was lost", next_step="run it again"):
        push(files)
    assert hub.uploads.commits == [] and set(hub.repositories[REPO].files) == {".gitattributes"}
    hub.faults.clear()
    hub.uploads.received = 0
    push(files)
    assert hub.repositories[REPO].files["more.safetensors"] == WEIGHTS[::-1]
    assert hub.uploads.received < 1.1 * len(WEIGHTS), "the other file is there already"


def test_a_full_hub_is_named_with_its_answer(hub: StandInHub, push: Push) -> None:
    hub.faults.append(Fault("/commit/", status=507))
    with refused(StorageError, REPO, "507"):
        push()


def test_a_hub_that_stays_away_is_named(hub: StandInHub, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused(StorageError, REPO, "http://127.0.0.1:9 can't be reached", next_step="Check the connection"):
        push()


def test_no_signed_address_is_logged(hub: StandInHub, push: Push, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("huggingface_hub").addHandler(caplog.handler)  # it doesn't propagate
    hub.faults.append(Fault("/lfs/", status=503, times=2))
    try:
        push()
    finally:
        logging.getLogger("huggingface_hub").removeHandler(caplog.handler)
    assert "signature" not in caplog.text and TOKEN not in caplog.text


# Xet, which a local directory stands in for


def test_large_files_go_through_xet(
    hub: StandInHub, push: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.uploads.xet = tmp_path / "xet"
    rng, heard = np.random.default_rng(0), list[UploadProgress]()
    weights = rng.bytes(3_000_000)  # not compressible
    push({**FILES, "adapter_model.safetensors": weights}, heard)
    assert hub.uploads.commits[-1][1] == sorted(FILES) and hub.uploads.received == 0
    assert heard[-1].done == heard[-1].total
    stored = size_of(hub.uploads.xet)
    assert stored > len(weights)
    # As after a broken connection: a file of which the first part is stored already.
    push({**FILES, "adapter_model.safetensors": weights + rng.bytes(1_000_000)})
    assert 1_000_000 < size_of(hub.uploads.xet) - stored < 1_500_000, "only what is new is sent"


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# Refusals before anything is made


def check() -> Target:
    return check_target(REPO, "peft", "musicgen")


@pytest.mark.parametrize("name", ["jazz", "a/b/c", "somebody/ja zz", "somebody/", "/jazz", "somebody/jazz--", ""])
def test_a_name_that_is_none_is_refused(hub: StandInHub, name: str) -> None:
    with refused(ConfigError, "not a valid repository name", next_step="USER/NAME"):
        check_target(name, "peft", "musicgen")
    assert hub.requests == []


def test_offline_nothing_is_pushed(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(ConfigError, REPO, "HF_HUB_OFFLINE", next_step="Unset HF_HUB_OFFLINE"):
        check()
    assert hub.requests == []


def test_no_token_is_refused(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with refused(ConfigError, "needs an HF_TOKEN", next_step="https://huggingface.co/settings/tokens"):
        check()
    assert hub.requests == []


def test_a_wrong_token_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not-to-be-seen")
    with pytest.raises(ConfigError, match="rejects HF_TOKEN") as refusal:
        check()
    assert "not-to-be-seen" not in str(refusal.value)


def test_a_token_that_may_only_read_is_refused(hub: StandInHub) -> None:
    hub.uploads.role = "read"
    with refused(ConfigError, "somebody", "read-only", next_step="write access"):
        check()


@pytest.mark.parametrize("permissions", [(), ("repo.content.read",)])
def test_a_fine_grained_token_without_write_access_is_refused(hub: StandInHub, permissions: tuple[str, ...]) -> None:
    hub.uploads.role, hub.uploads.permissions = "fineGrained", permissions
    with refused(ConfigError, "may not write", "somebody", next_step="write access"):
        check()


def test_a_fine_grained_token_with_write_access_suffices(hub: StandInHub, push: Push) -> None:
    hub.uploads.role, hub.uploads.permissions = "fineGrained", ("repo.content.read", "repo.write")
    assert push().repo == REPO


def test_a_name_of_someone_else_is_refused_with_the_nearest(hub: StandInHub) -> None:
    hub.uploads.organisations = {"jazz-band": "write"}
    with refused(ConfigError, "belongs to somebody", "under jaz-band", next_step="Give jazz-band/swing"):
        check_target("jaz-band/swing", "peft", "musicgen")
    with refused(ConfigError, "under nobody", next_step="Give somebody/swing"):
        check_target("nobody/swing", "peft", "musicgen")


@pytest.mark.parametrize(("role", "may"), [("write", True), ("contributor", True), ("read", False)])
def test_the_role_in_an_organisation_decides(hub: StandInHub, role: str, may: bool) -> None:
    hub.uploads.organisations = {"jazz-band": role}
    if may:
        assert check_target("jazz-band/swing", "peft", "musicgen").is_private is None
    else:
        with refused(ConfigError, "may not write", "jazz-band"):
            check_target("jazz-band/swing", "peft", "musicgen")


def test_a_hub_that_refuses_after_all_is_named(hub: StandInHub, push: Push) -> None:
    said = "Private repository storage limit reached"
    hub.faults.append(Fault("/preupload/", status=403, headers={"X-Error-Message": said}))
    with refused(ConfigError, "refuses HF_TOKEN", REPO, f"403: {said}", next_step="storage left"):
        push()


@pytest.mark.parametrize(
    "files",
    [
        {"pytorch_model.bin": b"x"},
        {"README.md": b"---\nlibrary_name: peft\ntags:\n- text\n---\n", "adapter_model.safetensors": b"x"},
        {"README.md": CARD.replace(b"peft", b"audiocraft"), "state_dict.bin": b"x"},
    ],
    ids=["something else", "another adapter", "another format"],
)
def test_a_repository_of_another_kind_is_left_alone(hub: StandInHub, files: dict[str, bytes]) -> None:
    hub.repositories[REPO] = Repository({".gitattributes": b"", **files}, "private")
    with refused(ConfigError, REPO, "not a MusicGen export for peft", next_step="another name"):
        check()


def test_an_empty_repository_is_filled(hub: StandInHub, push: Push) -> None:
    hub.repositories[REPO] = Repository({".gitattributes": b"", "README.md": b"---\nlicense: mit\n---\n"}, "public")
    assert not push().is_private
    assert hub.repositories[REPO].files["README.md"] == CARD
