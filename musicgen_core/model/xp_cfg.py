"""The `xp.cfg` of small models in audiocraft's checkpoint format, for `debug` and `demo`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

_LANGUAGE_MODEL = """
lm_model: transformer_lm
device: cpu
dtype: float32
channels: 1
dataset: {{segment_duration: 30}}
transformer_lm:
  {{n_q: 4, card: {cardinality}, dim: {dim}, num_layers: {layers}, num_heads: {heads}, hidden_scale: {hidden_scale}, dropout: 0.1, activation: gelu,
   norm_first: true, norm: layer_norm, bias_ff: false, bias_attn: false, bias_proj: false, causal: true,
   past_context: null, custom: false, memory_efficient: true, attention_as_float32: false, layer_scale: null,
   positional_embedding: sin, xpos: false, checkpointing: none, weight_init: gaussian, depthwise_init: current,
   zero_bias_init: true, cross_attention: false, qk_layer_norm: false, qk_layer_norm_cross: false,
   attention_dropout: null, kv_repeat: 1, two_step_cfg: false}}
codebooks_pattern: {{modeling: delay, delay: {{delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}}}}
classifier_free_guidance: {{training_dropout: {text_dropout}, inference_coef: {guidance}}}
attribute_dropout: {{}}
fuser:
  {{cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [], cross: [description],
   input_interpolate: []}}
conditioners:
  description: {{model: t5, t5: {{name: t5-small, finetune: false, word_dropout: 0.0, normalize_text: false}}}}
"""  # noqa: E501

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


def language_model(
    dim: int,
    layers: int,
    heads: int,
    hidden_scale: float = 4,
    cardinality: int = 2048,
    text_dropout: float = 0.3,
    guidance: float = 3.0,
) -> str:
    """Return the settings of a language model with a text encoder of t5-small's width, 512.

    `guidance` is the coefficient of classifier-free guidance if a request gives none.
    """
    return _LANGUAGE_MODEL.format(
        dim=dim,
        layers=layers,
        heads=heads,
        hidden_scale=hidden_scale,
        cardinality=cardinality,
        text_dropout=text_dropout,
        guidance=guidance,
    )


def codec(dimension: int, filters: int, bins: int = 2048, lstm: int = 0, decoder_filters: int | None = None) -> str:
    """Return the settings of an EnCodec with 32 kHz, 50 frames/s and 4 codebooks."""
    decoder = "" if decoder_filters is None else f"n_filters: {decoder_filters}, "
    return _CODEC.format(dimension=dimension, filters=filters, bins=bins, lstm=lstm, decoder=decoder)


def save(path: Path, settings: str, state: dict[str, Tensor]) -> None:
    """Write a checkpoint as audiocraft exports it."""
    torch.save({"xp.cfg": settings, "best_state": state, "version": "1.3.0", "exported": True}, path)
