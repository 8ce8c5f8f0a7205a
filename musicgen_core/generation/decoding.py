"""A language model as generation runs it on a GPU: packed, its caches in fixed places, each step the same kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, cast

import torch
import triton
from torch import Tensor, nn

from musicgen_core.devices import shared_memory_bytes
from musicgen_core.generation import decode_kernels as kernels
from musicgen_core.generation.one_piece import OnePiece, one_piece
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
            exact = weight.float()
            self.scales = exact.abs().amax(dim=1).clamp(min=1e-12) / 127
            self.weight = (exact / self.scales[:, None]).round().to(torch.int8)

    def __call__(
        self,
        x: Tensor,
        out: Tensor,
        parts: int = 1,
        gelu: bool = False,
        cache: Tensor | None = None,
        at: Tensor | None = None,
    ) -> None:
        """x [R, in] → out [parts, R, out], or with a cache [2, R, heads, positions, …] what is no query goes there.

        The sum of the parts is what the layer gives.
        """
        rows = len(x)
        heads, positions, head = cache.shape[2:] if cache is not None else (1, 1, 1)
        scaled = self.scales is not None
        tall, wide, deep, stages, warps = tiles(rows, self.width, parts, scaled, shared_memory_bytes(x.device))
        kernels.linear_kernel[(self.out // wide, triton.cdiv(rows, tall), parts)](
            x, self.weight, self.scales, out, cache, at, rows, positions,
            N=self.out, K=self.width, HEADS=heads, HEAD=head, BM=tall, BN=wide, BK=deep,
            PARTS=parts, STAGES=stages, GELU=gelu, QKV=cache is not None, SCALED=scaled, num_warps=warps,
        )  # fmt: skip


class _Layer(NamedTuple):
    qkv: _Linear
    out: _Linear
    text_q: _Linear
    text_out: _Linear
    fc1: _Linear
    fc2: _Linear


def _pack(layer: DecoderLayer, bits: int) -> _Layer:
    own, cross = layer.self_attn, layer.encoder_attn
    projections = (own.q_proj, own.k_proj, own.v_proj)
    weight = torch.cat([projection.weight.data for projection in projections])
    for projection, part in zip(projections, weight.chunk(3), strict=True):
        projection.weight.data = part  # memory holds it once
    return _Layer(
        qkv=_Linear(weight, bits),
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
    """Generation of one batch: everything that a step reads and writes, but for the room that `OnePiece` has itself.

    Attributes:
        sequence: [B, K, columns], delayed codes.
        position: [], the column that the next step reads.
        caches: [layers, 2, R, heads, positions, dim / heads].
        text: [layers, 2, R, heads, words, dim / heads] and
        words: [R], how many of them count.
        x: [R, dim], fp32, the residual stream, to which
        parts: [parts, R, dim] are still to be added; between norms also the queries of cross-attention.
        logits: [R, K, cardinality], fp32.
    """

    sequence: Tensor
    position: Tensor
    caches: Tensor
    text: Tensor
    words: Tensor
    x: Tensor
    parts: Tensor
    y: Tensor
    q: Tensor
    attended: Tensor
    z: Tensor
    totals: Tensor
    stats: Tensor
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
        self._layers = [_pack(layer, bits) for layer in decoder.blocks()]
        self._norms = _norms(decoder)
        heads, tables = cast("list[nn.Linear]", lm.lm_heads), cast("list[nn.Embedding]", decoder.embed_tokens)
        self._heads = _Linear(torch.cat([head.weight.data for head in heads]), bits)
        self._tables = torch.stack([table.weight.data for table in tables])
        at = torch.arange(positions, device=self._tables.device, dtype=torch.float32)
        self._sinusoids = sinusoids(at, self.config.dim)

    @cached_property
    def _one_piece(self) -> OnePiece | None:
        """Compiled in the first step of a single piece: many side by side don't wait for it."""
        matrices = [*(matrix for layer in self._layers for matrix in layer), self._heads]
        scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
        return one_piece(self.config, [matrix.weight for matrix in matrices], scales, self._norms)

    @torch.inference_mode()
    def begin(self, text: TextCondition, sequence: Tensor, given: int = 0) -> Session:
        """Room for a sequence, with the keys and values of its first columns and of the texts in it.

        Args:
            text: [R, …], the prompts' conditions and as many null conditions.
            sequence: [R / 2, K, columns], delayed codes; the last column is written and never read.
            given: columns that are read here, all at once; the first step reads the next one.
        """
        config, rows, steps = self.config, len(text.states), sequence.shape[-1] - 1
        of_texts = self._read(text)
        half = of_texts.new_zeros
        single = partial(half, dtype=torch.float32)
        head, splits = config.dim // config.heads, _splits(rows * config.heads)
        session = Session(
            sequence=sequence,
            position=torch.full((), given, dtype=torch.int64, device=sequence.device),
            caches=half(config.layers, 2, rows, config.heads, steps, head),
            text=of_texts,
            words=text.attend.flatten(1).sum(dim=1).int(),
            x=single(rows, config.dim),
            parts=single(_parts(rows), rows, config.dim),
            y=half(rows, config.dim),
            q=half(rows, config.dim),
            attended=half(rows, config.dim),
            z=half(rows, config.ffn_dim),
            totals=single(rows * config.heads, splits, head),
            stats=single(rows * config.heads, splits, 2),
            logits=single(rows, config.codebooks, config.cardinality),
        )
        pairs_of_layers = zip(session.caches, session.text, strict=True)
        caches = [LayerCache(*own, *of_text) for own, of_text in pairs_of_layers]
        self.lm.prefill(torch.cat([sequence, sequence])[:, :, :given], caches, text.attend)
        return session

    def _read(self, text: TextCondition) -> Tensor:
        """→ keys and values [layers, 2, R, heads, words, dim / heads].

        Each text by itself, at its own length: what a product rounds depends on how many rows it has, and a piece
        must not depend on the others of its batch. The null condition's are zero.
        """
        config, blocks = self.config, self.lm.model.decoder.blocks()
        rows, words = text.mask.shape
        pairs = self._tables.new_zeros(config.layers, 2, rows, config.heads, words, config.dim // config.heads)
        for row, count in enumerate(text.mask.sum(dim=1).tolist()):
            if count:
                one = TextCondition(text.states[row : row + 1, :count], text.mask[row : row + 1, :count])
                states, _ = self.lm.project_text(one)
                for layer, block in enumerate(blocks):
                    keys, values = block.encoder_attn.keys_values(states)
                    pairs[layer, 0, row, :, :count], pairs[layer, 1, row, :, :count] = keys[0], values[0]
        return pairs

    def step(self, s: Session) -> Tensor:
        """Read the column at `position`, keep its keys and values → logits [R, K, cardinality] of the next column."""
        config, rows, parts, norms = self.config, len(s.x), len(s.parts), iter(self._norms)
        kernels.embed_kernel[(rows,)](
            s.sequence, s.position, self._tables, self._sinusoids, s.x, len(s.sequence), s.sequence.shape[2],
            CODEBOOKS=config.codebooks, WORDS=config.cardinality + 1, D=config.dim,
            N=triton.next_power_of_2(config.dim),
        )  # fmt: skip
        if rows == 2 and self._one_piece is not None:
            self._one_piece(s.x, s.caches, s.text, s.words, s.position, s.logits)
            return s.logits
        for number, (layer, cache, text) in enumerate(zip(self._layers, s.caches, s.text, strict=True)):
            _norm(s, next(norms), parts if number else 0)
            layer.qkv(s.y, s.q, cache=cache, at=s.position)
            _attend_own(s, cache)
            layer.out(s.attended, s.parts, parts)
            _norm(s, next(norms), parts)
            layer.text_q(s.y, s.parts, parts)
            _attend(s, s.parts, text, splits=1, own=False)
            layer.text_out(s.attended, s.parts, parts)
            _norm(s, next(norms), parts)
            layer.fc1(s.y, s.z, gelu=True)
            layer.fc2(s.z, s.parts, parts)
        _norm(s, next(norms), parts)
        self._heads(s.y, s.logits)
        return s.logits


def _norm(s: Session, norm: Tensor, parts: int) -> None:
    rows, dim = s.x.shape
    kernels.norm_kernel[(rows,)](
        s.x, s.parts, s.y, norm[0], norm[1], rows, D=dim, N=triton.next_power_of_2(dim), PARTS=parts
    )


def _attend_own(s: Session, cache: Tensor) -> None:
    splits = s.totals.shape[1]
    _attend(s, s.q[None], cache, splits, own=True)
    if splits > 1:
        heads, _, head = s.totals.shape
        kernels.join_kernel[(heads,)](s.totals, s.stats, s.attended, HEAD=head, SPLITS=splits, num_warps=1)


def _attend(s: Session, queries: Tensor, cache: Tensor, splits: int, own: bool) -> None:
    """queries: [parts, R, dim], the sum of which counts."""
    _, rows, heads, positions, head = cache.shape
    few = splits == 8
    kernels.attend_kernel[(rows * heads, splits)](
        queries, cache[0], cache[1], s.words, s.position, s.attended, s.totals, s.stats, positions, head**-0.5,
        HEADS=heads, HEAD=head, PARTS=len(queries), BLOCK=128 if few else 64 if own else 32, SPLITS=splits, OWN=own,
        num_warps=4 if few else 1,
    )  # fmt: skip


def _splits(heads: int) -> int:
    """Of the positions, so that there are programs enough for all multiprocessors."""
    return 8 if heads <= 128 else 4 if heads <= 512 else 2 if heads <= 1024 else 1
