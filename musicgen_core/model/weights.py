"""Find model directories and load MusicGen's weights from them.

A model directory in audiocraft's format holds `state_dict.bin` (the language model), `compression_state_dict.bin` (the
EnCodec codec) and, to work without the Hub, `text_encoder/`. One in transformers' format holds all three in
`model.safetensors`, or in several such files, and their settings in `config.json`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_core.codes import MONO, CodeShape
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub, transformers_format
from musicgen_core.model.audiocraft_format import (
    checkpoint_of,
    from_audiocraft,
    hidden_scale,
    language_model_settings,
    read_checkpoint,
    to_audiocraft,
)
from musicgen_core.model.configuration import USE_ANOTHER, LmConfig, because, melody_seconds, read_lm_config
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.decoder import DecoderConfig, MusicgenLM
from musicgen_core.model.hub_names import KNOWN, nearest
from musicgen_core.model.local_files import (
    CODEC_FILE,
    DEBUG,
    DEMO,
    DEMO_DIRECTORY,
    LM_FILE,
    TEXT_ENCODER,
    file_sha256,
)
from musicgen_core.model.transformers_configuration import is_musicgen, read_transformers_config
from musicgen_core.model.transformers_files import CONFIG_FILE, model_type, tensors_digest, weight_files
from musicgen_core.stages import announce
from musicgen_core.tensor_files import names_of_non_finite

CHOICES = (
    "a directory in audiocraft's format or transformers' format, a Hugging Face id such as facebook/musicgen-large, "
    "demo or debug"
)
PUBLISHED = "facebook/musicgen-"
"""Meta's models on the Hub, which are there in both formats; audiocraft's is used."""
MODEL = hub.Wanted((LM_FILE, CODEC_FILE), (f"{TEXT_ENCODER}/*",))
_UNSUPPORTED = re.compile(r"facebook/(?:musicgen-)?(?P<kind>style|audiogen|magnet)\b.*")


@dataclass(frozen=True)
class BaseModel:
    """A model directory on this machine.

    Attributes:
        name: the name that the user gave: a Hugging Face id, a directory, or one of `BUILT_IN`.
    """

    name: str
    directory: Path

    @property
    def is_transformers(self) -> bool:
        """Return whether the directory is in transformers' format; one in both formats is read as audiocraft's."""
        return not (self.lm_path.is_file() or self.codec_path.is_file()) and model_type(self.directory) is not None

    @property
    def lm_path(self) -> Path:
        """Return the language model's file in audiocraft's format."""
        return self.directory / LM_FILE

    @property
    def codec_path(self) -> Path:
        """Return the codec's file in audiocraft's format."""
        return self.directory / CODEC_FILE

    @property
    def has_language_model(self) -> bool:
        """Return whether the language model is there, rather than the codec alone."""
        return self.is_transformers or self.lm_path.is_file()

    @property
    def lm_bytes(self) -> int:
        """Return the size of the language model on the disk."""
        if self.is_transformers:
            return transformers_format.language_model_bytes(self.directory)
        return self.lm_path.stat().st_size

    @property
    def text_encoder(self) -> str:
        """The T5 to load: the directory's own, or else the one that `state_dict.bin` names."""
        if self.is_transformers:
            return str(self.directory)
        own = self.directory / TEXT_ENCODER
        return str(own) if own.is_dir() else self.config.t5

    @property
    def config(self) -> LmConfig:
        """Return the language model's settings."""
        if self.is_transformers:
            return read_transformers_config(self.directory)
        return read_lm_config(read_checkpoint(self.lm_path)["xp.cfg"], self.lm_path)

    @property
    def _shape(self) -> DecoderConfig | None:
        """The language model's shape; without the language model that of its `config.json`, if there is one."""
        if self.has_language_model:
            return self.config.decoder
        return read_transformers_config(self.directory).decoder if is_musicgen(self.directory) else None

    @property
    def codes(self) -> CodeShape:
        """Return the shape of its codes; mono if nothing says otherwise."""
        shape = self._shape
        return MONO if shape is None else shape.codes

    @property
    def chroma_frames(self) -> int:
        """Return the frames of a melody's chroma that it takes; 0 if it takes none."""
        shape = self._shape
        return 0 if shape is None else shape.chroma_frames

    @property
    def identity(self) -> str:
        """An id with a hash of the weights, as adapters and runs record it: `debug@sha256:0123456789abcdef`."""
        name = self.name if self.name in BUILT_IN or ("/" in self.name and not Path(self.name).exists()) else "local"
        is_transformers = self.is_transformers
        content = tensors_digest(self.directory, of_codec=False) if is_transformers else file_sha256(self.lm_path)
        return f"{name}@sha256:{content[:16]}"

    def lm_state(self) -> dict[str, Tensor]:
        """Return the language model's weights by this project's names, as they are stored, memory-mapped.

        Raises:
            ModelError: a file is missing, damaged or foreign.
        """
        if self.is_transformers:
            return transformers_format.read_language_model(self.directory)
        return from_audiocraft(read_checkpoint(self.lm_path)["best_state"])

    def checkpoint_with(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """Return weights by this project's names as a checkpoint in audiocraft's format, with this model's settings."""
        if not self.is_transformers:
            return {**read_checkpoint(self.lm_path), "best_state": to_audiocraft(state)}
        config = self.config
        settings = language_model_settings(
            dim=config.decoder.dim,
            layers=config.decoder.layers,
            heads=config.decoder.heads,
            hidden_scale=hidden_scale(config.decoder.dim, config.decoder.ffn_dim),
            cardinality=config.decoder.cardinality,
            text_dropout=config.training_dropout,
            guidance=config.inference_coefficient,
            word_dropout=config.word_dropout,
            t5=config.t5,
            channels=config.decoder.codes.channels,
            melody_seconds=melody_seconds(config.decoder.chroma_frames) if config.decoder.takes_melody else None,
            melody_dropout=config.melody_dropout,
        )
        return checkpoint_of(settings, to_audiocraft(state))


def find_model(name: str, files: tuple[str, ...] = (LM_FILE, CODEC_FILE)) -> BaseModel:
    """Return the model directory of a name in `BUILT_IN`, a directory or a Hugging Face id, downloading it if needed.

    Args:
        files: files that it must have; only these are downloaded.

    Raises:
        ModelError: the name is refused, doesn't exist, or lacks files.
    """
    if name in BUILT_IN:
        return BaseModel(name, BUILT_IN[name]())
    refuse_unsupported(name)
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = _download(name, files)
    model = BaseModel(name, directory)
    if model.is_transformers:
        _ = model.config  # raises for unsupported models before any work starts
        weight_files(directory)
        return model
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise ModelError(
            message(
                "the model directory {directory} has no {names}", directory=directory, names=" and no ".join(missing)
            ),
            message("Give {choices}", choices=CHOICES),
        )
    if model.lm_path.is_file():
        _ = model.config
    return model


def takes_melody(name: str) -> bool | None:
    """Return whether a model takes a melody; None if only downloading it would tell.

    Args:
        name: as for `find_model`.
    """
    if name in KNOWN and name.startswith(PUBLISHED):
        return "melody" in name
    directory = Path(name).expanduser()
    if name in BUILT_IN or not directory.is_dir():
        return False if name in BUILT_IN else None
    return BaseModel(name, directory).chroma_frames > 0


def _demo_directory() -> Path:
    files = (LM_FILE, CODEC_FILE, f"{TEXT_ENCODER}/model.safetensors")
    if missing := [file for file in files if not (DEMO_DIRECTORY / file).is_file()]:
        raise ModelError(
            message(
                "the model demo is not complete: {demo_directory} has no {names}",
                demo_directory=DEMO_DIRECTORY,
                names=" and no ".join(missing),
            ),
            message(
                "Restore the files from the repository, with git checkout in that directory, or give another model"
            ),
        )
    return DEMO_DIRECTORY


BUILT_IN: dict[str, Callable[[], Path]] = {DEBUG: debug_model_directory, DEMO: _demo_directory}
"""Models that need neither a directory nor the Hub, with functions that return their directories: `debug` has random
weights and is created on first use; `demo` is small, trained and part of the project."""


def refuse_unsupported(name: str) -> None:
    """Refuse ids of Meta's unsupported models before gigabytes are downloaded.

    All others are checked by their configuration, because a name is not conclusive.
    """
    match = _UNSUPPORTED.fullmatch(name)
    if match is not None and not Path(name).is_dir():
        kind = {"audiogen": "an AudioGen", "magnet": "a MAGNeT"}.get(match["kind"], f"a {match['kind']}")
        raise ModelError(
            message(
                "{name} is {kind} checkpoint, which is not supported yet{because}",
                name=name,
                kind=kind,
                because=because(match["kind"]),
            ),
            USE_ANOTHER,
        )


def find_codec(name: str) -> BaseModel:
    """Return a model directory as `find_model` does, without downloading the language model."""
    return find_model(name, (CODEC_FILE,))


def wanted_files(name: str, files: tuple[str, ...] = (LM_FILE, CODEC_FILE)) -> tuple[hub.Wanted, ...]:
    """Return the files of a model on the Hub that make it usable here, in each format that it may be in.

    Args:
        files: as for `find_model`.
    """
    # With the codec alone, `config.json` says how many channels the language model has.
    wanted = MODEL if files == (LM_FILE, CODEC_FILE) else hub.Wanted(files, (CONFIG_FILE,))
    return (wanted,) if name.startswith(PUBLISHED) else (wanted, *transformers_format.WHOLE)


def _download(name: str, files: tuple[str, ...]) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        near = nearest(name)
        raise ModelError(
            message("there is no model directory {name}", name=name),
            message("Did you mean {near}? Otherwise give {choices}", near=near, choices=CHOICES)
            if near
            else message("Give {choices}", choices=CHOICES),
        )
    wanted = wanted_files(name, files)
    if wanted[1:]:
        directory = hub.fetch(name, wanted[0], transformers_format.CONFIG)
        if not BaseModel(name, directory).is_transformers:
            return directory
        read_transformers_config(directory)  # raises for unsupported models before gigabytes are downloaded
        wanted = wanted[1:]
    return hub.fetch(name, *wanted)


def load_lm(
    model: BaseModel | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MusicgenLM:
    """Load a language model in evaluation mode, without holding two copies in memory.

    Args:
        model: a model directory, or the path of a checkpoint such as `full_models/best_model.pt`.

    Raises:
        ModelError: the file is not a supported model, or its weights are damaged or not finite.
    """
    announce(message("reading the model {name}", name=model.name if isinstance(model, BaseModel) else model))
    if isinstance(model, BaseModel):
        config, stored = model.config.decoder, model.lm_state()
        path = model.directory if model.is_transformers else model.lm_path
        described_by = CONFIG_FILE if model.is_transformers else "xp.cfg"
    else:
        checkpoint = read_checkpoint(model)
        config, stored = read_lm_config(checkpoint["xp.cfg"], model).decoder, from_audiocraft(checkpoint["best_state"])
        path, described_by = model, "xp.cfg"
    try:
        lm = lm_of(config, stored, device, dtype)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ModelError(
            message(
                "{path} does not hold what its {settings} describes ({reason})",
                path=path,
                settings=described_by,
                reason=reason,
            ),
            message("Fetch the file again"),
        ) from error
    state = lm.state_dict()
    if not lm.enc_to_dec_proj.weight.is_meta and (broken := names_of_non_finite(state)):
        raise ModelError(
            message(
                "{number} of the {total} tensors in {path} hold NaN or infinite values as {dtype}, such as {broken}",
                number=len(broken),
                total=len(state),
                path=path,
                dtype=dtype,
                broken=broken[0],
            ),
            message("Fetch the file again"),
        )
    return lm


def lm_of(
    config: DecoderConfig, weights: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> MusicgenLM:
    """Return a language model in evaluation mode, with copies of weights by this project's names.

    Raises:
        RuntimeError: names or shapes don't fit the configuration.
    """
    with torch.device("meta"):
        lm = MusicgenLM(config)
    copies = {name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}
    lm.load_state_dict(copies, assign=True)
    return lm.eval()
