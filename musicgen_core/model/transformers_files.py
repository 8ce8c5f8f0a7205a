"""Files of a model in transformers' format: recognise them and hash their tensors, without loading PyTorch.

Such a directory holds `config.json` and the weights as `model.safetensors`, or in several files that
`model.safetensors.index.json` lists. The header of a safetensors file is JSON after its length in eight bytes; the
tensors' bytes follow (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import stat
import textwrap
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.stages import announce

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MUSICGEN, MELODY = "musicgen", "musicgen_melody"
"""Types of models that are supported"""
CODEC_PREFIX = "audio_encoder."
_MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_CHUNK_BYTES = 1 << 24
_LARGE_BYTES = 1 << 30
"""Tensors of at least this size take seconds to hash."""


def model_type(directory: Path) -> str | None:
    """Return the `model_type` in a directory's `config.json`, or None if it is not in transformers' format."""
    try:
        found = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        ModelError: it can't be read, or is not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(values, dict):
        raise damaged(path, "it is not a JSON object")
    return values


def weight_files(directory: Path) -> list[Path]:
    """Return the files with the weights, in order.

    Raises:
        ModelError: one is missing, or the index is damaged.
    """
    if (single := directory / WEIGHTS_FILE).is_file():
        return [single]
    index = directory / INDEX_FILE
    if not index.is_file():
        raise ModelError(
            message("the model directory {directory} has no {names}", directory=directory, names=WEIGHTS_FILE),
            message("Save the model with save_pretrained of a current transformers, which writes safetensors"),
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(_is_file_name(name) for name in shards.values()):
        raise damaged(index, "its weight_map doesn't map tensors to files")
    files = [directory / name for name in sorted(set(shards.values()))]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(
            message(
                "the model directory {directory} has no {names}", directory=directory, names=" and no ".join(missing)
            ),
            message("Fetch the file again"),
        )
    return files


def tensors_digest(directory: Path, *, of_codec: bool) -> str:
    """Return a hash of the tensors of the codec, or of all others, in hexadecimal: the same however they are sharded.

    It is computed again only if a file was changed.

    Raises:
        ModelError: a file is damaged.
    """
    files = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(directory)]
    return _digest(tuple(files), of_codec)


def damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        message("{path} can't be read ({reason})", path=path, reason=textwrap.shorten(reason, 300)),
        message("Fetch the file again"),
    )


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...], of_codec: bool) -> str:
    tensors = {
        name: (path, *place)
        for path, *_ in files
        for name, place in _read_header(path).items()
        if name.startswith(CODEC_PREFIX) == of_codec
    }
    if sum(end - begin for _, _, begin, end in tensors.values()) >= _LARGE_BYTES:
        announce(message("computing the checksum of {path}", path=files[0][0].parent))
    digest = hashlib.sha256()
    for name, (path, kind, begin, end) in sorted(tensors.items()):
        digest.update(f"{name} {kind} {end - begin}\n".encode())
        with open(path, "rb") as file:
            file.seek(begin)
            for count in range(begin, end, _CHUNK_BYTES):
                digest.update(file.read(min(_CHUNK_BYTES, end - count)))
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, tuple[str, int, int]]:
    """Return type and shape, first byte and end of each tensor in a file."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError("it is truncated, or no safetensors file")
            header = json.loads(file.read(length))
        start = 8 + length
        found = {}
        for name, one in header.items():
            if name != "__metadata__":
                begin, end = (start + int(offset) for offset in one["data_offsets"])
                found[str(name)] = (f"{one['dtype']} {one['shape']}", begin, end)
        if any(not start <= begin <= end <= size for _, begin, end in found.values()):
            raise ValueError("it is truncated")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, str(error)) from error
    return found


def tensor_bytes(directory: Path, is_counted: Callable[[str], bool]) -> int:
    """Return the size of the tensors whose names are counted, in bytes."""
    headers = (_read_header(path) for path in weight_files(directory))
    return sum(end - begin for one in headers for name, (_, begin, end) in one.items() if is_counted(name))


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def as_others_may_read(directory: Path) -> None:
    """Give files that safetensors wrote, readable only by their owner, the permissions of any new file."""
    probe = directory / ".permissions"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in directory.glob("*.safetensors"):
        with suppress(OSError):  # a mounted Drive may refuse it
            path.chmod(stat.S_IMODE(mode))
