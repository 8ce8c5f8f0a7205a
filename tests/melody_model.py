"""A model with random weights that takes a melody, in audiocraft's format."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model import audiocraft_format
from musicgen_core.model.weights import BaseModel
from tests.musicgen_core.melodies import without_demucs
from tests.stereo_model import write_random_model


def make_melody_model(folder: Path, debug_model: BaseModel, channels: int = 1) -> BaseModel:
    """Write a language model that takes melodies of 30 s beside the debug model's codec and text encoder."""
    settings = audiocraft_format.language_model_settings(
        dim=64, layers=2, heads=4, channels=channels, melody_seconds=30, text_dropout=0.2
    )
    return write_random_model(folder, settings, debug_model)


def audiocraft_melody_lm(model: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load audiocraft's language model as `MusicGen.get_pretrained` does; it reads melodies from the whole mix."""
    without_demucs(monkeypatch)
    (folder / "t5-small").symlink_to(Path(model.text_encoder))
    with contextlib.chdir(folder):
        lm = import_audiocraft("audiocraft.models.loaders").load_lm_model(str(model.lm_path)).eval()
    lm.condition_provider.conditioners["self_wav"].match_len_on_eval = True
    lm.condition_provider.conditioners["self_wav"]._use_masking = False
    return lm
