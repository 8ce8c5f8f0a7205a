"""Music, and audiocraft's own conditioner of melodies, without the separation of stems."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.audio_utils import chroma_filter_bank

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.synthesis.composing import compose
from musicgen_core.synthesis.rendering import SoundBank


@cache
def music(seconds: int = 40, seed: int = 0) -> Tensor:
    """Return synthesized music [samples], 32 kHz."""
    frames = 50 * seconds
    return SoundBank().render([compose(seed, "folk", frames)], frames)[0]


def without_demucs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let audiocraft read melodies from whole mixes, with transformers' copy of librosa's filters.

    Returns:
        audiocraft's module of conditioners.
    """
    pytest.importorskip("demucs")
    demucs = SimpleNamespace(sources=["drums", "bass", "other", "vocals"])
    demucs.to = lambda device: demucs
    monkeypatch.setattr("demucs.pretrained.get_model", lambda name: demucs)

    def chroma(sr: int, n_fft: int, tuning: float, n_chroma: int) -> Any:
        return chroma_filter_bank(n_fft, n_chroma, sr, tuning).astype("float32")

    monkeypatch.setattr(import_audiocraft("audiocraft.modules.chroma"), "filters", SimpleNamespace(chroma=chroma))
    conditioners = import_audiocraft("audiocraft.modules.conditioners")
    kept = staticmethod(lambda wav, rate: wav.mean(1, keepdim=True))
    monkeypatch.setattr(conditioners.ChromaStemConditioner, "_get_stemmed_wav", kept)
    return conditioners


def make_conditioner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return audiocraft's `ChromaStemConditioner` with the settings of facebook/musicgen-melody, of whole mixes."""
    return without_demucs(monkeypatch).ChromaStemConditioner(
        output_dim=8, sample_rate=SAMPLE_RATE, n_chroma=12, radix2_exp=14, duration=30.0, argmax=True
    )


def condition_of(wav: Tensor) -> Any:
    """Return audiocraft's condition on a recording [samples] at 32 kHz."""
    conditioners = import_audiocraft("audiocraft.modules.conditioners")
    return conditioners.WavCondition(wav[None, None], torch.tensor([len(wav)]), [SAMPLE_RATE], [None], [0.0])
