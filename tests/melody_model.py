"""A model with random weights that takes a melody, in audiocraft's format."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model import audiocraft_format
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.local_files import CODEC_FILE, LM_FILE, TEXT_ENCODER
from musicgen_core.model.weights import BaseModel
from tests.musicgen_core.melodies import without_demucs


def make_melody_model(folder: Path, debug_model: BaseModel, channels: int = 1) -> BaseModel:
    """Write a language model that takes melodies of 30 s beside the debug model's codec and text encoder."""
    settings = audiocraft_format.language_model_settings(
        dim=64, layers=2, heads=4, channels=channels, melody_seconds=30, text_dropout=0.2
    )
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


def audiocraft_melody_lm(model: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load audiocraft's language model as `MusicGen.get_pretrained` does; it reads melodies from the whole mix."""
    without_demucs(monkeypatch)
    (folder / "t5-small").symlink_to(Path(model.text_encoder))
    with contextlib.chdir(folder):
        lm = import_audiocraft("audiocraft.models.loaders").load_lm_model(str(model.lm_path)).eval()
    lm.condition_provider.conditioners["self_wav"].match_len_on_eval = True
    lm.condition_provider.conditioners["self_wav"]._use_masking = False
    return lm
