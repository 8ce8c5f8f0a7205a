"""Find model directories and load MusicGen's weights from them.

A model directory holds `state_dict.bin` (the language model, in audiocraft's checkpoint format),
`compression_state_dict.bin` (the EnCodec codec, same form) and, to work without the Hub, `text_encoder/`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.model.audiocraft_format import from_audiocraft, read_checkpoint
from musicgen_core.model.configuration import USE_ANOTHER, LmConfig, read_lm_config
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.local_files import (
    CODEC_FILE,
    DEBUG,
    DEMO,
    DEMO_DIRECTORY,
    LM_FILE,
    TEXT_ENCODER,
    file_sha256,
)
from musicgen_core.stages import announce
from musicgen_core.tensor_files import names_of_non_finite

CHOICES = "a directory in audiocraft's format, a Hugging Face id such as facebook/musicgen-large, demo or debug"
MODEL = hub.Wanted((LM_FILE, CODEC_FILE), (f"{TEXT_ENCODER}/*",))
_UNSUPPORTED = re.compile(r"facebook/(?:musicgen-)?(?P<kind>stereo|melody|style|audiogen|magnet)\b.*")


@dataclass(frozen=True)
class BaseModel:
    """A model directory on this machine.

    Attributes:
        name: the name that the user gave: a Hugging Face id, a directory, or one of `BUILT_IN`.
    """

    name: str
    directory: Path

    @property
    def lm_path(self) -> Path:
        return self.directory / LM_FILE

    @property
    def codec_path(self) -> Path:
        return self.directory / CODEC_FILE

    @property
    def text_encoder(self) -> str:
        """The T5 to load: the directory's own, or else the one that `state_dict.bin` names."""
        own = self.directory / TEXT_ENCODER
        return str(own) if own.is_dir() else self.config.t5

    @property
    def config(self) -> LmConfig:
        """Return the language model's settings in `state_dict.bin`."""
        return read_lm_config(read_checkpoint(self.lm_path)["xp.cfg"], self.lm_path)

    @property
    def identity(self) -> str:
        """An id with a hash of the weights, as adapters and runs record it: `debug@sha256:0123456789abcdef`."""
        name = self.name if self.name in BUILT_IN or ("/" in self.name and not Path(self.name).exists()) else "local"
        return f"{name}@sha256:{file_sha256(self.lm_path)[:16]}"


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
    missing = [file for file in files if not (directory / file).is_file()]
    if missing:
        raise ModelError(
            message(
                "the model directory {directory} has no {names}", directory=directory, names=" and no ".join(missing)
            ),
            message("Give {choices}", choices=CHOICES),
        )
    model = BaseModel(name, directory)
    if model.lm_path.is_file():
        _ = model.config  # raises for unsupported models before any work starts
    return model


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
            message("{name} is {kind} checkpoint, which is not supported yet", name=name, kind=kind), USE_ANOTHER
        )


def find_codec(name: str) -> BaseModel:
    """Return a model directory as `find_model` does, without downloading the language model."""
    return find_model(name, (CODEC_FILE,))


def _download(name: str, files: tuple[str, ...]) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            message("there is no model directory {name}", name=name), message("Give {choices}", choices=CHOICES)
        )
    return hub.fetch(name, MODEL if LM_FILE in files else hub.Wanted(files))


def load_lm(
    model: BaseModel | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MusicgenLM:
    """Load a language model in evaluation mode, without holding two copies in memory.

    Args:
        model: a model directory, or the path of a checkpoint such as `full_models/best_model.pt`.

    Raises:
        ModelError: the file is not a supported model, or its weights are damaged or not finite.
    """
    path = model.lm_path if isinstance(model, BaseModel) else model
    announce(message("reading the model {name}", name=model.name if isinstance(model, BaseModel) else path))
    checkpoint = read_checkpoint(path)
    config = read_lm_config(checkpoint["xp.cfg"], path).decoder
    with torch.device("meta"):
        lm = MusicgenLM(config)
    state = {
        name: tensor.to(device, dtype, copy=True) for name, tensor in from_audiocraft(checkpoint["best_state"]).items()
    }
    try:
        lm.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ModelError(
            message("{path} does not hold what its xp.cfg describes ({reason})", path=path, reason=reason),
            message("Fetch the file again"),
        ) from error
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
    return lm.eval()
