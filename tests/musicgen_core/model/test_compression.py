"""The codecs that audiocraft exports, its own and those on the Hub, give audiocraft's codes or are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.errors import ModelError
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.debug_model import CODEC_CONFIG
from musicgen_core.model.weights import BaseModel
from tests.stand_in_hub import StandInHub

pytestmark = pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE")
REPO = "somebody/encodec"
CONFIG: dict[str, Any] = yaml.safe_load(CODEC_CONFIG)
REFLECTING: dict[str, Any] = {**CONFIG["seanet"], "norm": "weight_norm", "pad_mode": "reflect", "lstm": 2}
Export = Callable[..., tuple[Any, BaseModel]]
Publish = Callable[..., tuple[Any, BaseModel]]


def build(**sections: Any) -> tuple[Any, Any]:
    """A codec of random weights, and its configuration, with sections changed."""
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    config = OmegaConf.merge(OmegaConf.create(CONFIG), sections)
    codec = import_audiocraft("audiocraft.models.builders").get_compression_model(config).eval()
    for layer in codec.quantizer.vq.layers:
        torch.nn.init.normal_(layer._codebook.embed, std=0.03)  # so that music takes many codes
    return codec, config


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Let audiocraft export a codec → the codec and its model directory."""

    def export(change: Callable[[Any], None] = lambda config: None, **sections: Any) -> tuple[Any, BaseModel]:
        codec, config = build(**sections)
        change(config)
        model = BaseModel("exported", tmp_path / "exported")
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # audiocraft reads its own training checkpoint
        torch.save({"best_state": {"model": codec.state_dict()}, "xp.cfg": config}, tmp_path / "checkpoint.th")
        import_audiocraft("audiocraft.utils.export").export_encodec(tmp_path / "checkpoint.th", model.codec_path)
        return codec, model  # the environment stays so, and is not to matter

    return export


@pytest.fixture
def publish(hub: StandInHub, tmp_path: Path) -> Publish:
    """Put a codec on the Hub in transformers' format, and let audiocraft export a pointer to it."""

    def publish(name: str = REPO, without: str = "", **settings: Any) -> tuple[Any, BaseModel]:
        from safetensors.torch import save_file
        from transformers import EncodecConfig

        codec, _ = build(seanet=REFLECTING)
        folder = tmp_path / "hub"
        config = {
            **{"sampling_rate": SAMPLE_RATE, "target_bandwidths": [2.2], "upsampling_ratios": [8, 5, 4, 4]},
            **{"hidden_size": 16, "num_filters": 4, "codebook_size": 2048, "use_causal_conv": False},
            **{"use_conv_shortcut": False, **settings},
        }
        EncodecConfig(**config).save_pretrained(folder)
        state = {in_transformers(key): tensor.contiguous() for key, tensor in codec.state_dict().items()}
        save_file({key: tensor for key, tensor in state.items() if key != without}, folder / "model.safetensors")
        hub.add(REPO, folder)
        model = BaseModel("pointer", tmp_path / "pointer")
        import_audiocraft("audiocraft.utils.export").export_pretrained_compression_model(name, model.codec_path)
        return codec, model

    return publish


def in_transformers(name: str) -> str:
    """A weight's name as facebook/encodec_32khz has it."""
    name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
    name = name.replace(".conv.conv.", ".conv.").replace(".convtr.convtr.", ".conv.")
    return name.replace("quantizer.vq.", "quantizer.").replace("._codebook.", ".codebook.")


