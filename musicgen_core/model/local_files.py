"""Find and hash a model's files on this machine, without loading PyTorch."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_path

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.model.hub_names import MUSICGENS
from musicgen_core.model.transformers_files import CONFIG_FILE, MELODY, model_type, read_json, tensors_digest
from musicgen_core.stages import announce

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
TEXT_ENCODER = "text_encoder"
DEBUG, DEMO = "debug", "demo"
DEMO_DIRECTORY = Path(__file__).parent / DEMO
DEBUG_VERSION = 1  # part of the directory's name: raise it when `debug_model` writes other files
MOST_BYTES_OF_POINTER = 100_000
"""A codec's file of at most this size points to a repository on the Hub; codebooks alone are larger."""
_LAYERS = {DEBUG: 2, DEMO: 6} | {name: 24 if name.endswith("-small") else 48 for name in MUSICGENS}
_LARGE_BYTES = 1 << 30
"""A file of at least this size takes seconds to hash."""


def debug_directory(cache: Path | None = None) -> Path:
    """Return the directory of the debug model under `cache`, by default the user's cache directory."""
    return (cache or user_cache_path("musicgen-flows")) / f"debug-v{DEBUG_VERSION}"


def codec_here(model: str) -> str | None:
    """Return the `codec_identity` of a model if that only takes reading a local file, else None.

    It is that of the weights, without the suffix of a stereo model.
    """
    directory = _directory_here(model)
    codec = directory / CODEC_FILE
    if codec.is_file():
        return codec_checksum(codec) if codec.stat().st_size > MOST_BYTES_OF_POINTER else None
    try:
        return transformers_codec_checksum(directory) if model_type(directory) is not None else None
    except ModelError:
        return None  # loading the codec reports what is wrong with it


def takes_melody_here(model: str) -> bool:
    """Return whether a model takes a melody, as far as a `config.json` on this machine says."""
    return model_type(_directory_here(model)) == MELODY


def _directory_here(model: str) -> Path:
    """Return the directory of a model with its codec, which may be missing."""
    built_in = {DEMO: DEMO_DIRECTORY, DEBUG: debug_directory()}
    directory = built_in.get(model) or Path(model).expanduser()
    if not directory.is_dir() and model.count("/") == 1:
        return hub.cached(model, hub.Wanted((CODEC_FILE,)), hub.Wanted((CONFIG_FILE,))) or directory
    return directory


def layers_here(model: str) -> int | None:
    """Return the number of layers of a model if that is known without PyTorch and without the Hub, else None."""
    if model in _LAYERS:
        return _LAYERS[model]
    directory = Path(model).expanduser()
    if not directory.is_dir() and model.count("/") == 1:
        directory = hub.cached(model, hub.Wanted((CONFIG_FILE,))) or directory
    try:
        found = read_json(directory / CONFIG_FILE)["decoder"]["num_hidden_layers"]
    except (ModelError, KeyError, TypeError):
        return None  # in audiocraft's format, or loading the model reports what is wrong with it
    return found if isinstance(found, int) else None


def codec_checksum(path: Path) -> str:
    """Return the identity of a codec in a single file."""
    return f"sha256:{file_sha256(path)[:16]}"


def transformers_codec_checksum(directory: Path) -> str:
    """Return the identity of the codec in a model in transformers' format.

    Raises:
        ModelError: the model's files are missing or damaged.
    """
    return f"sha256:{tensors_digest(directory, of_codec=True)[:16]}"


def find_clap(source: str, option: str) -> Path:
    """Return the directory of CLAP weights, which are downloaded if `source` is a Hugging Face id.

    Args:
        option: the option that gave the source, for the advice of an error.

    Raises:
        ModelError: the weights are missing and can't be downloaded.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(
            message("there is no directory {source} of CLAP weights", source=source),
            message(
                "Give {option} a directory with a ClapModel and its processor, or an id such as "
                "laion/larger_clap_music",
                option=option,
            ),
        )
    return hub.fetch(source, hub.CLAP)


def directory_digest(directory: Path) -> str:
    """Return a hash of the names and contents of the files of a model in Hugging Face's format, in hexadecimal."""
    files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".txt", ".safetensors", ".bin"))
    parts = "".join(f"{path.name} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256(parts.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; it is computed again only if the file was changed."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, _mtime_ns: int) -> str:
    if size >= _LARGE_BYTES:
        announce(message("computing the checksum of {path}", path=path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
