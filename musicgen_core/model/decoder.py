"""MusicGen's language model with separate projections, so that LoRA can adapt each and generation can be optimized.

The arithmetic is that of audiocraft's `LMModel` (pre-norm transformer, sinusoidal positions, cross-attention to
projected T5 states; or, in a model that takes a melody, the melody and the text in front of the codes and no
cross-attention). Modules are named as in Hugging Face's MusicGen and MusicgenMelody, so adapters fit both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_core.codes import MONO, CodeShape
from musicgen_core.music_theory import PITCH_CLASSES


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a language model; musicgen-large's is dim 2048, layers 48, heads 32, ffn_dim 8192.

    Attributes:
        dim: width of the residual stream.
        layers: number of decoder layers.
        heads: attention heads of a layer.
        ffn_dim: width of the feed-forward layers.
        text_dim: width of the text encoder's states.
        codes: the shape of its codes.
        chroma_frames: frames of a melody's chroma that it reads in front of text and codes, without cross-attention;
            0 for a model that takes no melody and reads the text by cross-attention.
    """

    dim: int
    layers: int
    heads: int
    ffn_dim: int
    text_dim: int
    codes: CodeShape = MONO
    chroma_frames: int = 0

    @property
    def takes_melody(self) -> bool:
        """Return whether it is conditioned on a melody, too."""
        return self.chroma_frames > 0

    @property
    def codebooks(self) -> int:
        """Return the number of codebooks, K."""
        return self.codes.codebooks

    @property
    def cardinality(self) -> int:
        """Return the number of codes of a codebook."""
        return self.codes.cardinality


@dataclass
class Condition:
    """What clips or samples are conditioned on.

    Attributes:
        states: [B, L, text_dim], the encoded texts.
        mask: [B, L], True at tokens; all False is the null condition.
        chroma: [B, chroma_frames], int64, the melodies' pitch classes; all 0, as of silence, without a melody, and None
            for a model that takes none.
        text_lengths: [B], int64, the positions that each text takes in front of the codes, if a null condition should
            take more than one, as in audiocraft's classifier-free guidance.
    """

    states: Tensor
    mask: Tensor
    chroma: Tensor | None = None
    text_lengths: Tensor | None = None

    @property
    def attend(self) -> Tensor:
        """The cross-attention mask [B, 1, 1, L]: the text's tokens, or under the null condition all of its zeros."""
        return (self.mask | ~self.mask.any(dim=-1, keepdim=True))[:, None, None]

    @property
    def text_positions(self) -> Tensor:
        """The positions [B], int64, that each text takes in front of the codes, at least one."""
        return self.mask.sum(dim=-1).clamp(min=1) if self.text_lengths is None else self.text_lengths

    def rows(self, which: slice | Tensor) -> Condition:
        """Return the conditions of some clips or samples."""
        chroma, lengths = (None if part is None else part[which] for part in (self.chroma, self.text_lengths))
        return Condition(self.states[which], self.mask[which], chroma, lengths)

    def rows_alike(self, which: slice | Tensor) -> Condition:
        """Return the conditions of some rows whose texts take equally many positions, without padding behind them."""
        rows = self.rows(which)
        length = int(rows.text_positions[0])
        return replace(rows, states=rows.states[:, :length], mask=rows.mask[:, :length])


@dataclass
class LayerCache:
    """The key-value cache of one layer, of the sequence and of the text, each [B, heads, positions, dim / heads]."""

    keys: Tensor
    values: Tensor
    text_keys: Tensor
    text_values: Tensor


