"""Find, load, convert and save MusicGen's weights in audiocraft's checkpoint format.

A model directory holds `state_dict.bin` (`{"xp.cfg": yaml, "best_state": {name: tensor}, "version", "exported"}`),
`compression_state_dict.bin` (the EnCodec codec, same form) and, to work without the Hub, `text_encoder/`.
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

from musicgen_core import tensor_files
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.model.configuration import USE_ANOTHER, LmConfig, read_lm_config
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.local_files import CODEC_FILE, DEBUG, DEMO, DEMO_DIRECTORY, LM_FILE, file_sha256
from musicgen_core.non_finite import names_of_non_finite
from musicgen_core.stages import announce

TEXT_ENCODER = "text_encoder"
CHOICES = "a directory in audiocraft's format, a Hugging Face id such as facebook/musicgen-large, demo or debug"
MODEL = hub.Wanted((LM_FILE, CODEC_FILE), (f"{TEXT_ENCODER}/*",))
_TEXT_PROJECTION = "condition_provider.conditioners.description.output_proj"
_OUTSIDE_LAYERS = {_TEXT_PROJECTION: "enc_to_dec_proj", "out_norm": "model.decoder.layer_norm"}
_INSIDE_LAYERS = {
    "self_attn.out_proj": "self_attn.out_proj",
    "cross_attention.out_proj": "encoder_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}
_UNSUPPORTED = re.compile(r"facebook/(?:musicgen-)?(?P<kind>stereo|melody|style|audiogen|magnet)\b.*")
_PACKED = {"self_attn.in_proj_weight": "self_attn", "cross_attention.in_proj_weight": "encoder_attn"}


@dataclass(frozen=True)
class BaseModel:
    """A model directory on this machine.

    Attributes:
        name: the name that the user gave: a Hugging Face id, a directory, or one of `BUILT_IN`.
        directory: the directory of its files.
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
        stat = self.lm_path.stat()
        return f"{name}@sha256:{file_sha256(self.lm_path, stat.st_size, stat.st_mtime_ns)[:16]}"


def find_model(name: str, files: tuple[str, ...] = (LM_FILE, CODEC_FILE)) -> BaseModel:
    """Return the model directory of a name in `BUILT_IN`, a directory or a Hugging Face id, downloading it if needed.

    Args:
        name: the name.
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


def _debug_directory() -> Path:
    from musicgen_core.model.debug_model import debug_model_directory

    return debug_model_directory()


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


BUILT_IN: dict[str, Callable[[], Path]] = {DEBUG: _debug_directory, DEMO: _demo_directory}
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


def read_file(path: Path) -> dict[str, Any]:
    """Read a file that torch saved, with memory-mapped tensors and without running code from it.

    Raises:
        ModelError: it can't be read, or is not a dictionary.
    """
    try:
        checkpoint = tensor_files.load(path, mmap=True, verify="pickle")
    except Exception as error:  # torch.load raises many kinds on a damaged file
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ModelError(
            message("{path} can't be read ({reason})", path=path, reason=reason), message("Fetch the file again")
        ) from error
    if not isinstance(checkpoint, dict):
        raise _foreign(path, f"it holds a {type(checkpoint).__name__}")
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that audiocraft exported, with memory-mapped tensors.

    Raises:
        ModelError: the file is not such a checkpoint.
    """
    checkpoint = read_file(path)
    if not {"xp.cfg", "best_state"} <= checkpoint.keys():
        raise _foreign(path, "it has no xp.cfg or no best_state")
    state = checkpoint["best_state"]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise _foreign(path, "its best_state holds more than tensors")
    return checkpoint


def _foreign(path: Path, reason: str) -> ModelError:
    return ModelError(
        message("{path} is not a checkpoint of audiocraft ({reason})", path=path, reason=reason),
        message("Give the directory of a checkpoint that audiocraft exported"),
    )


def load_lm(
    model: BaseModel | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MusicgenLM:
    """Load a language model in evaluation mode, without holding two copies in memory.

    Args:
        model: a model directory, or the path of a checkpoint such as `full_models/best_model.pt`.
        device: the device of the weights.
        dtype: their precision.

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


def from_audiocraft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from audiocraft's names to Hugging Face's, which this project uses; packed q, k, v become views.

    Raises:
        ModelError: a name doesn't exist in a text-to-music MusicGen.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("transformer.layers."):
            converted[_rename_outside_layers(name)] = tensor
            continue
        _, _, index, inner = name.replace(".mha.", ".").split(".", 3)  # `.mha.`: torch's own attention
        prefix = f"model.decoder.layers.{index}."
        if inner in _PACKED:
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{prefix}{_PACKED[inner]}.{projection}_proj.weight"] = part
            continue
        module, _, kind = inner.rpartition(".")
        if module not in _INSIDE_LAYERS:
            raise _unknown_name(name)
        converted[f"{prefix}{_INSIDE_LAYERS[module]}.{kind}"] = tensor
    return converted


def _rename_outside_layers(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE_LAYERS:
        return f"{_OUTSIDE_LAYERS[module]}.{kind}"
    if module.startswith("emb."):
        return f"model.decoder.embed_tokens.{module.removeprefix('emb.')}.{kind}"
    if module.startswith("linears."):
        return f"lm_heads.{module.removeprefix('linears.')}.{kind}"
    raise _unknown_name(name)


def _unknown_name(name: str) -> ModelError:
    return ModelError(
        message("the weights hold {name}, which a text-to-music MusicGen does not have", name=name),
        USE_ANOTHER,
    )


def to_audiocraft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from Hugging Face's names to audiocraft's, the inverse of `from_audiocraft`."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE_LAYERS.items()}
    inside = {ours: theirs for theirs, ours in _INSIDE_LAYERS.items()}
    packed = {ours: theirs for theirs, ours in _PACKED.items()}
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in outside:
            converted[f"{outside[module]}.{kind}"] = tensor
        elif module.startswith("model.decoder.embed_tokens."):
            converted[f"emb.{module.rpartition('.')[2]}.{kind}"] = tensor
        elif module.startswith("lm_heads."):
            converted[f"linears.{module.rpartition('.')[2]}.{kind}"] = tensor
        else:
            index, inner = module.removeprefix("model.decoder.layers.").split(".", 1)
            attention, _, projection = inner.rpartition(".")
            if projection in ("q_proj", "k_proj", "v_proj"):
                if projection == "q_proj":
                    parts = [state[f"{module[: -len(projection)]}{p}_proj.weight"] for p in "qkv"]
                    converted[f"transformer.layers.{index}.{packed[attention]}"] = torch.cat(parts)
            else:
                converted[f"transformer.layers.{index}.{inside[inner]}.{kind}"] = tensor
    return converted
