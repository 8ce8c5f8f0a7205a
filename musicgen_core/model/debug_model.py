"""The `debug` model: the real architecture at toy size, random weights, the same bits on every machine.

It is created on first use, in audiocraft's checkpoint format, and loaded like the real one. Weights are NumPy PCG64
integers times a scale, which don't depend on any library's random numbers or arithmetic.
"""

from __future__ import annotations

import math
import string
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model import audiocraft_format
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.local_files import CODEC_FILE, DEBUG, LM_FILE, TEXT_ENCODER, debug_directory

LM_CONFIG = audiocraft_format.language_model_settings(dim=64, layers=2, heads=4)
CODEC_CONFIG = audiocraft_format.codec_settings(dimension=16, filters=4, lstm=1)

# A character tokenizer: T5's Unigram model over printable ASCII. Anything else is <unk>.
CHARACTERS = "▁" + "".join(sorted(set(string.printable) - set(string.whitespace)))


def debug_model_directory(cache: Path | None = None) -> Path:
    """Return the debug model's directory under `cache`, by default the user's cache directory; create it if missing."""
    directory = debug_directory(cache)
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with storage.publish_folder(directory) as beside:
            _write(beside)
    except OSError:
        if not directory.is_dir():  # otherwise another process was faster: its bits are the same
            raise
    return directory


def _write(directory: Path) -> None:
    from omegaconf import OmegaConf  # not at the top, to keep imports fast

    rng = np.random.Generator(np.random.PCG64(20260101))
    lm = MusicgenLM(read_lm_config(LM_CONFIG, DEBUG).decoder)
    _randomize(lm, rng)
    audiocraft_format.save_checkpoint(directory / LM_FILE, LM_CONFIG, audiocraft_format.to_audiocraft(lm.state_dict()))
    builders = import_audiocraft("audiocraft.models.builders")
    codec = builders.get_compression_model(OmegaConf.create(CODEC_CONFIG))
    _randomize(codec, rng)
    audiocraft_format.save_checkpoint(directory / CODEC_FILE, CODEC_CONFIG, codec.state_dict())
    _write_text_encoder(directory / TEXT_ENCODER, rng)


def _write_text_encoder(directory: Path, rng: np.random.Generator) -> None:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it takes a moment, and its bar would break the flows' own
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=[*specials, *((c, -2.0) for c in CHARACTERS)], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=512, d_kv=64, d_ff=512, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    encoder = T5EncoderModel(config)
    _randomize(encoder, rng)
    encoder.save_pretrained(directory)
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()  # transformers creates it readable only by its owner, whatever the umask
    weights.write_bytes(content)
    tokenizer.save_pretrained(directory)


def _randomize(module: nn.Module, rng: np.random.Generator) -> None:
    """Fill floating-point weights with uniform noise of a standard deviation that keeps activations near 1."""
    state = module.state_dict()
    for name in sorted(state):
        tensor = state[name]
        if name.endswith(("inited", "cluster_size")):
            tensor.fill_(1.0)
        elif name.endswith("embed_avg"):
            tensor.copy_(state[f"{name.removesuffix('_avg')}"])
        elif tensor.ndim == 1:
            tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            tensor.copy_(_noise(tuple(tensor.shape), _std(name, tensor), rng))


def _std(name: str, tensor: Tensor) -> float:
    if "_codebook" in name:
        return 0.7  # wide enough that music uses some tens of codes, which can be learned
    if name.startswith("lm_heads"):
        return 2.0 / math.sqrt(tensor.shape[1])  # sharp enough for adapters to distinguish codes
    if "emb" in name or "shared" in name:
        return 1.0
    if "relative_attention_bias" in name:
        return 0.1
    return 1.0 / math.sqrt(tensor[0].numel())  # fan-in


def _noise(shape: tuple[int, ...], std: float, rng: np.random.Generator) -> Tensor:
    integers = rng.integers(-(2**15), 2**15, size=shape, dtype=np.int64)
    scale = np.float32(std * math.sqrt(3.0) / 2**15)  # uniform on ±√3 std
    return torch.from_numpy(integers.astype(np.float32) * scale)
