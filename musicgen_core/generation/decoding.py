"""A language model as generation runs it on a GPU: packed, its caches in fixed places, each step the same kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from musicgen_core.devices import shared_memory_bytes
from musicgen_core.generation import decode_kernels as kernels
from musicgen_core.generation.megakernel import Megakernel, megakernel
from musicgen_core.generation.steps import Window
from musicgen_core.model.decoder import Decoder, DecoderLayer, LayerCache, MusicgenLM, TextCondition, sinusoids


def _parts(rows: int) -> int:
    """Of a sum over the inputs, so that a layer with few outputs has programs enough. Measured on an H100."""
    return 4 if rows <= 32 else 2


class Tiles(NamedTuple):
    """How `linear_kernel` cuts a layer: rows, outputs and inputs of a tile, how many are on their way, and warps."""

    tall: int
    wide: int
    deep: int
    stages: int
    warps: int


def tiles(rows: int, width: int, parts: int, scaled: bool, shared_bytes: int) -> Tiles:
    """Measured on an H100 and an H200; where there is less shared memory, fewer tiles are on their way.

    Args:
        width: of the inputs.
        scaled: weights are in 8 bits.
        shared_bytes: that a program may have.
    """
    tall = min(64, max(16, triton.next_power_of_2(rows)))
    wide = 64 if tall == 64 and parts == 1 else 32
    deep = min(128, width // parts)
    stages = min(5, shared_bytes // ((tall + wide) * deep * 2))
    return Tiles(tall, wide, deep, stages, warps=4 if tall == 64 or scaled else 2)


def in_eight_bits(values: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """values [..., n] → int8 of the same shape and scales [...], whose product they nearly are."""
    exact = values.float()
    scales = (exact.abs().amax(dim=-1).clamp(min=1e-12) / 127).to(scale_dtype)
    return (exact / scales[..., None].float()).round().clamp(-127, 127).to(torch.int8), scales


class _Linear:
    """A frozen layer.

    Args:
        weight: [out, in].
        bits: 16, or 8 with a scale a row.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        self.out, self.width = weight.shape
        self.weight = weight
        self.scales: Tensor | None = None
        if bits == 8:
            self.weight, self.scales = in_eight_bits(weight, torch.float32)

    def __call__(self, x: Tensor, out: Tensor, parts: int = 1, gelu: bool = False) -> None:
        """x [R, in] → out [parts, R, out], whose sum is what the layer gives."""
        rows, scaled = len(x), self.scales is not None
        tall, wide, deep, stages, warps = tiles(rows, self.width, parts, scaled, shared_memory_bytes(x.device))
        kernels.linear_kernel[(self.out // wide, triton.cdiv(rows, tall), parts)](
            x, self.weight, self.scales, out, rows, N=self.out, K=self.width, BM=tall, BN=wide, BK=deep,
            PARTS=parts, STAGES=stages, GELU=gelu, SCALED=scaled, num_warps=warps,
        )  # fmt: skip


class _Layer(NamedTuple):
    qkv: _Linear
    out: _Linear
    text_q: _Linear
    text_out: _Linear
    fc1: _Linear
    fc2: _Linear


def _joined(layers: Sequence[nn.Module]) -> Tensor:
    """The weights of several linear layers one under the other, of which memory then holds that alone."""
    linear = cast("Sequence[nn.Linear]", layers)
    weight = torch.cat([layer.weight.data for layer in linear])
    for layer, part in zip(linear, weight.split([len(layer.weight) for layer in linear]), strict=True):
        layer.weight.data = part
    return weight


def _pack(layer: DecoderLayer, bits: int) -> _Layer:
    own, cross = layer.self_attn, layer.encoder_attn
    return _Layer(
        qkv=_Linear(_joined([own.q_proj, own.k_proj, own.v_proj]), bits),
        out=_Linear(own.out_proj.weight.data, bits),
        text_q=_Linear(cross.q_proj.weight.data, bits),
        text_out=_Linear(cross.out_proj.weight.data, bits),
        fc1=_Linear(layer.fc1.weight.data, bits),
        fc2=_Linear(layer.fc2.weight.data, bits),
    )


def _norms(decoder: Decoder) -> Tensor:
    """[3 layers + 1, 2, dim], weights and biases in the order of their use."""
    norms = [
        norm
        for layer in decoder.blocks()
        for norm in (layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm)
    ]
    return torch.stack([torch.stack([norm.weight.data, norm.bias.data]) for norm in [*norms, decoder.layer_norm]])


@dataclass
class Session:
    """Generation of one batch: everything that a step reads and writes, but for the room that `Megakernel` has itself.

    Attributes:
        sequence: [B, K, columns], delayed codes.
        position: [], the column that the next step reads.
        caches: [layers, 2, R, heads, positions, dim / heads], int8 with
        scales: [layers, 2, R, heads, positions], or in 16 bits, without.
        text: [layers, 2, R, heads, words, dim / heads] and
        words: [R], how many of them count; none under the null condition.
        x: [R, dim], fp32, the residual stream, to which
        parts: [parts, R, dim] are still to be added; between norms also the queries of cross-attention.
        qkv: [R, 3, dim] of the newest position.
        logits: [R, K, cardinality], fp32.
    """

    sequence: Tensor
    position: Tensor
    caches: Tensor
    scales: Tensor | None
    text: Tensor
    words: Tensor
    x: Tensor
    parts: Tensor
    y: Tensor
    qkv: Tensor
    attended: Tensor
    z: Tensor
    totals: Tensor
    stats: Tensor
    arrived: Tensor
    logits: Tensor


class Decoding:
    """Steps of a model in 16 bits, with its frozen weights in 16 or 8.

    Args:
        lm: merged with its adapter, if any; its weights are shared with this.
        positions: of the longest piece.
    """

    def __init__(self, lm: MusicgenLM, positions: int, bits: int = 16) -> None:
        self.lm, self.config = lm, lm.config
        decoder = lm.model.decoder
        blocks = decoder.blocks()
        self._layers = [_pack(layer, bits) for layer in blocks]
        self._norms = _norms(decoder)
        heads, tables = cast("list[nn.Linear]", lm.lm_heads), cast("list[nn.Embedding]", decoder.embed_tokens)
        self._heads = _Linear(torch.cat([head.weight.data for head in heads]), bits)
        self._tables = torch.stack([table.weight.data for table in tables])
        cross = [block.encoder_attn for block in blocks]
        self._of_text = _joined([matrix for layer in cross for matrix in (layer.k_proj, layer.v_proj)])
        at = torch.arange(positions, device=self._tables.device, dtype=torch.float32)
        self._sinusoids = sinusoids(at, self.config.dim)

    @cached_property
    def _megakernel(self) -> Megakernel | None:
        """Compiled in the first step of a single piece: many side by side don't wait for it."""
        matrices = [*(matrix for layer in self._layers for matrix in layer), self._heads]
        scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
        return megakernel(self.config, [matrix.weight for matrix in matrices], scales, self._norms)

    @torch.inference_mode()
    def begin(self, text: TextCondition, sequence: Tensor, given: int = 0, cache_bits: int = 16) -> Session:
        """Room for a sequence, with the keys and values of its first columns and of the texts in it.

        Args:
            text: [R, …], the prompts' conditions and as many null conditions.
            sequence: [R / 2, K, columns], delayed codes; the last column is written and never read.
            given: columns that are read here, all at once; the first step reads the next one.
            cache_bits: of keys and values, 16 or 8.
        """
        config, rows, steps = self.config, len(text.states), sequence.shape[-1] - 1
        of_texts = self._read(text)
        zeros = of_texts.new_zeros
        single = partial(zeros, dtype=torch.float32)
        head, splits = config.dim // config.heads, _splits(rows * config.heads)
        of_layers = (config.layers, 2, rows, config.heads, steps)
        scaled = cache_bits == 8
        session = Session(
            sequence=sequence,
            position=torch.full((), given, dtype=torch.int64, device=sequence.device),
            caches=zeros(*of_layers, head, dtype=torch.int8 if scaled else None),
            scales=zeros(*of_layers) if scaled else None,
            text=of_texts,
            words=text.mask.sum(dim=1).int(),
            x=single(rows, config.dim),
            parts=single(_parts(rows), rows, config.dim),
            y=zeros(rows, config.dim),
            qkv=zeros(rows, 3, config.dim),
            attended=zeros(rows, config.dim),
            z=zeros(rows, config.ffn_dim),
            totals=single(rows * config.heads, splits, head),
            stats=single(rows * config.heads, splits, 2),
            arrived=zeros(rows * config.heads, dtype=torch.int32),
            logits=single(rows, config.codebooks, config.cardinality),
        )
        self.lm.prefill(torch.cat([sequence, sequence])[:, :, :given], _filled(session, given), text.attend)
        return session

    def _read(self, text: TextCondition) -> Tensor:
        """→ keys and values [layers, 2, R, heads, words, dim / heads].

        Each text by itself, at its own length: what a product rounds depends on how many rows it has, and a piece
        must not depend on the others of its batch. The null condition's are zero.
        """
        config = self.config
        rows, words = text.mask.shape
        of_heads = (config.layers, 2, config.heads, config.dim // config.heads)
        pairs = self._tables.new_zeros(*of_heads[:2], rows, config.heads, words, of_heads[-1])
        for row, count in enumerate(text.mask.sum(dim=1).tolist()):
            if count:
                one = TextCondition(text.states[row : row + 1, :count], text.mask[row : row + 1, :count])
                states, _ = self.lm.project_text(one)
                found = F.linear(states[0], self._of_text).view(count, *of_heads)
                pairs[:, :, row, :, :count] = found.permute(1, 2, 3, 0, 4)
        return pairs

    def step(self, s: Session) -> Tensor:
        """Read the column at `position`, keep its keys and values → logits [R, K, cardinality] of the next column."""
        config, rows, parts, norms = self.config, len(s.x), len(s.parts), iter(self._norms)
        kernels.embed_kernel[(rows,)](
            s.sequence, s.position, self._tables, self._sinusoids, s.x, len(s.sequence), s.sequence.shape[2],
            CODEBOOKS=config.codebooks, WORDS=config.cardinality + 1, D=config.dim,
            N=triton.next_power_of_2(config.dim),
        )  # fmt: skip
        if rows == 2 and s.scales is None and self._megakernel is not None:
            self._megakernel(s.x, s.caches, s.text, s.words, s.position, s.logits)
            return s.logits
        for number, layer in enumerate(self._layers):
            _norm(s, next(norms), parts if number else 0)
            layer.qkv(s.y, s.qkv)
            _attend(s, number)
            layer.out(s.attended, s.parts, parts)
            _norm(s, next(norms), parts)
            layer.text_q(s.y, s.parts, parts)
            _attend_text(s, number)
            layer.text_out(s.attended, s.parts, parts)
            _norm(s, next(norms), parts)
            layer.fc1(s.y, s.z, gelu=True)
            layer.fc2(s.z, s.parts, parts)
        _norm(s, next(norms), parts)
        self._heads(s.y, s.logits)
        return s.logits

    @staticmethod
    def choose(s: Session, window: Window) -> None:
        """Write the column after `position`, as `Window.choose` fills it, and go on to it."""
        prompts, codebooks, columns = s.sequence.shape
        settings = window.settings
        kernels.choose_kernel[(prompts, codebooks)](
            s.logits, window.noise, *window.noise.stride()[:2], window.frames, s.position, s.sequence, prompts, columns,
            window.given, window.guidance, settings.temperature, settings.top_k, settings.top_p,
            CODEBOOKS=codebooks, WORDS=s.logits.shape[2], GREEDY=settings.greedy,
        )  # fmt: skip
        s.position += 1


def _filled(s: Session, given: int) -> Iterator[LayerCache]:
    """Each layer's cache for the model itself to fill; in 8 bits, kept when the next one is asked for.

    The last one, too: who takes them takes as many as there are layers, strictly, and so asks once more.
    """
    for layer, (cache, text) in enumerate(zip(s.caches, s.text, strict=True)):
        if s.scales is None:
            yield LayerCache(*cache, *text)
            continue
        exact = text.new_zeros(*cache.shape[:3], given, cache.shape[4])
        yield LayerCache(*exact, *text)
        cache[:, :, :, :given], s.scales[layer, :, :, :, :given] = in_eight_bits(exact, s.scales.dtype)


def _norm(s: Session, norm: Tensor, parts: int) -> None:
    rows, dim = s.x.shape
    width = triton.next_power_of_2(dim)
    kernels.norm_kernel[(rows,)](
        s.x, s.parts, s.y, norm[0], norm[1], rows, D=dim, N=width, PARTS=parts,
        num_warps=max(1, min(16, width // 128)),
    )  # fmt: skip


def _attend(s: Session, layer: int) -> None:
    cache, splits = s.caches[layer], s.totals.shape[1]
    _, rows, heads, positions, head = cache.shape
    few = splits == 8
    scales = cache if s.scales is None else s.scales[layer]  # a stand-in that is not read
    kernels.attend_kernel[(rows * heads, splits)](
        s.qkv, cache, scales, s.position, s.attended, s.totals, s.stats, s.arrived, positions, head**-0.5,
        HEADS=heads, HEAD=head, BLOCK=128 if few else 64, SPLITS=splits, SCALED=s.scales is not None,
        num_warps=4 if few else 1,
    )  # fmt: skip


def _attend_text(s: Session, layer: int) -> None:
    _, rows, heads, longest, head = s.text[layer].shape
    kernels.attend_text_kernel[(rows * heads,)](
        s.parts, s.text[layer], s.words, s.attended, longest, head**-0.5,
        HEADS=heads, HEAD=head, PARTS=len(s.parts), BLOCK=32, num_warps=1,
    )  # fmt: skip


def _splits(heads: int) -> int:
    """Of the positions, so that there are programs enough for all multiprocessors."""
    return 8 if heads <= 128 else 4 if heads <= 512 else 2 if heads <= 1024 else 1
