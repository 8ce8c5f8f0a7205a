"""Read and write audiocraft's checkpoint format, and convert its names of weights to Hugging Face's and back.

A checkpoint is a file of torch: `{"xp.cfg": yaml, "best_state": {name: tensor}, "version", "exported"}`. The settings
in `xp.cfg` are those of small models here, `debug` and `demo`; `configuration` reads those of any model.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_core import tensor_files
from musicgen_core.codes import MONO, STEREO
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.melody import WINDOW
from musicgen_core.model.configuration import USE_ANOTHER

_INSIDE_LAYERS = {
    "self_attn": "self_attn",
    "self_attn.out_proj": "self_attn.out_proj",
    "cross_attention": "encoder_attn",
    "cross_attention.out_proj": "encoder_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}
_MODULES = {
    "condition_provider.conditioners.description.output_proj": "enc_to_dec_proj",
    "condition_provider.conditioners.self_wav.output_proj": "audio_enc_to_dec_proj",
    "out_norm": "model.decoder.layer_norm",
    "emb.#": "model.decoder.embed_tokens.#",
    "linears.#": "lm_heads.#",
    **{f"transformer.layers.#.{theirs}": f"model.decoder.layers.#.{ours}" for theirs, ours in _INSIDE_LAYERS.items()},
}
"""audiocraft's names of modules and ours; # is a number."""
_OUR_MODULES = {ours: theirs for theirs, ours in _MODULES.items()}
_CHROMA_WINDOW = "condition_provider.conditioners.self_wav.chroma.spec.window"
"""The window of a melody's spectrogram, which audiocraft stores though it is never trained"""
_NUMBER = re.compile(r"(?<=\.)\d+")
_PACKED = "in_proj_weight"  # q, k and v

_LANGUAGE_MODEL = """
lm_model: transformer_lm
device: cpu
dtype: float32
channels: {channels}
dataset: {{segment_duration: {seconds:g}}}
transformer_lm:
  {{n_q: {codebooks}, card: {cardinality}, dim: {dim}, num_layers: {layers}, num_heads: {heads}, hidden_scale: {hidden_scale}, dropout: 0.1, activation: gelu,
   norm_first: true, norm: layer_norm, bias_ff: false, bias_attn: false, bias_proj: false, causal: true,
   past_context: null, custom: false, memory_efficient: true, attention_as_float32: false, layer_scale: null,
   positional_embedding: sin, xpos: false, checkpointing: none, weight_init: gaussian, depthwise_init: current,
   zero_bias_init: true, cross_attention: false, qk_layer_norm: false, qk_layer_norm_cross: false,
   attention_dropout: null, kv_repeat: 1, two_step_cfg: false}}
codebooks_pattern: {{modeling: delay, delay: {{delays: {delays}, flatten_first: 0, empty_initial: 0}}}}
classifier_free_guidance: {{training_dropout: {text_dropout}, inference_coef: {guidance}}}
attribute_dropout: {{{attribute_dropout}}}
fuser:
  {{cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: {prepend}, cross: {cross},
   input_interpolate: []}}
conditioners:
  description: {{model: t5, t5: {{name: {t5}, finetune: false, word_dropout: {word_dropout}, normalize_text: false}}}}
"""  # noqa: E501

_MELODY = """\
  self_wav:
    {model: chroma_stem, chroma_stem: {sample_rate: 32000, n_chroma: 12, radix2_exp: 14, argmax: true,
     match_len_on_eval: false, eval_wavs: null, n_eval_wavs: 100, cache_path: null}}
"""  # of conditioners, which stand last

_STEREO = "interleave_stereo_codebooks: {use: true, per_timestep: false}\n"

_CODEC = """
compression_model: encodec
device: cpu
sample_rate: 32000
channels: 1
encodec: {{autoencoder: seanet, quantizer: rvq, sample_rate: 32000, channels: 1, causal: false, renormalize: false}}
seanet:
  {{dimension: {dimension}, channels: 1, causal: false, n_filters: {filters}, n_residual_layers: 1, ratios: [8, 5, 4, 4],
   activation: ELU, activation_params: {{alpha: 1.0}}, norm: none, norm_params: {{}}, kernel_size: 7,
   residual_kernel_size: 3, last_kernel_size: 7, dilation_base: 2, pad_mode: constant, true_skip: true, compress: 2,
   lstm: {lstm}, disable_norm_outer_blocks: 0, encoder: {{}}, decoder: {{{decoder}trim_right_ratio: 1.0, final_activation: null}}}}
rvq: {{n_q: 4, q_dropout: false, bins: {bins}, decay: 0.99, kmeans_init: false, threshold_ema_dead_code: 0}}
"""  # noqa: E501


