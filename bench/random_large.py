"""Write a model directory of MusicGen-Large's exact shape with random weights, for benchmarks without the real model.

    python -m bench.random_large OUT [--layers 48] [--stereo] [--melody]

The language model is fp16 as on the Hub, T5 is t5-base's encoder with the debug model's tokenizer, and the codec
is EnCodec 32 kHz.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from omegaconf import OmegaConf

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model.audiocraft_format import language_model_settings, to_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.debug_model import CODEC_CONFIG
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.local_files import CODEC_FILE, LM_FILE, TEXT_ENCODER
from musicgen_core.model.weights import find_model


def make_random_large(directory: Path, layers: int = 48, channels: int = 1, takes_melody: bool = False) -> None:
    """Write the model directory: 6.5 GB at 48 layers, 4.9 GB if it takes a melody, without cross-attention."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    settings = language_model_settings(
        dim=2048,
        layers=layers,
        heads=32,
        t5="t5-base",
        channels=channels,
        melody_seconds=30 if takes_melody else None,
    )
    with torch.device("meta"):
        lm = MusicgenLM(read_lm_config(settings, "musicgen-large").decoder)
    state = {}
    for name, tensor in lm.state_dict().items():
        is_norm = "norm" in name and name.endswith("weight")
        state[name] = torch.ones(tensor.shape) if is_norm else torch.randn(tensor.shape) * 0.02
        state[name] = state[name].half()
    _save(directory / LM_FILE, settings, to_audiocraft(state))

    config = OmegaConf.create(CODEC_CONFIG)
    config.seanet.update({"dimension": 128, "n_filters": 64, "lstm": 2})
    codec = import_audiocraft("audiocraft.models.builders").get_compression_model(config)
    _save(directory / CODEC_FILE, OmegaConf.to_yaml(config), codec.state_dict())
    _write_t5(directory / TEXT_ENCODER)


def _save(path: Path, config: str, state: dict[str, torch.Tensor]) -> None:
    torch.save({"xp.cfg": config, "best_state": state, "version": "1.3.0", "exported": True}, path)


def _write_t5(directory: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    source = find_model("debug").directory / TEXT_ENCODER
    config = T5Config(vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    T5EncoderModel(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--stereo", action="store_true", help="the shape of musicgen-stereo-large")
    parser.add_argument("--melody", action="store_true", help="the shape of musicgen-melody-large")
    arguments = parser.parse_args()
    make_random_large(arguments.out, arguments.layers, 2 if arguments.stereo else 1, arguments.melody)
