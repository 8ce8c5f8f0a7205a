from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage, tensor_files
from musicgen_core.errors import MusicgenError
from musicgen_core.model import peft_directory
from musicgen_core.model.adapters import Adapter, AdapterConfig, load_adapter, save_adapter
from musicgen_core.training.files.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint

LAYER = "base_model.model.model.decoder.layers.0.fc1"


@pytest.fixture
def adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (2, 8), "lora_B": (4, 2)}
    lora = {f"{LAYER}.{kind}.weight": torch.randn(shape, generator=generator) for kind, shape in shapes.items()}
    return Adapter(lora, AdapterConfig(2, 16, targets=("fc1",)).plain(), 3, 42, 1.5, "debug@sha256:0123456789abcdef")


class Saved:
    """A kind of file, and its loaded content."""

    def __init__(self, kind: str, adapter: Adapter, folder: Path) -> None:
        self.path = folder / (peft_directory.WEIGHTS_FILE if kind == "peft" else f"{kind}.pt")
        place = storage.as_path(self.path)
        match kind:
            case "adapter":
                save_adapter(adapter, place)
            case "checkpoint":
                moments = {0: {"step": torch.tensor(42.0), "exp_avg": torch.arange(16.0)}}
                optimizer = {"state": moments, "param_groups": [{"lr": 1e-4}]}
                save_checkpoint(Checkpoint(adapter, optimizer, Progress(42, 1.5), {"seed": 0}, ["best_model"]), place)
            case "peft":
                peft_directory.write(vars(adapter), None, folder)
        read: dict[str, Callable[[], Any]] = {
            "checkpoint": lambda: load_checkpoint(place).to_plain(),
            "adapter": lambda: vars(load_adapter(place)),
            "peft": lambda: vars(load_adapter(place)),
        }
        self.read = read[kind]
        self.content, self.expected = self.path.read_bytes(), self.read()

    def is_harmless(self, bit: int) -> bool:
        """Return whether the file with one flipped bit is refused or has the same content."""
        damaged = bytearray(self.content)
        damaged[bit // 8] ^= 1 << bit % 8
        self.path.write_bytes(damaged)
        try:
            return same(self.read(), self.expected)
        except MusicgenError:
            return True


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.fixture(params=["adapter", "checkpoint", "peft"])
def saved(request: pytest.FixtureRequest, adapter: Adapter, tmp_path: Path) -> Saved:
    return Saved(request.param, adapter, tmp_path)


def test_a_flipped_bit_is_detected_or_harmless(saved: Saved) -> None:
    bits = random.Random(0).sample(range(8 * len(saved.content)), 250)
    assert [bit for bit in bits if not saved.is_harmless(bit)] == []


@pytest.mark.slow
def test_flipped_bits_in_every_byte_are_detected_or_harmless(saved: Saved) -> None:
    assert [bit for bit in range(0, 8 * len(saved.content), 3) if not saved.is_harmless(bit)] == []


def test_a_flip_that_makes_a_record_a_directory_is_detected(adapter: Adapter, tmp_path: Path) -> None:
    """torch's reader leaves the tensor of such a record as uninitialized memory."""
    saved = Saved("adapter", adapter, tmp_path)
    with zipfile.ZipFile(saved.path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data/0"))
    entry = saved.content.rindex(name.encode()) - 46  # of the zip's central directory
    assert saved.content[entry : entry + 4] == b"PK\x01\x02"
    damaged = bytearray(saved.content)
    damaged[entry + 38] ^= 0x10
    saved.path.write_bytes(damaged)
    with pytest.raises(MusicgenError, match="marked as a directory"):
        saved.read()


@pytest.mark.parametrize("how", ["without checksums", "of torch before 1.6"])
def test_a_file_without_checksums_is_loaded(adapter: Adapter, tmp_path: Path, how: str) -> None:
    path = tmp_path / "old_lora.pt"
    torch.serialization.set_crc32_options(how != "without checksums")
    try:
        torch.save(vars(adapter), path, _use_new_zipfile_serialization=how == "without checksums")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(vars(load_adapter(storage.as_path(path))), vars(adapter))


def test_the_pickle_can_be_verified_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"global_step": 7, "weights": torch.zeros(100)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(bytes(400), bytes(399) + b"\1"))
    assert tensor_files.load(path, mmap=True, verify="pickle")["global_step"] == 7
    with pytest.raises(ValueError, match="checksum"):
        tensor_files.load(path)
    path.write_bytes(content.replace(b"K\x07", b"K\x08"))  # BININT1
    with pytest.raises(ValueError, match="checksum"):
        tensor_files.load(path, verify="pickle")
