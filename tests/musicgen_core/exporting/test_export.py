"""An export is atomic, and never overwrites anything."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from musicgen_core import storage
from musicgen_core.errors import AdapterError, ConfigError, ModelError
from musicgen_core.exporting import export as exporting
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter, find_adapter, load_adapter, save_adapter
from musicgen_core.model.weights import BaseModel, find_model
from tests.fixture_types import Save
from tests.musicgen_core.exporting.conftest import PLAIN, random_adapter

KINDS = pytest.mark.parametrize("kind", ["peft", "audiocraft", "huggingface"])


@KINDS
def test_a_non_empty_directory_is_refused_unchanged(adapter: Adapter, saved: Save, tmp_path: Path, kind: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"{tmp_path / 'out'} has files in it"):
        export(saved(adapter), tmp_path / "out", kind)
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_file_is_refused_as_the_target(adapter: Adapter, saved: Save, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        export(saved(adapter), tmp_path / "out", "peft")


@KINDS
def test_empty_and_nested_new_directories_are_accepted(
    adapter: Adapter, saved: Save, tmp_path: Path, kind: Any
) -> None:
    (tmp_path / "empty").mkdir()
    for out in ("empty", "not/there/yet"):
        exported = export(saved(adapter), tmp_path / out, kind)
        found = {file.relative_to(tmp_path / out).as_posix() for file in (tmp_path / out).rglob("*") if file.is_file()}
        assert found == exported.files.keys()
    assert not list(tmp_path.rglob("*.partial"))


def test_the_directory_one_is_in_serves(
    adapter: Adapter, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(adapter)
    (tmp_path / "jazz").mkdir()
    monkeypatch.chdir(tmp_path / "jazz")
    export(source, ".", "peft")
    assert '"jazz"' in (tmp_path / "jazz" / "README.md").read_text()


@KINDS
def test_whoever_the_umask_lets_read_can_read_every_file(
    adapter: Adapter, saved: Save, tmp_path: Path, kind: Any
) -> None:
    (tmp_path / "a new file").touch()
    exported = export(saved(adapter), tmp_path / "out", kind)
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in exported.files}
    assert set(modes.values()) == {stat.S_IMODE((tmp_path / "a new file").stat().st_mode)}, modes


def test_audiocraft_export_works_where_modes_are_refused(
    adapter: Adapter, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted Drive may refuse modes."""
    source = saved(adapter)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    for function in ("chmod", "utime"):
        monkeypatch.setattr(os, function, refuse)
    assert "text_encoder/config.json" in export(source, tmp_path / "out", "audiocraft").files


