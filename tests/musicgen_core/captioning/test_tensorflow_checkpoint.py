"""TensorFlow checkpoints are read without TensorFlow; files that are damaged or something else are refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from musicgen_core.captioning.tensorflow_checkpoint import read_checkpoint
from musicgen_core.errors import ModelError

DATA = ".data-00000-of-00001"


@pytest.fixture(scope="module")
def package() -> Path:
    spec = importlib.util.find_spec("musicnn")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture
def prefix(package: Path, tmp_path: Path) -> Path:
    """Return the prefix of a copy, whose files a test may change."""
    for suffix in (".index", DATA):
        (tmp_path / f"model{suffix}").write_bytes((package / "MTT_musicnn" / suffix).read_bytes())
    return tmp_path / "model"


def test_tensors_have_their_names_shapes_and_types(prefix: Path) -> None:
    tensors = read_checkpoint(prefix)
    assert len(tensors) == 150
    kernel = tensors["conv2d/kernel"]
    assert (kernel.shape, kernel.dtype) == ((7, 38, 1, 204), "float32")
    assert tensors["dense_1/bias"].shape == (50,) and tensors["beta1_power"].shape == ()
    assert sum(tensor.nbytes for tensor in tensors.values()) == Path(f"{prefix}{DATA}").stat().st_size


@pytest.mark.parametrize(
    ("suffix", "at"), [(".index", 100), (".index", 4800), (DATA, 0), (DATA, 5_000_000), (DATA, -1)]
)
def test_one_flipped_bit_is_an_error(prefix: Path, suffix: str, at: int) -> None:
    path = Path(f"{prefix}{suffix}")
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match="model is not a usable TensorFlow checkpoint"):
        read_checkpoint(prefix)


@pytest.mark.parametrize("suffix", [".index", DATA])
@pytest.mark.parametrize("size", [0, 47, 3000])
def test_truncated_files_are_an_error(prefix: Path, suffix: str, size: int) -> None:
    path = Path(f"{prefix}{suffix}")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="not a usable TensorFlow checkpoint"):
        read_checkpoint(prefix)


def test_another_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_checkpoint(tmp_path / "model")
    for suffix in (".index", DATA):
        (tmp_path / f"model{suffix}").write_bytes(b"PK\x03\x04" * 1000)
    with pytest.raises(ModelError, match="its index has no magic number"):
        read_checkpoint(tmp_path / "model")


def test_reading_the_weights_imports_neither_musicnn_nor_tensorflow() -> None:
    code = "import sys, torch; from musicgen_core.captioning.musicnn import Musicnn; Musicnn(torch.device('cpu'))"
    code += "; print(*sorted({'musicnn', 'tensorflow', 'librosa'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
