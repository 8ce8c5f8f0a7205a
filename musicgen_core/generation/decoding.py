"""A language model as generation runs it on a GPU: packed weights, static caches, and the same kernels in each step.

All tensors of a step have fixed addresses and shapes, and the position is read on the GPU, so that a CUDA graph of one
step can be replayed for all. See `decode_kernels` for the kernels, and `megakernel` for a batch of one sample.
"""

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
from musicgen_core.generation.sampling import Window
from musicgen_core.model.decoder import Condition, Decoder, DecoderLayer, LayerCache, MusicgenLM, sinusoids
from musicgen_core.model.text import MAX_TOKENS


def _parts(rows: int) -> int:
    """Return the split-K factor of layers with few outputs, so that all SMs have work; measured on an H100."""
    return 4 if rows <= 32 else 2


class TileConfig(NamedTuple):
    """The tiling of `linear_kernel` for a layer.

    Attributes:
        block_m: rows of a tile.
        block_n: outputs of a tile.
        block_k: inputs of a tile.
        stages: tiles in flight.
        warps: of a program instance.
    """

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int


def tiles(rows: int, width: int, parts: int, scaled: bool, shared_bytes: int) -> TileConfig:
    """Return the fastest tiling as measured on an H100 and an H200; less shared memory allows fewer tiles in flight.

    Args:
        rows: of the activations.
        width: inputs of the layer.
        parts: the split-K factor.
        scaled: whether the weights are in 8 bits.
        shared_bytes: shared memory of a thread block.
    """
    block_m = min(64, max(16, triton.next_power_of_2(rows)))
    block_n = 64 if block_m == 64 and parts == 1 else 32
    block_k = min(128, width // parts)
    stages = min(5, shared_bytes // ((block_m + block_n) * block_k * 2))
    return TileConfig(block_m, block_n, block_k, stages, warps=4 if block_m == 64 or scaled else 2)


def quantize_int8(values: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return int8 values [..., n] and scales [...], whose product is close to `values` [..., n]."""
    exact = values.float()
    scales = (exact.abs().amax(dim=-1).clamp(min=1e-12) / 127).to(scale_dtype)
    return (exact / scales[..., None].float()).round().clamp(-127, 127).to(torch.int8), scales


class _Linear:
    """A frozen linear layer.

    Args:
        weight: [out, in].
        bits: 16, or 8 with a scale per row.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        self.out, self.width = weight.shape
        self.weight = weight
        self.scales: Tensor | None = None
        if bits == 8:
            self.weight, self.scales = quantize_int8(weight, torch.float32)

    def __call__(self, x: Tensor, out: Tensor, parts: int = 1, gelu: bool = False) -> None:
        """Store the layer's output for x [R, in] in out [parts, R, out], as partial sums over the inputs."""
        rows, scaled = len(x), self.scales is not None
        block_m, block_n, block_k, stages, warps = tiles(rows, self.width, parts, scaled, shared_memory_bytes(x.device))
        kernels.linear_kernel[(self.out // block_n, triton.cdiv(rows, block_m), parts)](
            x, self.weight, self.scales, out, rows, N=self.out, K=self.width, BM=block_m, BN=block_n, BK=block_k,
            PARTS=parts, STAGES=stages, GELU=gelu, SCALED=scaled, num_warps=warps,
        )  # fmt: skip


class _CrossAttention(NamedTuple):
    q: _Linear
    out: _Linear


class _Layer(NamedTuple):
    qkv: _Linear
    out: _Linear
    cross: _CrossAttention | None
    fc1: _Linear
    fc2: _Linear

    def matrices(self) -> list[_Linear]:
        """Return all in the order of their use."""
        return [self.qkv, self.out, *(self.cross or ()), self.fc1, self.fc2]


def _concatenate(layers: Sequence[nn.Module]) -> Tensor:
    """Return the concatenated weights of linear layers, which become views of it."""
    linear = cast("Sequence[nn.Linear]", layers)
    weight = torch.cat([layer.weight.data for layer in linear])
    for layer, part in zip(linear, weight.split([len(layer.weight) for layer in linear]), strict=True):
        layer.weight.data = part
    return weight


def _pack(layer: DecoderLayer, bits: int) -> _Layer:
    own, cross = layer.self_attn, None
    if layer.has_cross_attention:
        matrices = (layer.encoder_attn.q_proj, layer.encoder_attn.out_proj)
        cross = _CrossAttention(*(_Linear(matrix.weight.data, bits) for matrix in matrices))
    return _Layer(
        qkv=_Linear(_concatenate([own.q_proj, own.k_proj, own.v_proj]), bits),
        out=_Linear(own.out_proj.weight.data, bits),
        cross=cross,
        fc1=_Linear(layer.fc1.weight.data, bits),
        fc2=_Linear(layer.fc2.weight.data, bits),
    )


def _norms(decoder: Decoder) -> Tensor:
    """Return weights and biases of all norms in the order of their use, [2 or 3 layers + 1, 2, dim]."""
    norms: list[nn.LayerNorm] = []
    for layer in decoder.blocks():
        cross = [layer.encoder_attn_layer_norm] if layer.has_cross_attention else []
        norms += [layer.self_attn_layer_norm, *cross, layer.final_layer_norm]
    return torch.stack([torch.stack([norm.weight.data, norm.bias.data]) for norm in [*norms, decoder.layer_norm]])


@dataclass
class DecodeState:
    """The tensors that a step of one batch reads and writes, apart from the megakernel's own buffers.

    Attributes:
        sequence: [B, K, steps], delayed codes.
        position: [], int64, the step that is read next.
        caches: [layers, 2, R, heads, positions, dim / heads], keys and values, in 16 bits or int8.
        scales: [layers, 2, R, heads, positions] of int8 caches; None for caches in 16 bits.
        text_cache: [layers, 2, R, heads, max_length, dim / heads], keys and values of the texts.
        text_lengths: [R], int32, tokens of each text, or of the negative prompt; 0 under the null condition.
        prefixes: [R], int32, positions in front of the codes, melody and text; None for a model with cross-attention,
            whose text is in text_cache.
        x: [R, dim], fp32, the residual stream.
        parts: [parts, R, dim], fp32, split-K partial sums, to be added to x or to be the queries of cross-attention.
        y: [R, dim], the output of a norm.
        qkv: [R, 3, dim] of the newest position.
        attended: [R, dim], the output of an attention.
        z: [R, ffn_dim], between fc1 and fc2.
        numerators: [R · heads, splits, dim / heads], fp32, see `decode_attention_kernel`.
        stats: [R · heads, splits, 2], fp32, see `decode_attention_kernel`.
        arrived: [R · heads], int32, zero between steps.
        logits: [R, K, cardinality], fp32.
    """

    sequence: Tensor
    position: Tensor
    caches: Tensor
    scales: Tensor | None
    text_cache: Tensor
    text_lengths: Tensor
    prefixes: Tensor | None
    x: Tensor
    parts: Tensor
    y: Tensor
    qkv: Tensor
    attended: Tensor
    z: Tensor
    numerators: Tensor
    stats: Tensor
    arrived: Tensor
    logits: Tensor


class Decoding:
    """A model in 16 bits that generates step by step, with its frozen weights in 16 or 8 bits.

    Args:
        lm: the model, merged with its adapter if there is one; the weights are shared with it.
        positions: steps of the longest sample.
        bits: of the weights, 16 or 8.
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
        cross = [block.encoder_attn for block in blocks if block.has_cross_attention]
        matrices = [matrix for layer in cross for matrix in (layer.k_proj, layer.v_proj)]
        self._text_weights = _concatenate(matrices) if matrices else None
        positions += self.config.chroma_frames + MAX_TOKENS if self.config.takes_melody else 0
        at = torch.arange(positions, device=self._tables.device, dtype=torch.float32)
        self._sinusoids = sinusoids(at, self.config.dim)
        self._delays = torch.tensor(self.config.codes.delays, device=self._tables.device)

    @cached_property
    def _megakernel(self) -> Megakernel | None:
        """The kernel for a batch of one sample, compiled when it is first used; None where it is not supported."""
        matrices = [*(matrix for layer in self._layers for matrix in layer.matrices()), self._heads]
        scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
        return megakernel(self.config, [matrix.weight for matrix in matrices], scales, self._norms)

    @torch.inference_mode()
    def begin(self, condition: Condition, sequence: Tensor, given: int = 0, cache_bits: int = 16) -> DecodeState:
        """Return the state of a new batch, with the caches filled for the texts and the given steps.

        Args:
            condition: [R, …], the prompts' conditions and as many of their negative prompts, or null conditions.
            sequence: [R / 2, K, steps], delayed codes; the last step is written and never read.
            given: steps that are read here, all at once; the first call of `step` reads the next one.
            cache_bits: of keys and values, 16 or 8.
        """
        config, rows, steps = self.config, len(condition.states), sequence.shape[-1] - 1
        prefixes = config.chroma_frames + condition.text_positions if config.takes_melody else None
        text_cache = self._read(condition)
        zeros = text_cache.new_zeros
        single = partial(zeros, dtype=torch.float32)
        head, splits = config.dim // config.heads, _splits(rows * config.heads)
        longest = steps if prefixes is None else int(prefixes.max()) + steps
        of_layers = (config.layers, 2, rows, config.heads, longest)
        scaled = cache_bits == 8
        state = DecodeState(
            sequence=sequence,
            position=torch.full((), given, dtype=torch.int64, device=sequence.device),
            caches=zeros(*of_layers, head, dtype=torch.int8 if scaled else None),
            scales=zeros(*of_layers) if scaled else None,
            text_cache=text_cache,
            text_lengths=condition.mask.sum(dim=1).int(),
            prefixes=None if prefixes is None else prefixes.int(),
            x=single(rows, config.dim),
            parts=single(_parts(rows), rows, config.dim),
            y=zeros(rows, config.dim),
            qkv=zeros(rows, 3, config.dim),
            attended=zeros(rows, config.dim),
            z=zeros(rows, config.ffn_dim),
            numerators=single(rows * config.heads, splits, head),
            stats=single(rows * config.heads, splits, 2),
            arrived=zeros(rows * config.heads, dtype=torch.int32),
            logits=single(rows, config.codebooks, config.cardinality),
        )
        self._prefill(state, condition, torch.cat([sequence, sequence])[:, :, :given])
        return state

    def _prefill(self, state: DecodeState, condition: Condition, given: Tensor) -> None:
        """Fill the caches with what stands before the first step, with codes `given` [R, K, steps].

        Prefixes are read prompt by prompt, both conditions at once if they are as long: rounded as if it were alone.
        """
        if state.prefixes is None:
            self.lm.prefill(given, _caches_to_fill(state, given.shape[-1]), condition.attend)
            return
        for number in range(prompts := len(state.sequence)):
            pair = slice(number, None, prompts)
            first, second = condition.text_positions[pair].tolist()
            alone = [slice(row, row + 1) for row in (number, prompts + number)]
            for rows in [pair] if first == second else alone:
                one = condition.rows_alike(rows)
                prefix = self.lm.prefix(one, self.lm.project_text(one)[0])
                assert prefix is not None
                caches = _caches_to_fill(state, prefix.states.shape[1] + given.shape[-1], rows)
                self.lm.prefill(given[rows], caches, one.attend, prefix.states)

    def _read(self, text: Condition) -> Tensor:
        """Return the texts' keys and values, [layers, 2, R, heads, max_length, dim / heads]; zero for null conditions.

        Without cross-attention max_length is 0.

        Each text is projected separately, at its own length: the rounding of a GEMM depends on its number of rows, and
        a sample must not depend on the others of its batch.
        """
        config = self.config
        rows, max_length = text.mask.shape
        if self._text_weights is None:
            return self._tables.new_zeros(config.layers, 2, rows, config.heads, 0, config.dim // config.heads)
        of_heads = (config.layers, 2, config.heads, config.dim // config.heads)
        pairs = self._tables.new_zeros(*of_heads[:2], rows, config.heads, max_length, of_heads[-1])
        for row, count in enumerate(text.mask.sum(dim=1).tolist()):
            if count:
                one = Condition(text.states[row : row + 1, :count], text.mask[row : row + 1, :count])
                states, _ = self.lm.project_text(one)
                found = F.linear(states[0], self._text_weights).view(count, *of_heads)
                pairs[:, :, row, :, :count] = found.permute(1, 2, 3, 0, 4)
        return pairs

    def step(self, s: DecodeState) -> Tensor:
        """Return the next step's logits [R, K, cardinality], from the codes at `position`; extends the caches."""
        config, rows, parts, norms = self.config, len(s.x), len(s.parts), iter(self._norms)
        kernels.embed_kernel[(rows,)](
            s.sequence, s.position, s.prefixes, self._tables, self._sinusoids, s.x, len(s.sequence),
            s.sequence.shape[2], CODEBOOKS=config.codebooks, VOCAB=config.cardinality + 1, D=config.dim,
            N=triton.next_power_of_2(config.dim), PREFIXED=s.prefixes is not None,
        )  # fmt: skip
        if rows == 2 and s.scales is None and self._megakernel is not None:
            self._megakernel(
                x=s.x,
                caches=s.caches,
                text_cache=s.text_cache,
                text_lengths=s.text_lengths,
                position=s.position,
                logits=s.logits,
            )
            return s.logits
        for number, layer in enumerate(self._layers):
            _norm(s, next(norms), parts if number else 0)
            layer.qkv(s.y, s.qkv)
            _self_attention(s, number)
            layer.out(s.attended, s.parts, parts)
            if layer.cross is not None:
                _norm(s, next(norms), parts)
                layer.cross.q(s.y, s.parts, parts)
                _cross_attention(s, number)
                layer.cross.out(s.attended, s.parts, parts)
            _norm(s, next(norms), parts)
            layer.fc1(s.y, s.z, gelu=True)
            layer.fc2(s.z, s.parts, parts)
        _norm(s, next(norms), parts)
        self._heads(s.y, s.logits)
        return s.logits

    def choose(self, s: DecodeState, window: Window) -> None:
        """Sample the step after `position`, as `Window.choose` does, and advance the position."""
        prompts, codebooks, steps = s.sequence.shape
        settings = window.settings
        kernels.sample_kernel[(prompts, codebooks)](
            s.logits, window.noise, *window.noise.stride()[:2], window.frames, self._delays, s.position, s.sequence,
            prompts, steps, window.given, window.guidance, settings.temperature, settings.top_k, settings.top_p,
            CODEBOOKS=codebooks, CARDINALITY=s.logits.shape[2], GREEDY=settings.greedy,
        )  # fmt: skip
        s.position += 1


def _caches_to_fill(s: DecodeState, filled: int, rows: slice = slice(None)) -> Iterator[LayerCache]:
    """Yield each layer's cache of some rows for the model to fill up to a position.

    With 8 bits a cache is quantized when the next one is requested. The last one is, too, because the consumer zips
    strictly over the layers and so requests one more.
    """
    for layer, (cache, text) in enumerate(zip(s.caches[:, :, rows], s.text_cache[:, :, rows], strict=True)):
        if s.scales is None:
            yield LayerCache(*cache, *text)
            continue
        exact = text.new_zeros(*cache.shape[:3], filled, cache.shape[4])
        yield LayerCache(*exact, *text)
        cache[:, :, :, :filled], s.scales[layer, :, rows, :, :filled] = quantize_int8(exact, s.scales.dtype)


def _norm(s: DecodeState, norm: Tensor, parts: int) -> None:
    rows, dim = s.x.shape
    width = triton.next_power_of_2(dim)
    kernels.add_norm_kernel[(rows,)](
        s.x, s.parts, s.y, norm[0], norm[1], rows, D=dim, N=width, PARTS=parts,
        num_warps=max(1, min(16, width // 128)),
    )  # fmt: skip


def _self_attention(s: DecodeState, layer: int) -> None:
    cache, splits = s.caches[layer], s.numerators.shape[1]
    _, rows, heads, positions, head = cache.shape
    few = splits == 8
    scales = cache if s.scales is None else s.scales[layer]  # a placeholder that is not read
    kernels.decode_attention_kernel[(rows * heads, splits)](
        s.qkv, cache, scales, s.position, s.prefixes, s.attended, s.numerators, s.stats, s.arrived, positions,
        head**-0.5, HEADS=heads, HEAD=head, BLOCK=128 if few else 64, SPLITS=splits, SCALED=s.scales is not None,
        PREFIXED=s.prefixes is not None, num_warps=4 if few else 1,
    )  # fmt: skip


def _cross_attention(s: DecodeState, layer: int) -> None:
    _, rows, heads, max_length, head = s.text_cache[layer].shape
    kernels.decode_cross_attention_kernel[(rows * heads,)](
        s.parts, s.text_cache[layer], s.text_lengths, s.attended, max_length, head**-0.5,
        HEADS=heads, HEAD=head, PARTS=len(s.parts), BLOCK=32, num_warps=1,
    )  # fmt: skip


def _splits(heads: int) -> int:
    """Return how many program instances share a row's head, so that all SMs have work."""
    return 8 if heads <= 128 else 4 if heads <= 512 else 2 if heads <= 1024 else 1
