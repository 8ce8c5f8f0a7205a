"""Load EnCodec from audiocraft's checkpoint, the Hub repository that it points to, or a model in transformers' format.

audiocraft exports a codec from the Hub as `{"pretrained": "facebook/encodec_32khz"}`; such a repository is in
transformers' format. Loading never runs code from a file.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_core import tensor_files
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import (
    CARDINALITY,
    CODEBOOKS,
    FRAME_RATE,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    STEREO_SUFFIX,
)
from musicgen_core.errors import ModelError, MusicgenError
from musicgen_core.language import message
from musicgen_core.model import codec_conversion, hub
from musicgen_core.model.audiocraft_format import read_file
from musicgen_core.model.configuration import XpConfig, shown
from musicgen_core.model.local_files import (
    MOST_BYTES_OF_POINTER,
    codec_checksum,
    file_sha256,
    transformers_codec_checksum,
)
from musicgen_core.model.transformers_format import load_encodec
from musicgen_core.model.weights import BaseModel

USE_ANOTHER = "Use the codec that comes with facebook/musicgen-large"
ENCODEC = hub.Wanted(("config.json", ("model.safetensors", "pytorch_model.bin")))
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# The only values that give codes for MusicGen; audiocraft itself refuses a scale per clip with a language model.
_SUPPORTED = {
    "compression_model": "encodec",
    "encodec.autoencoder": "seanet",
    "encodec.quantizer": "rvq",
    "encodec.channels": 1,
    "encodec.renormalize": False,
}
_SUPPORTED_ON_HUB = {"audio_channels": 1, "normalize": False, "chunk_length_s": None}


def load_codec(model: BaseModel, device: torch.device) -> Any:
    """Load audiocraft's `CompressionModel` of one channel in evaluation mode, and test it on one frame.

    Raises:
        ModelError: it is damaged, or its codes are not MusicGen's.
    """
    checkpoint = {} if model.is_transformers else read_file(model.codec_path)
    name = _name(model, checkpoint)
    try:
        codec = _load(model, checkpoint, name)
        if codec.total_codebooks > CODEBOOKS:
            codec.set_num_codebooks(CODEBOOKS)  # those that MusicGen's language models were trained on
        codec = codec.to(device).eval()
        found = (codec.sample_rate, codec.frame_rate, codec.num_codebooks, codec.cardinality)
    except MusicgenError:
        raise
    except Exception as error:  # audiocraft and transformers raise many kinds on a damaged or foreign file
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ModelError(
            message("{name} can't be loaded ({reason})", name=name, reason=reason), message("Fetch the file again")
        ) from error
    cardinality = model.config.decoder.cardinality if model.has_language_model else found[-1]
    expected = (SAMPLE_RATE, FRAME_RATE, CODEBOOKS, min(cardinality, CARDINALITY))
    if found != expected:
        raise ModelError(
            message(
                "{name} has sample rate, frame rate, codebooks and cardinality {found}, not {expected}",
                name=name,
                found=found,
                expected=expected,
            ),
            USE_ANOTHER,
        )
    _try(codec, device, name)
    return codec


@lru_cache(maxsize=1)
def code_vectors(model: BaseModel) -> NDArray[np.float32]:
    """Return the vectors that the codes of one channel stand for, [CODEBOOKS, cardinality, D].

    Raises:
        ModelError: as for `load_codec`.
    """
    codec = load_codec(model, torch.device("cpu"))
    found = []
    for book in range(CODEBOOKS):
        codes = torch.zeros(1, CODEBOOKS, codec.cardinality, dtype=torch.int64)
        codes[0, book] = torch.arange(codec.cardinality)
        with torch.inference_mode():
            found.append(codec.decode_latent(codes)[0].T.numpy())  # a sum over the codebooks, so less a constant
    return np.stack(found)


def _name(model: BaseModel, checkpoint: Mapping[str, Any]) -> str:
    path, repo = model.codec_path, checkpoint.get("pretrained")
    if model.is_transformers:
        return f"the codec of {model.directory}"
    return f"the codec {path}" if repo is None else f"the codec {shown(repo)}, which {path} points to,"


def _load(model: BaseModel, checkpoint: Mapping[str, Any], name: str) -> Any:
    if model.is_transformers or "pretrained" in checkpoint:
        encodec = _encodec(model, checkpoint, name)
        return import_audiocraft("audiocraft.models.encodec").HFEncodecCompressionModel(encodec)
    return _from_checkpoint(checkpoint, model.codec_path)


def _encodec(model: BaseModel, checkpoint: Mapping[str, Any], name: str) -> Any:
    return load_encodec(model.directory) if model.is_transformers else _from_hub(checkpoint["pretrained"], name)


def encodec_of(model: BaseModel) -> Any:
    """Return a model's codec as transformers' EncodecModel, converted if it is a checkpoint of audiocraft.

    Raises:
        ModelError: it is damaged, or transformers' class can't compute the same.
    """
    checkpoint = {} if model.is_transformers else read_file(model.codec_path)
    name = _name(model, checkpoint)
    if model.is_transformers or "pretrained" in checkpoint:
        return _encodec(model, checkpoint, name)
    load_codec(model, torch.device("cpu"))  # raises for what is damaged or foreign
    return codec_conversion.to_transformers(checkpoint, name)


def write_audiocraft_codec(model: BaseModel, path: Path) -> None:
    """Write a model's codec as audiocraft's `compression_state_dict.bin`.

    Raises:
        ModelError: it is damaged, or audiocraft's class can't compute the same.
    """
    if model.is_transformers:
        tensor_files.save(codec_conversion.to_audiocraft(encodec_of(model), _name(model, {})), path)
    else:
        shutil.copyfile(model.codec_path, path)


def codec_identity(model: BaseModel) -> str:
    """Return a hash of the codec's weights, without loading them; for stereo with `STEREO_SUFFIX` appended.

    A stereo model's codec is that of the mono models, applied to each channel, but its codes have another shape.
    """
    return _weights_identity(model) + (STEREO_SUFFIX if model.codes.channels == 2 else "")


def _weights_identity(model: BaseModel) -> str:
    if model.is_transformers:
        return transformers_codec_checksum(model.directory)
    repo = codec_repo(model)
    if repo is None:
        return codec_checksum(model.codec_path)
    directory = hub.fetch(repo, ENCODEC)
    safe = directory / "model.safetensors"
    weights = safe if safe.exists() else directory / "pytorch_model.bin"
    both = file_sha256(directory / "config.json") + file_sha256(weights)
    return f"sha256:{hashlib.sha256(both.encode()).hexdigest()[:16]}"


def codec_repo(model: BaseModel) -> str | None:
    """Return the Hub repository that the codec's file points to; None if the file holds the codec itself.

    Raises:
        ModelError: it points to something that is not a repository.
    """
    if model.is_transformers:
        return None
    path = model.codec_path
    repo = read_file(path).get("pretrained") if path.stat().st_size <= MOST_BYTES_OF_POINTER else None
    return None if repo is None else _checked_repo(repo, f"the codec {path}")


def _from_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> Any:
    from omegaconf import OmegaConf

    if not {"xp.cfg", "best_state"} <= checkpoint.keys():
        raise ModelError(
            message("the codec {path} is not a checkpoint of audiocraft (it has no xp.cfg or no best_state)", path=path)
        )
    config = XpConfig(checkpoint["xp.cfg"], path)
    _refuse(f"the codec {path}", {name: config.get(name, False) for name in _SUPPORTED}, _SUPPORTED)
    sections = {name: config.section(name) for name in ("encodec", "seanet", "rvq")}
    open_ones = [found for name, section in sections.items() for found in _unresolved(name, section)]
    if open_ones:
        raise ModelError(
            message("the codec {path} leaves settings open: {names}", path=path, names="; ".join(open_ones)),
            USE_ANOTHER,
        )
    sections["seanet"] = {"encoder": {}, "decoder": {}, **sections["seanet"]}
    built = OmegaConf.create({**sections, "compression_model": "encodec", "device": "cpu"})
    codec = import_audiocraft("audiocraft.models.builders").get_compression_model(built)
    codec.load_state_dict(checkpoint["best_state"])
    return codec


def _unresolved(name: str, value: Any) -> Iterator[str]:
    """Yield settings that refer to something outside the file, or that have no value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _unresolved(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _unresolved(name, inner)
    elif isinstance(value, str) and ("${" in value or value == "???"):
        yield f"{name} is {shown(value)}"


def _from_hub(repo: object, name: str) -> Any:
    """Return transformers' EncodecModel of a repository."""
    from transformers import EncodecConfig, EncodecModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # it takes a moment, and its bar would break the flows' own
    directory = hub.fetch(_checked_repo(repo, name), ENCODEC)
    config = EncodecConfig.from_pretrained(directory)
    _refuse(name, {key: getattr(config, key, None) for key in _SUPPORTED_ON_HUB}, _SUPPORTED_ON_HUB)
    encodec, loading = EncodecModel.from_pretrained(
        directory, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    missing = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
    if missing:  # transformers would initialize them randomly
        raise ModelError(
            message("{name} lacks weights, such as {example}", name=name, example=missing[0]),
            message("Fetch the file again"),
        )
    return encodec


def _checked_repo(repo: object, name: str) -> str:
    if not isinstance(repo, str) or not _HUB_ID.fullmatch(repo):
        raise ModelError(
            message(
                "{name} points to {shown}, which is no repository of the Hugging Face Hub", name=name, shown=shown(repo)
            ),
            USE_ANOTHER,
        )
    return repo


def _refuse(name: str, found: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    problems = [f"{key} is {shown(found.get(key))}" for key, ours in supported.items() if found.get(key) != ours]
    if problems:
        raise ModelError(message("{name} is not supported: {names}", name=name, names="; ".join(problems)), USE_ANOTHER)


@torch.inference_mode()
def _try(codec: Any, device: torch.device, name: str) -> None:
    """Encode and decode one frame, so that a broken codec isn't mistaken for damaged archives."""
    try:
        codes, _ = codec.encode(torch.zeros(1, 1, SAMPLES_PER_FRAME, device=device))
        shapes = (tuple(codes.shape), tuple(codec.decode(codes).shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its layers raise
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ModelError(
            message("{name} can't encode or decode ({reason})", name=name, reason=reason), USE_ANOTHER
        ) from error
    if shapes != ((1, CODEBOOKS, 1), (1, 1, SAMPLES_PER_FRAME)):
        raise ModelError(
            message(
                "{name} makes of {samples_per_frame} samples codes and audio of shapes {shapes}",
                name=name,
                samples_per_frame=SAMPLES_PER_FRAME,
                shapes=shapes,
            ),
            USE_ANOTHER,
        )