def noise(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(1, 1, round(seconds * SAMPLE_RATE), generator=generator)


def refusal(model: BaseModel) -> str:
    with pytest.raises(ModelError) as refused:
        Codec(model)
    assert str(model.codec_path) in refused.value.found and refused.value.next_step
    assert "\n" not in str(refused.value)
    return refused.value.found


@torch.inference_mode()
def test_a_pointers_codes_are_audiocrafts(publish: Publish, tmp_path: Path) -> None:
    from transformers import EncodecModel

    native, model = publish()
    codec, wav = Codec(model), noise(1.01)
    codes = codec.encode(wav)
    wrapped = import_audiocraft("audiocraft.models.encodec").HFEncodecCompressionModel(
        EncodecModel.from_pretrained(tmp_path / "hub").eval()
    )
    assert len(codes.unique()) > 50
    assert torch.equal(codes, wrapped.encode(wav)[0])
    assert torch.equal(codes, native.encode(wav)[0])
    torch.testing.assert_close(codec.decode(codes), wrapped.decode(codes), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_an_exported_codecs_codes_are_audiocrafts(export: Export) -> None:
    def refer(config: Any) -> None:
        config.seanet.channels = "${channels}"
        config.encodec.sample_rate = "${sample_rate}"
        config.seanet.causal = "${encodec.causal}"

    theirs, model = export(refer, seanet=REFLECTING)
    codec, wav = Codec(model), noise(1.01)
    assert torch.equal(codec.encode(wav), theirs.encode(wav)[0])


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("kind", ["pointer", "reflect", "constant", "normalized over time"])
def test_clips_of_any_lengths_have_the_codes_that_they_have_alone(
    kind: str, rate: int, export: Export, publish: Publish
) -> None:
    match kind:
        case "pointer":
            _, model = publish()
        case "reflect":
            _, model = export(seanet=REFLECTING)
        case "constant":
            _, model = export(seanet={**REFLECTING, "pad_mode": "constant"})
        case _:
            _, model = export(seanet={"norm": "time_group_norm"})
    codec = Codec(model)
    clips = [noise(seconds, seed)[0, 0].numpy() for seed, seconds in enumerate((0.5, 0.31, 0.5, 0.02, 0.4))]
    together = codec.start(clips, rate).codes()
    for clip, codes in zip(clips, together, strict=True):
        [alone] = codec.start([clip], rate).codes()
        assert codes.shape == alone.shape
        assert np.mean(codes == alone) > 0.99  # a tie may fall the other way in another batch


def test_the_identity_follows_the_weights_not_the_pointer(publish: Publish, hub: StandInHub, tmp_path: Path) -> None:
    _, model = publish()
    torch.save({"pretrained": REPO, "exported": True, "version": "other"}, tmp_path / "compression_state_dict.bin")
    other = BaseModel("other", tmp_path)
    assert codec_identity(other) == codec_identity(model) == Codec(model).identity
    hub.repositories["else/where"] = hub.repositories[REPO]
    hub.repositories["else/where"].files["model.safetensors"] += b"\0"
    torch.save({"pretrained": "else/where"}, other.codec_path)
    assert codec_identity(other) != codec_identity(model)


def test_a_codec_of_more_codebooks_gives_its_first_four(export: Export) -> None:
    theirs, model = export(rvq={"n_q": 8})
    wav = noise(0.5)
    with torch.inference_mode():
        assert torch.equal(Codec(model).encode(wav), theirs.encode(wav)[0][:, :4])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"normalize": True}, "normalize is true"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "chunk_length_s is 1.0"),
        ({"audio_channels": 2}, "audio_channels is 2"),
        ({"num_filters": 8}, "lacks weights"),
        ({"sampling_rate": 24_000, "target_bandwidths": [1.65]}, "24000"),
        ({"without": "decoder.layers.0.conv.weight_v"}, "lacks weights, such as decoder.layers.0.conv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_codec_of_the_hub_is_refused_by_name(settings: dict[str, Any], named: str, publish: Publish) -> None:
    found = refusal(publish(**settings)[1])
    assert named in found and REPO in found


@pytest.mark.parametrize("name", ["dac_44khz", "debug_compression_model", "../encodec", "/etc/passwd", "a/b/c", "${x}"])
def test_a_pointer_to_something_else_is_refused(name: str, publish: Publish, hub: StandInHub) -> None:
    _, model = publish()
    torch.save({"pretrained": name}, model.codec_path)
    assert f'points to "{name}"' in refusal(model)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("encodec", "renormalize", True, "encodec.renormalize is true"),
        ("encodec", "channels", 2, "encodec.channels is 2"),
        ("encodec", "quantizer", "no_quant", 'encodec.quantizer is "no_quant"'),
        ("seanet", "activation", "${oc.env:WANDB_API_KEY}", 'seanet.activation is "${oc.env:WANDB_API_KEY}"'),
        ("seanet", "kernel_size", "???", 'seanet.kernel_size is "???"'),
    ],
)
def test_settings_that_are_not_supported_are_named(
    section: str, key: str, value: Any, named: str, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    found = refusal(export(lambda config: config[section].__setitem__(key, value))[1])
    assert named in found and "a-secret" not in found


def test_a_codec_that_cannot_encode_is_refused_when_it_is_loaded(export: Export) -> None:
    assert "can't encode or decode" in refusal(export(seanet={"channels": 2})[1])


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_code_in_a_codecs_file_is_never_run(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = export()  # with audiocraft's way of loading switched on
    monkeypatch.chdir(tmp_path)
    torch.save({"xp.cfg": CODEC_CONFIG, "best_state": _Code(), "exported": True}, model.codec_path)
    assert "can't be read" in refusal(model)
    assert not Path("ran").exists()