@KINDS
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_export_that_breaks_off_leaves_nothing(
    adapter: Adapter, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    source = saved(adapter)
    monkeypatch.setattr(exporting, "write_card", fail)  # the last file
    with pytest.raises(ConfigError if isinstance(error, OSError) else KeyboardInterrupt):
        export(source, tmp_path / "out", kind)
    assert list(tmp_path.iterdir()) == [source]


@KINDS
def test_an_upload_that_breaks_off_is_never_taken_for_whole(
    adapter: Adapter, saved: Save, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any
) -> None:
    whole = export(saved(adapter), str(bucket / "whole"), kind)
    upload = storage.upload
    uploaded: list[Any] = []

    def break_off(local: Path, target: Any) -> None:
        if len(uploaded) == len(whole.files):  # all but the last, and before them what says that it is unfinished
            raise OSError("connection reset")
        uploaded.append(target)
        upload(local, target)

    monkeypatch.setattr(storage, "upload", break_off)
    with pytest.raises(ConfigError, match="connection reset"):
        export(saved(adapter), str(bucket / "half"), kind)
    for file in uploaded:  # what lies in the object store, brought here: `find_model` takes local directories
        upload_to = tmp_path / "half" / Path(file.path).relative_to((bucket / "half").path)
        upload_to.parent.mkdir(parents=True, exist_ok=True)
        upload_to.write_bytes(file.read_bytes())
    if kind == "peft":
        with pytest.raises(AdapterError, match="no adapter_config"):
            find_adapter(str(bucket / "half"))
    else:
        with pytest.raises(ModelError, match=r"no state_dict\.bin"):
            find_model(str(tmp_path / "half"))


class ExportKilled(BaseException):
    """Ends an export as SIGKILL would, without cleaning up in the object store."""


def killed_export(bucket: Any, source: Path, files: int, patch: pytest.MonkeyPatch, kind: Any = "peft") -> Any:
    """Export to `out`, killed after `files` files, and return the directory."""
    upload, left = storage.upload, iter(range(files + 1))  # the first one is what says that it is unfinished

    def break_off(local: Path, target: Any) -> None:
        if next(left, None) is None:
            raise ExportKilled
        upload(local, target)

    with patch.context() as patched:
        patched.setattr(storage, "upload", break_off)
        with pytest.raises(ExportKilled):
            export(source, str(bucket / "out"), kind)
    return bucket / "out"


def content_of(folder: Any) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@KINDS
def test_an_export_replaces_its_own_killed_upload(
    adapter: Adapter, saved: Save, bucket: Any, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    source = saved(adapter)
    files = export(source, str(bucket / "whole"), kind).files
    for uploaded in (0, 1, len(files) - 1):
        out = killed_export(bucket, source, uploaded, monkeypatch, kind)
    exported = export(source, str(out), kind).files
    assert {name: len(content) for name, content in content_of(out).items()} == exported
    assert exported.keys() == files.keys()


def test_a_killed_upload_of_another_adapter_is_refused(
    adapter: Adapter, saved: Save, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = killed_export(bucket, saved(dataclasses.replace(adapter, epoch=1)), 1, monkeypatch)
    before = content_of(out)
    with pytest.raises(ConfigError, match="unfinished export of another adapter"):
        export(saved(adapter), str(out), "peft")
    assert content_of(out) == before


@pytest.mark.parametrize("name", ["notes.txt", "README.md"])
def test_files_beside_a_killed_upload_are_refused_by_name(
    adapter: Adapter, saved: Save, bucket: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = killed_export(bucket, saved(adapter), 1, monkeypatch)
    storage.write_text(out / name, "mine")
    with pytest.raises(ConfigError, match=f"beside an unfinished export: {name}"):
        export(saved(adapter), str(out), "peft")
    assert (out / name).read_text() == "mine"


def test_a_run_directory_stands_for_its_best(adapter: Adapter, tmp_path: Path) -> None:
    for name, step in (("best", 20), ("final", 30)):
        path = storage.as_path(tmp_path / "run" / "lora_weights" / f"{name}_lora.pt")
        save_adapter(dataclasses.replace(adapter, global_step=step), path)
    export(tmp_path / "run", tmp_path / "out", "peft")
    assert load_adapter(find_adapter(tmp_path / "out")).global_step == 20


def test_a_peft_directory_becomes_a_model_of_audiocraft(adapter: Adapter, saved: Save, tmp_path: Path) -> None:
    source = saved(adapter)
    export(source, tmp_path / "peft", "peft")
    export(tmp_path / "peft", tmp_path / "one", "audiocraft")
    export(source, tmp_path / "other", "audiocraft")
    one, other = (find_model(str(tmp_path / name)).identity for name in ("one", "other"))
    assert one == other


def test_without_an_adapter_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no adapter at"):
        export(tmp_path / "none", tmp_path / "out", "peft")
    assert not list(tmp_path.iterdir())


# The base model


def local(adapter: Adapter) -> Adapter:
    """Return an adapter trained on a model directory."""
    return dataclasses.replace(adapter, base_model=adapter.base_model.replace("debug@", "local@"))


def test_the_demo_model_need_not_be_named(saved: Save, tmp_path: Path) -> None:
    source = saved(random_adapter(find_model("demo"), PLAIN))
    assert "state_dict.bin" in export(source, tmp_path / "merged", "audiocraft").files
    export(source, tmp_path / "peft", "peft")
    assert "a LoRA adapter for the model demo" in (tmp_path / "peft" / "README.md").read_text()


def test_the_run_directory_knows_where_a_local_base_model_is(
    adapter: Adapter, debug_model: BaseModel, tmp_path: Path
) -> None:
    save_adapter(local(adapter), storage.as_path(tmp_path / "run" / "lora_weights" / "best_lora.pt"))
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model_dir": str(debug_model.directory)}))
    assert "state_dict.bin" in export(tmp_path / "run", tmp_path / "out", "audiocraft").files


def test_a_local_base_model_that_nobody_knows_is_asked_for(
    adapter: Adapter, debug_model: BaseModel, saved: Save, tmp_path: Path
) -> None:
    source = saved(local(adapter))
    with pytest.raises(AdapterError, match="doesn't say where its base model is") as refused:
        export(source, tmp_path / "out", "audiocraft")
    assert "Give --model" in refused.value.next_step
    assert "state_dict.bin" in export(source, tmp_path / "out", "audiocraft", str(debug_model.directory)).files


@KINDS
def test_another_base_model_than_the_adapters_is_refused(
    adapter: Adapter, debug_model: BaseModel, saved: Save, tmp_path: Path, kind: Any
) -> None:
    source = saved(dataclasses.replace(adapter, base_model="facebook/musicgen-small@sha256:0000000000000000"))
    with pytest.raises(AdapterError, match="was trained on facebook/musicgen-small"):
        export(source, tmp_path / "out", kind, str(debug_model.directory))
    assert not (tmp_path / "out").exists()
