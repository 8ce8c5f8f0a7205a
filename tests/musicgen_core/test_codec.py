from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen_core import codec as codec_module
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.codes import CARDINALITY, SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.errors import ModelError
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.debug_model import CODEC_CONFIG
from musicgen_core.model.weights import BaseModel


@pytest.fixture(scope="module")
def audiocraft_codec(debug_model: BaseModel) -> Any:
    """Return audiocraft's EncodecModel, built from the debug model's files without this project's code."""
    checkpoint = torch.load(debug_model.codec_path, weights_only=True)
    builders = import_audiocraft("audiocraft.models.builders")
    encodec = builders.get_compression_model(OmegaConf.create(checkpoint["xp.cfg"]))
    encodec.load_state_dict(checkpoint["best_state"])
    return encodec.eval()


def noise(batch: int, samples: int) -> Tensor:
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(samples))


@torch.inference_mode()
def test_codes_and_audio_are_audiocrafts(codec: Codec, audiocraft_codec: Any) -> None:
    wav = noise(2, SAMPLE_RATE)
    codes, _ = audiocraft_codec.encode(wav)
    assert torch.equal(codec.encode(wav), codes)
    torch.testing.assert_close(codec.decode(codes), audiocraft_codec.decode(codes), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("samples", "frames"), [(SAMPLE_RATE, 50), (SAMPLES_PER_FRAME, 1), (SAMPLE_RATE + 1, 51)])
def test_a_frame_is_640_samples_and_the_last_may_be_short(codec: Codec, samples: int, frames: int) -> None:
    codes = codec.encode(noise(2, samples))
    assert codes.shape == (2, 4, frames)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < CARDINALITY
    assert codec.decode(codes).shape == (2, 1, frames * SAMPLES_PER_FRAME)


def test_windowed_decoding_equals_decoding_at_once(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codec.encode(noise(3, 7 * SAMPLE_RATE))  # 2 rows at a time, then 1
    whole = codec.decode(codes)
    monkeypatch.setattr(codec_module, "DECODE_SECONDS", 2)
    monkeypatch.setattr(codec_module, "CONTEXT_SECONDS", 1)
    monkeypatch.setattr(codec, "batch_seconds", 8.5)
    parts = codec.decode(codes)
    assert parts.shape == whole.shape
    # The LSTM forgets: 1 s before a part is enough to be within 1e-4 of the samples, which reach beyond 0.1.
    assert whole.abs().max() > 0.1
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_the_debug_codec_tells_sounds_apart(codec: Codec) -> None:
    loud, quiet = codec.encode(torch.cat([noise(1, SAMPLE_RATE), 0.1 * noise(1, SAMPLE_RATE)]))
    assert (loud != quiet).float().mean() > 0.5
    assert (codec.decode(loud[None]) - codec.decode(quiet[None])).abs().max() > 0.01


def test_the_identity_follows_the_weights(debug_model: BaseModel, codec: Codec, tmp_path: Path) -> None:
    copy = BaseModel("another name", tmp_path)
    shutil.copy(debug_model.codec_path, copy.codec_path)
    assert codec_identity(copy) == codec.identity
    copy.codec_path.write_bytes(debug_model.codec_path.read_bytes() + b"\0")
    assert codec_identity(copy) != codec.identity


def test_a_codec_of_another_frame_rate_is_refused(debug_model: BaseModel, tmp_path: Path) -> None:
    config = OmegaConf.merge(OmegaConf.create(CODEC_CONFIG), {"seanet": {"ratios": [8, 5, 4, 2]}})
    encodec = import_audiocraft("audiocraft.models.builders").get_compression_model(config)
    other = dataclasses.replace(debug_model, directory=tmp_path)
    torch.save({"xp.cfg": OmegaConf.to_yaml(config), "best_state": encodec.state_dict()}, other.codec_path)
    with pytest.raises(ModelError) as refused:
        Codec(other)
    assert str(other.codec_path) in refused.value.found and "100" in refused.value.found
    assert "facebook/musicgen-large" in refused.value.next_step


def test_a_damaged_codec_is_named(debug_model: BaseModel, tmp_path: Path) -> None:
    damaged = dataclasses.replace(debug_model, directory=tmp_path)
    checkpoint = torch.load(debug_model.codec_path, weights_only=True)
    checkpoint["best_state"].popitem()
    torch.save(checkpoint, damaged.codec_path)
    with pytest.raises(ModelError) as refused:
        Codec(damaged)
    assert str(damaged.codec_path) in refused.value.found
    assert refused.value.next_step == "Fetch the file again"
    assert "\n" not in str(refused.value)
