"""Errors of saving and loading torch files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import reason_of
from musicgen_core.model.adapters import Adapter, save_adapter


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_not_torchs_position() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        tensor_files.save({"weight": torch.zeros(100_000)}, Path("/dev/full"))


def test_an_exception_of_check_stops_the_writing(tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedError("asked to stop")

    with pytest.raises(InterruptedError, match="asked to stop"):
        tensor_files.save({"weight": torch.zeros(4)}, tmp_path / "file.pt", check)


def test_saved_values_load_again(tmp_path: Path) -> None:
    values = {"weight": torch.arange(5.0), "step": 3}
    tensor_files.save(values, tmp_path / "file.pt")
    found = torch.load(tmp_path / "file.pt", weights_only=True)
    assert found["step"] == 3 and torch.equal(found["weight"], values["weight"])


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    adapter = Adapter({}, {}, 1, 1, 1.0, "debug")
    with pytest.raises(OSError, match="No space") as caught:
        save_adapter(adapter, UPath(tmp_path / "best_lora.pt"))
    assert reason_of(caught.value) == f"no space left on device: {tmp_path}/best_lora.pt"
    with pytest.raises(OSError, match="No space") as caught:
        publish_half(UPath(tmp_path / "report.html"))
    assert reason_of(caught.value) == f"no space left on device: {tmp_path}/report.html"
    assert list(tmp_path.iterdir()) == []


def publish_half(target: UPath) -> None:
    with storage.publish(target) as path:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", ["code", "text"])
def test_torchs_advice_to_run_code_from_a_file_is_not_passed_on(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if kind == "code":
        torch.save({"a": Path}, path)
    else:
        path.write_bytes(b"hello world")
    with pytest.raises(ValueError, match="not a file of torch") as refused:
        tensor_files.load(path)
    assert "weights_only" not in str(refused.value)
