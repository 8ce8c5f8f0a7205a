"""The size of a model in memory, on disk and as a download, without downloading it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_core.codes import MONO, STEREO
from musicgen_core.config import TrainSettings
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.learning_settings import LORA_TARGETS
from musicgen_core.model import hub

if TYPE_CHECKING:
    from torch import nn

    from musicgen_core.model.decoder import DecoderConfig
    from musicgen_core.model.weights import BaseModel

_SCALES = {"small": (1024, 24, 16), "medium": (1536, 48, 24), "large": (2048, 48, 32)}
"""dim, layers and heads. Source: audiocraft, config/model/lm/model_scale"""
_CHROMA_FRAMES = 235  # 30 s
_KINDS = {"": (MONO, 0), "stereo-": (STEREO, 0)}
_MELODY_KINDS = {"melody": (MONO, _CHROMA_FRAMES), "stereo-melody": (STEREO, _CHROMA_FRAMES)}
_PUBLISHED = {
    **{f"facebook/musicgen-{kind}{scale}": (*_SCALES[scale], *of) for kind, of in _KINDS.items() for scale in _SCALES},
    **{f"facebook/musicgen-{kind}": (*_SCALES["medium"], *of) for kind, of in _MELODY_KINDS.items()},
    **{f"facebook/musicgen-{kind}-large": (*_SCALES["large"], *of) for kind, of in _MELODY_KINDS.items()},
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TEXT_DIM = 768  # T5-base
_BESIDE_LM_BYTES = 1_200_000_000  # EnCodec and T5-base


@dataclass(frozen=True)
class ModelSize:
    """Size of a model in memory, on disk and as a download.

    Attributes:
        name: name or directory, as the user gave it.
        parameters: parameters of the language model.
        lora_parameters: parameters of an adapter with the default settings.
        widths: layers × width, to which activation memory is proportional.
        file_bytes: size of a full model's file.
        download_bytes: bytes still to be downloaded from the Hub.
    """

    name: str
    parameters: int
    lora_parameters: int
    widths: int
    file_bytes: int
    download_bytes: int = 0


def measure_model(name: str) -> ModelSize:
    """Return the size of a model.

    Raises:
        ModelError: no command can use the name or directory, or its size is unknown.
    """
    from musicgen_core.model.configuration import read_lm_config
    from musicgen_core.model.debug_model import LM_CONFIG
    from musicgen_core.model.decoder import DecoderConfig
    from musicgen_core.model.local_files import DEBUG, LM_FILE
    from musicgen_core.model.weights import BaseModel, find_model, refuse_unsupported, wanted_files

    if name == DEBUG:
        config = read_lm_config(LM_CONFIG, DEBUG).decoder
        return _measure(name, config, file_bytes=4 * _parameters(config))
    if Path(name).expanduser().is_dir() or not _HUB_ID.fullmatch(name):
        return _measure_base(find_model(name))  # downloads nothing for a name of this kind
    refuse_unsupported(name)
    if cached := hub.cached(name, *wanted_files(name, (LM_FILE,))):
        return _measure_base(BaseModel(name, cached))
    if name not in _PUBLISHED:
        raise ModelError(
            message("what {name} asks of a machine shows only once it is here", name=name),
            message(
                "Fetch it (uv run hf download {name}), or take one of {names}", name=name, names=", ".join(_PUBLISHED)
            ),
        )
    dim, layers, heads, codes, chroma_frames = _PUBLISHED[name]
    config = DecoderConfig(
        dim=dim,
        layers=layers,
        heads=heads,
        ffn_dim=4 * dim,
        text_dim=_TEXT_DIM,
        codes=codes,
        chroma_frames=chroma_frames,
    )
    file_bytes = 2 * _parameters(config)
    return _measure(name, config, file_bytes, file_bytes + _BESIDE_LM_BYTES)


def _measure_base(model: BaseModel) -> ModelSize:
    return _measure(model.name, model.config.decoder, model.lm_bytes)


def _measure(name: str, config: DecoderConfig, file_bytes: int, download_bytes: int = 0) -> ModelSize:
    from torch import nn

    linears = [module for path, module in _shape(config).named_modules() if path.endswith(LORA_TARGETS)]
    widths = sum(linear.in_features + linear.out_features for linear in linears if isinstance(linear, nn.Linear))
    lora = TrainSettings().lora_r * widths
    return ModelSize(name, _parameters(config), lora, config.layers * config.dim, file_bytes, download_bytes)


def _parameters(config: DecoderConfig) -> int:
    return sum(parameter.numel() for parameter in _shape(config).parameters())


def _shape(config: DecoderConfig) -> nn.Module:
    import torch

    from musicgen_core.model.decoder import MusicgenLM

    with torch.device("meta"):  # no memory is allocated
        return MusicgenLM(config)
