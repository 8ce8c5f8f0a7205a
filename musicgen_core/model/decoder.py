"""MusicGen's language model with plain projections, so that LoRA reaches all of them and generation is ours to shape.

The arithmetic is that of audiocraft's `LMModel` (pre-norm transformer, sinusoidal positions, cross-attention to
projected T5 states). Modules are named as in Hugging Face's MusicGen, so adapters fit both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a language model; musicgen-large's is dim 2048, layers 48, heads 32, ffn_dim 8192."""

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    text_dim: int
    codebooks: int = 4
    cardinality: int = 2048

    @property
    def special(self) -> int:
        """The id that stands where the delay pattern has no code."""
        return self.cardinality


@dataclass
class TextCondition:
    """Encoded text: states [B, L, text_dim] and mask [B, L], True where text is. No True: the null condition."""

    states: Tensor
    mask: Tensor

    @property
    def attend(self) -> Tensor:
        """The cross-attention mask [B, 1, 1, L]: to the text, or under the null condition to all of its zeros."""
        return (self.mask | ~self.mask.any(dim=-1, keepdim=True))[:, None, None]


@dataclass
class LayerCache:
    """Keys and values of one layer while generating, each [B, heads, positions, dim / heads]."""

    keys: Tensor
    values: Tensor
    text_keys: Tensor
    text_values: Tensor


def sinusoids(positions: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """positions [...] → [..., dim], cosines first. Source: audiocraft `create_sin_embedding`."""
    half = dim // 2
    exponents = torch.arange(half, device=positions.device, dtype=positions.dtype) / (half - 1)
    phase = positions[..., None] / max_period**exponents
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with separate, bias-free projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, S, D] → [B, H, S, D/H]

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k_proj(source)), self.split(self.v_proj(source))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Queries from x [B, S, D] over keys and values [B, H, L, D/H] → [B, S, D]."""
        queries = self.split(self.q_proj(x))
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.dim, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim)
        self.encoder_attn = Attention(config.dim, config.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """x [B, S, D], text [B, L, D], text_mask [B, 1, 1, L] → [B, S, D]."""
        y = self.self_attn_layer_norm(x)
        x = x + self.self_attn.attend(y, *self.self_attn.keys_values(y), mask=None, causal=True)
        return self._after_self_attention(x, *self.encoder_attn.keys_values(text), text_mask)

    def extend(self, x: Tensor, text_mask: Tensor, cache: LayerCache, position: int) -> Tensor:
        """x [B, S, D], the first at `position`, whose keys and values are added to `cache`; several only at 0."""
        y = self.self_attn_layer_norm(x)
        seen, several = position + x.shape[1], x.shape[1] > 1
        cache.keys[:, :, position:seen], cache.values[:, :, position:seen] = self.self_attn.keys_values(y)
        keys, values = cache.keys[:, :, :seen], cache.values[:, :, :seen]
        x = x + self.self_attn.attend(y, keys, values, mask=None, causal=several)
        return self._after_self_attention(x, cache.text_keys, cache.text_values, text_mask)

    def _after_self_attention(self, x: Tensor, text_keys: Tensor, text_values: Tensor, text_mask: Tensor) -> Tensor:
        y = self.encoder_attn_layer_norm(x)
        x = x + self.encoder_attn.attend(y, text_keys, text_values, mask=text_mask, causal=False)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class Decoder(nn.Module):
    """Code embeddings, positions and the stack of layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.ModuleList(
            nn.Embedding(config.cardinality + 1, config.dim) for _ in range(config.codebooks)
        )
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.dim)

    def blocks(self) -> list[DecoderLayer]:
        """The layers, typed."""
        return cast("list[DecoderLayer]", list(self.layers))

    def embed(self, sequence: Tensor, first_position: int = 0) -> Tensor:
        """sequence [B, K, S] whose first column is at `first_position` → [B, S, D]."""
        # An explicit loop: sum() over a generator would start from the int 0.
        x = self.embed_tokens[0](sequence[:, 0])
        for k in range(1, len(self.embed_tokens)):
            x = x + self.embed_tokens[k](sequence[:, k])
        exact = (
            torch.float64 if x.dtype == torch.float64 else torch.float32
        )  # half precision can't tell positions apart
        positions = torch.arange(sequence.shape[-1], device=x.device, dtype=exact) + first_position
        return x + sinusoids(positions, x.shape[-1]).to(x.dtype)


class _Body(nn.Module):
    """Hugging Face's middle level, kept so that module names are the same: `model.decoder.layers.0…`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)


class MusicgenLM(nn.Module):
    """Predicts the next code of each codebook from the codes before it and a text."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.enc_to_dec_proj = nn.Linear(config.text_dim, config.dim)
        self.model = _Body(config)
        self.lm_heads = nn.ModuleList(
            nn.Linear(config.dim, config.cardinality, bias=False) for _ in range(config.codebooks)
        )

    def project_text(self, text: TextCondition) -> tuple[Tensor, Tensor]:
        """→ projected states [B, L, D], zero where no text is, and the cross-attention mask [B, 1, 1, L].

        A prompt attends to its own text alone, whatever it is batched with. The null condition attends to its
        zeros, which give zero: exactly what audiocraft makes of it.
        """
        weight = self.enc_to_dec_proj.weight
        states = self.enc_to_dec_proj(text.states.to(weight.dtype)) * text.mask[..., None]
        return states.to(weight.dtype), text.attend

    def forward(self, sequence: Tensor, text: TextCondition) -> Tensor:
        """Delayed codes [B, K, S] and text of the same batch → logits [B, K, S, cardinality] of the next column."""
        states, mask = self.project_text(text)
        x = self.model.decoder.embed(sequence)
        for layer in self.model.decoder.layers:
            x = layer(x, states, mask)
        return self._logits(x)

    def new_cache(self, text: TextCondition, positions: int) -> tuple[list[LayerCache], Tensor]:
        """Room for `positions` steps of generation, the text's keys and values in it, and the text's mask."""
        states, mask = self.project_text(text)
        caches = []
        for layer in self.model.decoder.blocks():
            text_keys, text_values = layer.encoder_attn.keys_values(states)
            batch, heads, _, head_dim = text_keys.shape
            keys = text_keys.new_zeros(batch, heads, positions, head_dim)
            caches.append(LayerCache(keys, torch.zeros_like(keys), text_keys, text_values))
        return caches, mask

    def step(self, column: Tensor, caches: list[LayerCache], text_mask: Tensor, position: int) -> Tensor:
        """One column of codes [B, K, 1] at `position` → logits [B, K, cardinality] of the next column."""
        return self._logits(self._extend(column, caches, text_mask, position))[:, :, 0]

    def prefill(self, columns: Tensor, caches: Iterable[LayerCache], text_mask: Tensor) -> None:
        """Put the keys and values of the first columns of a sequence [B, K, S] into the layers' caches, all at once."""
        if columns.shape[-1]:
            self._extend(columns, caches, text_mask, 0)

    def _extend(self, columns: Tensor, caches: Iterable[LayerCache], text_mask: Tensor, position: int) -> Tensor:
        x = self.model.decoder.embed(columns, position)
        for layer, cache in zip(self.model.decoder.blocks(), caches, strict=True):
            x = layer.extend(x, text_mask, cache, position)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        x = self.model.decoder.layer_norm(x)
        return torch.stack([head(x) for head in self.lm_heads], dim=1)
