"""A stereo model with random weights, in audiocraft's format."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from musicgen_core.model import audiocraft_format
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.local_files import CODEC_FILE, LM_FILE, TEXT_ENCODER
from musicgen_core.model.weights import BaseModel


def write_random_model(folder: Path, settings: str, debug_model: BaseModel) -> BaseModel:
    """Write a language model of these settings beside the debug model's codec and text encoder."""
    torch.manual_seed(0)
    lm = MusicgenLM(read_lm_config(settings, folder).decoder)
    for parameter in lm.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    for head in lm.lm_heads:
        torch.nn.init.normal_(head.weight, std=0.25)
    folder.mkdir(parents=True, exist_ok=True)
    audiocraft_format.save_checkpoint(folder / LM_FILE, settings, audiocraft_format.to_audiocraft(lm.state_dict()))
    shutil.copy(debug_model.codec_path, folder / CODEC_FILE)
    shutil.copytree(debug_model.directory / TEXT_ENCODER, folder / TEXT_ENCODER)
    return BaseModel(str(folder), folder)


def make_stereo_model(folder: Path, debug_model: BaseModel) -> BaseModel:
    """Write a model of 8 codebooks, as Meta's stereo models are."""
    settings = audiocraft_format.language_model_settings(dim=64, layers=2, heads=4, channels=2)
    return write_random_model(folder, settings, debug_model)
