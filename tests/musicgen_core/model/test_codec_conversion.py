"""The codec in audiocraft's format and in transformers', converted to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.errors import ModelError
from musicgen_core.model.codec_conversion import to_audiocraft, to_transformers
from musicgen_core.model.debug_model import CODEC_CONFIG
from musicgen_core.model.weights import BaseModel, find_model


@pytest.fixture(scope="module")
def music() -> Tensor:
    return torch.rand(1, 1, 6400, generator=torch.Generator().manual_seed(0)) - 0.5


def audiocraft_codec(**seanet: Any) -> tuple[Any, dict[str, Any]]:
    """Return a random codec of stock audiocraft and its checkpoint."""
    config = OmegaConf.merge(OmegaConf.create(CODEC_CONFIG), {"seanet": seanet})
    codec = import_audiocraft("audiocraft.models.builders").get_compression_model(config).eval()
    generator = torch.Generator().manual_seed(5)
    state = codec.state_dict()
    for name, tensor in state.items():
        if not name.endswith(("inited", "cluster_size")):
            # The magnitudes of weight norm stay near those that the network was made with.
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return codec, {"xp.cfg": OmegaConf.to_yaml(config), "best_state": state}


@torch.inference_mode()
def assert_same(converted: Any, codec: Any, music: Tensor, tolerance: float) -> None:
    codes = codec.encode(music)[0]
    assert torch.equal(converted.encode(music).audio_codes[0], codes)
    found, expected = converted.decode(codes[None], [None]).audio_values, codec.decode(codes)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "seanet",
    [
        {"norm": "weight_norm", "lstm": 2},
        {"norm": "weight_norm", "lstm": 2, "causal": True, "pad_mode": "reflect", "true_skip": False},
        {"norm": "weight_norm", "n_residual_layers": 2, "compress": 4, "lstm": 1},
        {"norm": "none", "lstm": 0},
        {"norm": "none", "lstm": 0, "decoder": {"n_filters": 6}},
        {"norm": "weight_norm", "lstm": 0, "encoder": {"n_filters": 6}},
    ],
    ids=str,
)
def test_transformers_computes_the_same_of_a_checkpoint_of_audiocraft(seanet: dict[str, Any], music: Tensor) -> None:
    codec, checkpoint = audiocraft_codec(**seanet)
    is_exact = seanet["norm"] == "weight_norm" and "encoder" not in seanet
    assert_same(to_transformers(checkpoint, "it"), codec, music, tolerance=0 if is_exact else 1e-5)


@pytest.mark.parametrize("name", ["debug", "demo"])
def test_built_in_codecs_are_converted(name: str, debug_model: BaseModel, music: Tensor) -> None:
    model = debug_model if name == "debug" else find_model(name)
    codec = import_audiocraft("audiocraft.models.loaders").load_compression_model(str(model.codec_path))
    checkpoint = torch.load(model.codec_path, weights_only=True)
    assert_same(to_transformers(checkpoint, "it"), codec, music, tolerance=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"use_causal_conv": False, "pad_mode": "constant", "use_conv_shortcut": False}]
)
def test_audiocraft_computes_the_same_of_a_codec_of_transformers(
    settings: dict[str, Any], music: Tensor, tmp_path: Path
) -> None:
    from transformers import EncodecConfig, EncodecModel

    encodec = EncodecModel(
        EncodecConfig(
            **{"target_bandwidths": [2.2], "sampling_rate": 32_000, "upsampling_ratios": [8, 5, 4, 4], **settings},
            **{"codebook_size": 2048, "num_filters": 4, "hidden_size": 16},
        )
    ).eval()
    for layer in encodec.quantizer.layers:
        layer.codebook.embed.normal_()
    torch.save(to_audiocraft(encodec, "it"), tmp_path / "codec.bin")
    codec = import_audiocraft("audiocraft.models.loaders").load_compression_model(str(tmp_path / "codec.bin"))
    assert_same(encodec, codec.eval(), music, tolerance=0)


@pytest.mark.parametrize(
    ("seanet", "named"),
    [
        ({"norm": "time_group_norm"}, 'seanet.norm is "time_group_norm"'),
        ({"activation": "ReLU"}, 'seanet.activation is "ReLU"'),
        ({"decoder": {"compress": 1}}, "seanet.decoder.compress is 1"),
        ({"decoder": {"n_filters": 6}}, "seanet.decoder.n_filters is 6"),
        ({"final_rescaling": 2}, "seanet.final_rescaling is 2"),
    ],
)
def test_codecs_that_transformers_can_not_compute_are_refused_by_name(seanet: dict[str, Any], named: str) -> None:
    config = OmegaConf.merge(OmegaConf.create(CODEC_CONFIG), {"seanet": seanet})
    with pytest.raises(ModelError, match=named):
        to_transformers({"xp.cfg": OmegaConf.to_yaml(config), "best_state": {}}, "it")
