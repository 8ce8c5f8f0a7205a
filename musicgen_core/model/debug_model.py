"""The `debug` model: the real architecture at toy size, random weights, the same bits on every machine.

Made on first use, in audiocraft's checkpoint format, and read back by the same loader as the real one. Weights are
NumPy PCG64 integers times a scale, so they don't depend on any library's random numbers or arithmetic.
"""

from __future__ import annotations

import math
import string
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from platformdirs import user_cache_path
from torch import Tensor, nn

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.weights import CODEC_FILE, DEBUG, LM_FILE, TEXT_ENCODER, to_audiocraft

VERSION = 1  # part of the directory's name: raise it when anything below changes the files

LM_CONFIG = """
lm_model: transformer_lm
device: cpu
dtype: float32
channels: 1
dataset: {segment_duration: 30}
transformer_lm:
  {n_q: 4, card: 2048, dim: 64, num_layers: 2, num_heads: 4, hidden_scale: 4, dropout: 0.1, activation: gelu,
   norm_first: true, norm: layer_norm, bias_ff: false, bias_attn: false, bias_proj: false, causal: true,
   past_context: null, custom: false, memory_efficient: true, attention_as_float32: false, layer_scale: null,
   positional_embedding: sin, xpos: false, checkpointing: none, weight_init: gaussian, depthwise_init: current,
   zero_bias_init: true, cross_attention: false, qk_layer_norm: false, qk_layer_norm_cross: false,
   attention_dropout: null, kv_repeat: 1, two_step_cfg: false}
codebooks_pattern: {modeling: delay, delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}}
classifier_free_guidance: {training_dropout: 0.3, inference_coef: 3.0}
attribute_dropout: {}
fuser:
  {cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [], cross: [description],
   input_interpolate: []}
conditioners:
  description: {model: t5, t5: {name: t5-small, finetune: false, word_dropout: 0.0, normalize_text: false}}
"""

CODEC_CONFIG = """
compression_model: encodec
device: cpu
sample_rate: 32000
channels: 1
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: 32000, channels: 1, causal: false, renormalize: false}
seanet:
  {dimension: 16, channels: 1, causal: false, n_filters: 4, n_residual_layers: 1, ratios: [8, 5, 4, 4],
   activation: ELU, activation_params: {alpha: 1.0}, norm: none, norm_params: {}, kernel_size: 7,
   residual_kernel_size: 3, last_kernel_size: 7, dilation_base: 2, pad_mode: constant, true_skip: true, compress: 2,
   lstm: 1, disable_norm_outer_blocks: 0, encoder: {}, decoder: {trim_right_ratio: 1.0, final_activation: null}}
rvq: {n_q: 4, q_dropout: false, bins: 2048, decay: 0.99, kmeans_init: false, threshold_ema_dead_code: 0}
"""

# A character tokenizer: T5's Unigram model over printable ASCII. Anything else is <unk>.
CHARACTERS = "▁" + "".join(sorted(set(string.printable) - set(string.whitespace)))


def debug_model_directory(cache: Path | None = None) -> Path:
    """The debug model's directory under `cache` (by default the user's cache directory), made if it is not there."""
    cache = cache or user_cache_path("musicgen-flows")
    directory = cache / f"debug-v{VERSION}"
    if directory.is_dir():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with storage.publish_folder(directory) as beside:
            _write(beside)
    except OSError:
        if not directory.is_dir():  # else another process was quicker: its bits are the same
            raise
    return directory


def _write(directory: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(20260101))
    lm = MusicgenLM(read_lm_config(LM_CONFIG, DEBUG).decoder)
    _randomize(lm, rng)
    _save(directory / LM_FILE, LM_CONFIG, to_audiocraft(lm.state_dict()))
    builders = import_audiocraft("audiocraft.models.builders")
    codec = builders.get_compression_model(OmegaConf.create(CODEC_CONFIG))
    _randomize(codec, rng)
    _save(directory / CODEC_FILE, CODEC_CONFIG, codec.state_dict())
    _write_text_encoder(directory / TEXT_ENCODER, rng)


def _save(path: Path, config: str, state: dict[str, Tensor]) -> None:
    torch.save({"xp.cfg": config, "best_state": state, "version": "1.3.0", "exported": True}, path)


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
    weights.unlink()  # it is made for its owner alone, whatever the umask
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
        return 0.7  # wide enough that music uses some tens of codes: there is something to learn
    if name.startswith("lm_heads"):
        return 2.0 / math.sqrt(tensor.shape[1])  # sharp enough for adapters to tell codes apart
    if "emb" in name or "shared" in name:
        return 1.0
    if "relative_attention_bias" in name:
        return 0.1
    return 1.0 / math.sqrt(tensor[0].numel())  # fan-in


def _noise(shape: tuple[int, ...], std: float, rng: np.random.Generator) -> Tensor:
    integers = rng.integers(-(2**15), 2**15, size=shape, dtype=np.int64)
    scale = np.float32(std * math.sqrt(3.0) / 2**15)  # uniform on ±√3 std
    return torch.from_numpy(integers.astype(np.float32) * scale)