def sinusoids(positions: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return sinusoidal embeddings [..., dim] of positions [...], cosines first.

    Source: audiocraft `create_sin_embedding`.
    """
    half = dim // 2
    exponents = torch.arange(half, device=positions.device, dtype=positions.dtype) / (half - 1)
    phase = positions[..., None] / max_period**exponents
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


@dataclass
class Prefix:
    """What a model that takes a melody reads before the codes: the chroma and the text, padded behind.

    Attributes:
        states: [B, P, D].
        lengths: [B], int64, the positions of each row without its padding.
    """

    states: Tensor
    lengths: Tensor

    def before(self, x: Tensor) -> Tensor:
        """Return each row's prefix followed by its codes x [B, S, D], and padding behind them: [B, P + S, D]."""
        (_, longest, dim), steps = self.states.shape, x.shape[1]
        position = torch.arange(longest + steps, device=x.device)
        step = position - self.lengths[:, None]  # negative in the prefix
        index = torch.where(step < 0, position, longest + step.clamp(max=steps - 1))
        return torch.cat([self.states, x], dim=1).gather(1, index[..., None].expand(-1, -1, dim))

    def behind(self, x: Tensor, steps: int) -> Tensor:
        """Return the part [B, steps, D] of x [B, P + steps, D] that is at the codes."""
        index = self.lengths[:, None] + torch.arange(steps, device=x.device)
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


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
        """Return attention [B, S, D] of x [B, S, D] to keys and values [B, H, L, D/H]."""
        queries = self.split(self.q_proj(x))
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to the text and a feed-forward layer, each after a norm (pre-norm).

    In a model that takes a melody there is no cross-attention.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.has_cross_attention = not config.takes_melody
        self.self_attn = Attention(config.dim, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim)
        if self.has_cross_attention:
            self.encoder_attn = Attention(config.dim, config.heads)
            self.encoder_attn_layer_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return the layer's output [B, S, D] for x [B, S, D], text [B, L, D] and text_mask [B, 1, 1, L]."""
        y = self.self_attn_layer_norm(x)
        x = x + self.self_attn.attend(y, *self.self_attn.keys_values(y), mask=None, causal=True)
        if self.has_cross_attention:
            x = self._attend_text(x, *self.encoder_attn.keys_values(text), text_mask)
        return self._feed_forward(x)

    def extend(self, x: Tensor, text_mask: Tensor, cache: LayerCache, position: int) -> Tensor:
        """Return the output [B, S, D] for x [B, S, D] at `position`, and add its keys and values to `cache`.

        S may be more than 1 only at position 0.
        """
        y = self.self_attn_layer_norm(x)
        seen, several = position + x.shape[1], x.shape[1] > 1
        cache.keys[:, :, position:seen], cache.values[:, :, position:seen] = self.self_attn.keys_values(y)
        keys, values = cache.keys[:, :, :seen], cache.values[:, :, :seen]
        x = x + self.self_attn.attend(y, keys, values, mask=None, causal=several)
        if self.has_cross_attention:
            x = self._attend_text(x, cache.text_keys, cache.text_values, text_mask)
        return self._feed_forward(x)

    def _attend_text(self, x: Tensor, text_keys: Tensor, text_values: Tensor, text_mask: Tensor) -> Tensor:
        y = self.encoder_attn_layer_norm(x)
        return x + self.encoder_attn.attend(y, text_keys, text_values, mask=text_mask, causal=False)

    def _feed_forward(self, x: Tensor) -> Tensor:
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
        """Return the layers, with their type."""
        return cast("list[DecoderLayer]", list(self.layers))

    def embed(self, sequence: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Return the embedding [B, S, D] of a sequence [B, K, S], or [B, P + S, D] behind a prefix."""
        x = self.embed_codes(sequence)
        return self.at_positions(x if prefix is None else prefix.before(x))

    def embed_codes(self, sequence: Tensor) -> Tensor:
        """Return the sum of the codes' embeddings [B, S, D] of a sequence [B, K, S]."""
        # An explicit loop: sum() over a generator would start from the int 0.
        x = self.embed_tokens[0](sequence[:, 0])
        for k in range(1, len(self.embed_tokens)):
            x = x + self.embed_tokens[k](sequence[:, k])
        return x

    def at_positions(self, x: Tensor, first: int = 0) -> Tensor:
        """Return x [B, S, D] with the embeddings of the positions from `first` added."""
        # At least fp32: half precision can't distinguish neighbouring positions.
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        positions = torch.arange(x.shape[1], device=x.device, dtype=exact) + first
        return x + sinusoids(positions, x.shape[-1]).to(x.dtype)


class _Body(nn.Module):
    """The middle level of Hugging Face's class, kept so that module names are the same: `model.decoder.layers.0…`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)


class MusicgenLM(nn.Module):
    """Predicts the next code of each codebook from the codes before it, a text and, in some models, a melody."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.enc_to_dec_proj = nn.Linear(config.text_dim, config.dim)
        if config.takes_melody:
            self.audio_enc_to_dec_proj = nn.Linear(PITCH_CLASSES, config.dim)
        self.model = _Body(config)
        self.lm_heads = nn.ModuleList(
            nn.Linear(config.dim, config.cardinality, bias=False) for _ in range(config.codebooks)
        )

    def project_text(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the projected states [B, L, D], zero at padding, and the cross-attention mask [B, 1, 1, L].

        A prompt attends to its own text alone, whatever it is batched with. The null condition attends to zeros, whose
        output is zero, exactly as in audiocraft.
        """
        weight = self.enc_to_dec_proj.weight
        states = self.enc_to_dec_proj(condition.states.to(weight.dtype)) * condition.mask[..., None]
        return states.to(weight.dtype), condition.attend

    def prefix(self, condition: Condition, text: Tensor) -> Prefix | None:
        """Return what stands before the codes: the chroma, then the text of each row; None if nothing does.

        Args:
            condition: of the rows.
            text: [B, L, D], its texts as `project_text` returns them.
        """
        if not self.config.takes_melody:
            return None
        assert condition.chroma is not None
        projection = self.audio_enc_to_dec_proj
        chroma = F.embedding(condition.chroma, projection.weight.t()) + projection.bias  # of one-hot vectors
        return Prefix(torch.cat([chroma, text], dim=1), chroma.shape[1] + condition.text_positions)

    def forward(self, sequence: Tensor, condition: Condition) -> Tensor:
        """Return the logits [B, K, S, cardinality] of each next step, from delayed codes [B, K, S] and conditions."""
        states, mask = self.project_text(condition)
        prefix = self.prefix(condition, states)
        x = self.model.decoder.embed(sequence, prefix)
        for layer in self.model.decoder.layers:
            x = layer(x, states, mask)
        return self._logits(x if prefix is None else prefix.behind(x, sequence.shape[-1]))

    def new_cache(self, condition: Condition, positions: int) -> tuple[list[LayerCache], Tensor]:
        """Return empty caches for `positions`, which hold the text's keys and values, and the text's mask."""
        states, mask = self.project_text(condition)
        decoder = self.model.decoder
        batch, heads = len(states), self.config.heads
        empty = states.new_zeros(batch, heads, 0, self.config.dim // heads)
        caches = []
        for layer in decoder.blocks():
            text = layer.encoder_attn.keys_values(states) if layer.has_cross_attention else (empty, empty)
            keys = empty.new_zeros(batch, heads, positions, empty.shape[-1])
            caches.append(LayerCache(keys, torch.zeros_like(keys), *text))
        return caches, mask

    def step(self, codes: Tensor, caches: list[LayerCache], text_mask: Tensor, position: int) -> Tensor:
        """Return the next step's logits [B, K, cardinality] from one step of codes [B, K, 1] at `position`."""
        decoder = self.model.decoder
        x = decoder.at_positions(decoder.embed_codes(codes), position)
        return self._logits(self._extend(x, caches, text_mask, position))[:, :, 0]

    def prefill(
        self, sequence: Tensor, caches: Iterable[LayerCache], text_mask: Tensor, prefix: Tensor | None = None
    ) -> None:
        """Fill the layers' caches with the keys and values of the first positions, all at once.

        Args:
            sequence: [B, K, S], the first steps, which may be none.
            prefix: [B, P, D], what stands before them in every row.
        """
        x = self.model.decoder.embed_codes(sequence)
        x = x if prefix is None else torch.cat([prefix, x], dim=1)
        if x.shape[1]:
            self._extend(self.model.decoder.at_positions(x), caches, text_mask, 0)

    def _extend(self, x: Tensor, caches: Iterable[LayerCache], text_mask: Tensor, position: int) -> Tensor:
        for layer, cache in zip(self.model.decoder.blocks(), caches, strict=True):
            x = layer.extend(x, text_mask, cache, position)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        x = self.model.decoder.layer_norm(x)
        return torch.stack([head(x) for head in self.lm_heads], dim=1)


# The delay pattern of Copet et al. 2023, "Simple and Controllable Music Generation", section 2.2; audiocraft's
# `DelayedPatternProvider`: each codebook is shifted right by its delay, so that one step predicts one code of each.
# Step 0 of a sequence holds the special token alone. With delays 0, 1:
#
#     frames       0  1  2  3            steps        0  1  2  3  4  5
#     codebook 0   a0 a1 a2 a3     →     codebook 0   ·  a0 a1 a2 a3 ·
#     codebook 1   b0 b1 b2 b3           codebook 1   ·  ·  b0 b1 b2 b3


def delay(codes: Tensor, shape: CodeShape, steps: int | None = None) -> Tensor:
    """Return the delayed sequence [B, K, steps] of codes [B, K, T], by default with all of them."""
    batch, codebooks, frames = codes.shape
    steps = frames + shape.most_delay + 1 if steps is None else steps
    sequence = codes.new_full((batch, codebooks, steps), shape.special)
    for k, first in enumerate(shape.delays):
        sequence[:, k, first + 1 : first + 1 + frames] = codes[:, k, : max(0, steps - first - 1)]
    return sequence


def undelay(sequence: Tensor, shape: CodeShape, frames: int) -> Tensor:
    """Return the codes [B, K, frames] of a delayed sequence [B, K, > frames + the largest delay]."""
    parts = [sequence[:, k, first + 1 : first + 1 + frames] for k, first in enumerate(shape.delays)]
    return torch.stack(parts, dim=1)


def teacher_forcing(codes: Tensor, frames: Tensor, shape: CodeShape) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and validity of next-step prediction over the pattern.

    Args:
        codes: [B, K, T], clips padded at the end with anything in range.
        frames: [B], the true length of each clip.
        shape: of the codes.

    Returns:
        inputs [B, K, T], targets [B, K, T] and valid [B, K, T]. A position is valid where both its code exists and
        every codebook before it does: the pattern's corners and the padding are left out, as in audiocraft's
        `compute_predictions` with `keep_only_valid_steps=True`.
    """
    length = codes.shape[-1]
    sequence = delay(codes, shape, steps=length + 1)
    step = torch.arange(length, device=codes.device)
    # No tensor of the delays: copying one to the GPU can't be captured in a CUDA graph.
    after_delay = torch.stack([step >= first for first in shape.delays])  # [K, T]
    valid = after_delay[None] & (step < frames[:, None])[:, None]  # [B, K, T]
    return sequence[..., :-1], sequence[..., 1:], valid