def read_file(path: Path) -> dict[str, Any]:
    """Read a file that torch saved, with memory-mapped tensors and without running code from it.

    Raises:
        ModelError: it can't be read, or is not a dictionary.
    """
    try:
        checkpoint = tensor_files.load(path, mmap=True, verify="pickle")
    except Exception as error:  # torch.load raises many kinds on a damaged file
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ModelError(
            message("{path} can't be read ({reason})", path=path, reason=reason), message("Fetch the file again")
        ) from error
    if not isinstance(checkpoint, dict):
        raise _foreign(path, f"it holds a {type(checkpoint).__name__}")
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that audiocraft exported, with memory-mapped tensors.

    Raises:
        ModelError: the file is not such a checkpoint.
    """
    checkpoint = read_file(path)
    if not {"xp.cfg", "best_state"} <= checkpoint.keys():
        raise _foreign(path, "it has no xp.cfg or no best_state")
    state = checkpoint["best_state"]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise _foreign(path, "its best_state holds more than tensors")
    return checkpoint


def _foreign(path: Path, reason: str) -> ModelError:
    return ModelError(
        message("{path} is not a checkpoint of audiocraft ({reason})", path=path, reason=reason),
        message("Give the directory of a checkpoint that audiocraft exported"),
    )


def save_checkpoint(path: Path, settings: str, state: dict[str, Tensor]) -> None:
    """Write a checkpoint as audiocraft exports it."""
    torch.save(checkpoint_of(settings, state), path)


def checkpoint_of(settings: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the content of a checkpoint as audiocraft exports it."""
    return {"xp.cfg": settings, "best_state": state, "version": "1.3.0", "exported": True}


def language_model_settings(
    dim: int,
    layers: int,
    heads: int,
    hidden_scale: float = 4,
    cardinality: int = 2048,
    text_dropout: float = 0.3,
    guidance: float = 3.0,
    word_dropout: float = 0.0,
    t5: str = "t5-small",
    channels: int = 1,
    melody_seconds: float | None = None,
    melody_dropout: float = 0.5,
) -> str:
    """Return the settings of a language model.

    Args:
        text_dropout: share of clips that are trained on without their text.
        guidance: coefficient of classifier-free guidance if a request gives none.
        word_dropout: share of words that are left out of the texts in training.
        t5: audiocraft's name of the text encoder.
        channels: of the audio, 1 or 2.
        melody_seconds: the length of the melodies that it takes, or None for a model that takes none.
        melody_dropout: share of clips with their text that are trained on without their melody.
    """
    takes_melody = melody_seconds is not None
    codes = STEREO if channels == 2 else MONO
    settings = _LANGUAGE_MODEL.format(
        channels=channels,
        codebooks=codes.codebooks,
        delays=list(codes.delays),
        dim=dim,
        layers=layers,
        heads=heads,
        hidden_scale=hidden_scale,
        cardinality=cardinality,
        text_dropout=text_dropout,
        guidance=guidance,
        word_dropout=word_dropout,
        t5=t5,
        seconds=melody_seconds if takes_melody else 30,
        attribute_dropout=f"wav: {{self_wav: {melody_dropout}}}" if takes_melody else "",
        prepend="[self_wav, description]" if takes_melody else "[]",
        cross="[]" if takes_melody else "[description]",
    )
    settings += _MELODY if takes_melody else ""
    return settings + _STEREO if channels == 2 else settings


def hidden_scale(dim: int, ffn_dim: int) -> float:
    """Return the setting from which audiocraft computes the width of the feed-forward layers, `int(scale * dim)`."""
    scale = ffn_dim / dim
    return scale if int(scale * dim) == ffn_dim else (ffn_dim + 0.5) / dim


def codec_settings(
    dimension: int, filters: int, bins: int = 2048, lstm: int = 0, decoder_filters: int | None = None
) -> str:
    """Return the settings of an EnCodec with 32 kHz, 50 frames/s and 4 codebooks."""
    decoder = "" if decoder_filters is None else f"n_filters: {decoder_filters}, "
    return _CODEC.format(dimension=dimension, filters=filters, bins=bins, lstm=lstm, decoder=decoder)


def from_audiocraft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from audiocraft's names to Hugging Face's, which this project uses; packed q, k, v become views.

    Raises:
        ModelError: a name doesn't exist in a MusicGen.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == _CHROMA_WINDOW:
            continue
        module, _, kind = name.replace(".mha.", ".").rpartition(".")  # `.mha.`: torch's own attention
        ours = _renamed(module, _MODULES)
        if ours is None or (kind == _PACKED) != ours.endswith("_attn"):
            raise ModelError(
                message("the weights hold {name}, which a MusicGen does not have", name=name),
                USE_ANOTHER,
            )
        if kind == _PACKED:
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{ours}.{projection}_proj.weight"] = part
        else:
            converted[f"{ours}.{kind}"] = tensor
    return converted


def _renamed(module: str, names: Mapping[str, str]) -> str | None:
    number = _NUMBER.search(module)
    return (name := names.get(_NUMBER.sub("#", module))) and name.replace("#", number[0] if number else "")


def to_audiocraft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from Hugging Face's names to audiocraft's, the inverse of `from_audiocraft`."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        attention, _, projection = module.rpartition(".")
        if projection == "q_proj":
            parts = [state[f"{attention}.{one}_proj.weight"] for one in "qkv"]
            converted[f"{_renamed(attention, _OUR_MODULES)}.{_PACKED}"] = torch.cat(parts)
        elif projection not in ("k_proj", "v_proj"):
            converted[f"{_renamed(module, _OUR_MODULES)}.{kind}"] = tensor
            if module == "audio_enc_to_dec_proj":
                converted[_CHROMA_WINDOW] = torch.hann_window(WINDOW)
    return converted
