"""The decoder's blocks on GPUs with a hand-written backward pass; the arithmetic is that of `blocks.block`.

A block is seven packed linear layers (`fused_linear`), self-attention (PyTorch's) and cross-attention. Its backward
pass is written out because autograd would undo the fusion: it would save the output of every norm, GELU and dropout,
and add the gradients of the residual stream and of LoRA by kernels of their own. Here only the inputs of the norms, the
attentions' operands and z, the input of GELU, are saved; norms, GELU and dropout masks are recomputed inside the
kernels that need them, the residual's gradient is added by the norm's backward kernel, and grad_a and grad_b come from
kernels that read the activations anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from musicgen_core.devices import shared_memory_bytes
from musicgen_core.model.decoder import DecoderLayer
from musicgen_core.training.compute import blocks, kernels
from musicgen_core.training.compute.attention import deterministic_backward
from musicgen_core.training.compute.blocks import (
    Blocks,
    BlockWeights,
    Inputs,
    LinearWeights,
    adapter_parameters,
    first_adapted,
    linears_of,
    pack,
    self_attention,
    split_heads,
)
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.fp8 import Quantized
from musicgen_core.training.compute.fused_linear import (
    SPLITS,
    Activations,
    FusedLinear,
    Gradients,
    add_splits,
    layer_norm_grad,
)


class _SelfAttention:
    """Self-attention differentiated by autograd, inside a backward pass that is not."""

    def __init__(self, qkv: Tensor, batch: int, heads: int, save: bool) -> None:
        self._inputs = [part.detach().requires_grad_(save) for part in split_heads(qkv, batch, 3, heads)]
        with torch.set_grad_enabled(save):
            self._output = self_attention(*self._inputs)
        self.output = self._output.detach()

    def backward(self, grad: Tensor, deterministic: bool) -> Tensor:
        with deterministic_backward() if deterministic else nullcontext():
            return join_heads(*torch.autograd.grad(self._output, self._inputs, grad))


@dataclass
class _CrossAttention:
    """The tensors of cross-attention that its backward pass needs.

    Attributes:
        q: [B · S, D], the queries.
        kv: [B · L, 2 D], keys and values.
        attended: [B · S, D], the output.
    """

    q: Tensor
    kv: Tensor
    attended: Tensor


@dataclass
class SavedForBackward:
    """The tensors that a block's backward pass needs.

    Attributes:
        residual: the inputs of the norms, [B · S, D] each.
        own: self-attention, with the tensors that autograd saved.
        cross: cross-attention, if the block has it.
        z: [B · S, 4 D], the input of GELU.
        activations: by linear layer; of each only h, mean and rstd.
    """

    residual: list[Tensor]
    own: _SelfAttention
    cross: _CrossAttention | None
    z: Tensor
    activations: dict[str, Activations]


_NORMS = {"qkv": 0, "text_q": 1, "fc1": -1}
"""The index of the norm in front of a linear layer."""


class FusedBlock:
    """One block. Its weights move here.

    Args:
        heads: D / heads is the width of one.
        precision: `fp8`, or anything else for the precision of the weights.
        deterministic: whether the backward pass must give the same bits each time.
        copies: [total], the adapters' parameters in 16 bits.
        gradients: [total], fp32, to which their gradients are added.
        partial: [SPLITS · total or more], scratch for partial sums that all blocks share.
    """

    def __init__(
        self,
        index: int,
        weights: BlockWeights,
        heads: int,
        precision: str,
        deterministic: bool,
        copies: Tensor,
        gradients: Tensor,
        partial: Tensor,
    ) -> None:
        self.fp8, self.deterministic = precision == "fp8", deterministic
        self.index, self.norms, self.heads = index, weights.norms, heads
        partial = partial[: SPLITS * len(gradients)].view(SPLITS, -1)
        self.gradients, self.partial = gradients, partial
        self.linears: dict[str, FusedLinear] = {}
        offset = 0
        for name, linear in weights.linears().items():
            b_offset = offset + sum(a.numel() for a in linear.a)
            down = copies[offset:b_offset].view(-1, linear.weight.shape[1])
            self.linears[name] = FusedLinear(linear, down, Gradients(partial, offset, b_offset), precision)
            offset = b_offset + sum(b.numel() for b in linear.b)

    def forward(self, x: Tensor, inputs: Inputs, saved: list[SavedForBackward] | None = None) -> Tensor:
        """Return the block's output [B, S, D]; append the tensors for its backward pass to `saved`, if it is given."""
        linears, p, save = self.linears, inputs.p, saved is not None
        seeds, text_seeds = inputs.dropout_seeds[self.index], inputs.text_dropout_seeds[self.index]
        rows = x.flatten(0, 1)
        acts: dict[str, Activations] = {}

        def through(name: str, kind: str, source: Tensor, row_seeds: Tensor, residual: Tensor | None = None) -> Tensor:
            norm = self.norms[_NORMS[name]] if kind == "norm" else None
            activations = linears[name].activate(kind, source, row_seeds, p, norm)
            out = linears[name].forward(activations, residual)
            if save:
                acts[name] = activations._replace(operand=activations.h)  # the operand is recomputed
            return out

        residual = [rows]
        own = _SelfAttention(through("qkv", "norm", rows, seeds[0]), len(x), self.heads, save)
        rows = through("out", "none", own.output, seeds[1], rows)
        residual.append(rows)
        cross = None
        if "text_q" in linears:
            q = through("text_q", "norm", rows, seeds[2])
            kv = through("text_kv", "none", inputs.text, text_seeds)
            cross = _CrossAttention(q, kv, fused_cross_attention(q, kv, inputs.attend, self.heads))
            rows = through("text_out", "none", cross.attended, seeds[3], rows)
            residual.append(rows)
        z = through("fc1", "norm", rows, seeds[4])
        rows = through("fc2", "gelu", z, seeds[5], rows)
        if saved is not None:
            saved.append(SavedForBackward(residual=residual, own=own, cross=cross, z=z, activations=acts))
        return rows.view_as(x)

    def backward(
        self, grad: Tensor, quantized: Quantized | None, saved: SavedForBackward, inputs: Inputs
    ) -> tuple[Tensor, Quantized | None]:
        """Return the gradient w.r.t. the block's input [B, S, D], and its FP8 form; add the adapters' gradients.

        Args:
            grad: [B, S, D], the gradient of the block's output.
            quantized: with FP8, the same quantized per row, if it is known.
            saved: the tensors that `forward` appended.
        """
        linears, acts, p, seeds = self.linears, saved.activations, inputs.p, inputs.dropout_seeds[self.index]
        rows = grad.flatten(0, 1)

        def before_norm(
            name: str, grad: Tensor, residual: Tensor, x: Tensor, row_seeds: Tensor
        ) -> tuple[Tensor, Quantized | None]:
            norm = self.norms[_NORMS[name]]
            grad_yh = linears[name].backward(grad)
            grad = linears[name].down_grad(
                kind="norm", grad_yh=grad_yh, source=x, x=acts[name], dropout_seeds=row_seeds, p=p, norm=norm
            )
            return layer_norm_grad(
                grad=grad, source=x, x=acts[name], weight=norm[0], residual=residual, quantize=self.fp8
            )

        def before(name: str, grad: Tensor, x: Tensor, row_seeds: Tensor, quantized: Quantized | None = None) -> Tensor:
            linears[name].up_grad(grad, acts[name].h)
            grad_yh = linears[name].backward(grad, quantized)
            return linears[name].down_grad(
                kind="none", grad_yh=grad_yh, source=x, x=acts[name], dropout_seeds=row_seeds, p=p
            )

        linears["fc2"].up_grad(rows, acts["fc2"].h)
        grad_yh = linears["fc2"].backward(rows, quantized)
        grad_z = linears["fc2"].down_grad(
            kind="gelu",
            grad_yh=grad_yh,
            source=saved.z,
            x=acts["fc2"],
            dropout_seeds=seeds[5],
            p=p,
            maker=(linears["fc1"], acts["fc1"].h),
        )
        rows, quantized = before_norm("fc1", grad_z, rows, saved.residual[-1], seeds[4])
        if (cross := saved.cross) is not None:
            grad_attended = before("text_out", rows, cross.attended, seeds[3], quantized)
            grad_q, grad_kv = fused_cross_attention_grad(cross.q, cross.kv, inputs.attend, self.heads, grad_attended)
            before("text_kv", grad_kv, inputs.text, inputs.text_dropout_seeds[self.index])
            linears["text_q"].up_grad(grad_q, acts["text_q"].h)
            rows, quantized = before_norm("text_q", grad_q, rows, saved.residual[1], seeds[2])
        grad_own = before("out", rows, saved.own.output, seeds[1], quantized)
        grad_qkv = saved.own.backward(grad_own, self.deterministic)
        linears["qkv"].up_grad(grad_qkv, acts["qkv"].h)
        rows, quantized = before_norm("qkv", grad_qkv, rows, saved.residual[0], seeds[0])
        add_splits(self.gradients, self.partial)
        return rows.view_as(grad), quantized


class FusedBlocks(Blocks):
    """All blocks, on a GPU.

    A block without an adapter gets one of rank 1 that is zero and stays so, for which its kernels need no variant; it
    has no backward pass if no block before it has an adapter.

    Args:
        layers: the decoder's layers, with peft's adapter on them.
        heads: D / heads is the width of one.
        execution: precision and determinism.
        parameters: [total], the adapters' parameters, those of each layer in the order of `blocks.adapter_parameters`.
        gradients: [total], fp32, to which their gradients are added.
    """

    def __init__(
        self, layers: Sequence[DecoderLayer], heads: int, execution: Execution, parameters: Tensor, gradients: Tensor
    ) -> None:
        self._parameters, self._first = parameters, first_adapted(layers)
        self._copies = torch.empty_like(parameters, dtype=layers[0].fc1.weight.dtype)
        sizes = [sum(parameter.numel() for parameter in adapter_parameters(layer)) for layer in layers]
        idle = _idle_parameters(layers[0])
        unused = gradients.new_empty(idle)
        partial = gradients.new_empty(SPLITS * max(*sizes, idle))
        self._blocks: list[FusedBlock] = []
        parts = zip(layers, self._copies.split(sizes), gradients.split(sizes), strict=True)
        for index, (layer, copies, own) in enumerate(parts):  # memory never holds more than one block twice
            has_lora = len(own) > 0
            block = FusedBlock(
                index=index,
                weights=pack(layer) if has_lora else _with_idle_lora(pack(layer)),
                heads=heads,
                precision=execution.precision,
                deterministic=execution.deterministic,
                copies=copies if has_lora else self._copies.new_zeros(idle),
                gradients=own if has_lora else unused,
                partial=partial,
            )
            self._blocks.append(block)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the adapters' parameters into the GEMMs' operands."""
        self._copies.copy_(self._parameters)
        for block in self._blocks:
            for linear in block.linears.values():
                linear.refresh()

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        """Return the last block's output [B, S, D] from x [B, S, D], without gradients."""
        with torch.no_grad():
            for block in self._blocks:
                x = block.forward(x, inputs)
        return x

    def differentiable(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> tuple[Tensor, Callable[[Tensor], None]]:
        block_inputs: list[Tensor] = []
        saved: list[SavedForBackward] = []
        for block in self._blocks[: self._first]:
            x = block.forward(x, inputs)
        for block in self._blocks[self._first :]:
            if checkpointing:
                block_inputs.append(x)
            x = block.forward(x, inputs, None if checkpointing else saved)
        x.requires_grad_()

        @torch.no_grad()
        def backward(loss: Tensor) -> None:
            (grad,) = torch.autograd.grad(loss, x)
            quantized = None
            for block in reversed(self._blocks[self._first :]):
                if checkpointing:
                    block.forward(block_inputs.pop(), inputs, saved)
                grad, quantized = block.backward(grad, quantized, saved.pop(), inputs)

        return x, backward


def _with_idle_lora(weights: BlockWeights) -> BlockWeights:
    """Return the weights of a block without an adapter, with one of rank 1 whose B matrices are zero."""

    def idle(linear: LinearWeights) -> LinearWeights:
        new, parts = linear.weight.new_zeros, len(linear.bases)
        out, width = linear.weight.shape
        a, b = [new(1, width, dtype=torch.float32)] * parts, [new(out // parts, 1, dtype=torch.float32)] * parts
        return linear._replace(a=tuple(a), b=tuple(b))

    parts: dict[str, Any] = {name: idle(linear) for name, linear in weights.linears().items()}
    return weights._replace(**parts)


def _idle_parameters(layer: DecoderLayer) -> int:
    """Return the number of parameters of an adapter of rank 1 on all linear layers of a block."""
    linears: list[Any] = list(linears_of(layer).values())
    return sum(sum(getattr(linear, "base_layer", linear).weight.shape) for linear in linears)


# Self-attention is PyTorch's own fused attention. Cross-attention reads a text of some tens of tokens, far too few for
# a library's tiles, and its mask rules out their fastest path; the kernels of `kernels.py` hold the whole text on the
# SM.


def fused_cross_attention(q: Tensor, kv: Tensor, attend: Tensor, heads: int) -> Tensor:
    """Return `blocks.cross_attention`, [B · S, D].

    Args:
        q: [B · S, D].
        kv: [B · L, 2 D], keys and values of the texts.
        attend: [B, 1, 1, L], True where there is text.
        heads: D / heads is the width of one.
    """
    batch, length, shape = _shape(q, attend, heads)
    if not cross_attention_fits(shape["L"], shared_memory_bytes(q.device)):
        return blocks.cross_attention(q, kv, attend, batch, heads)
    out = torch.empty_like(q)
    kernels.cross_attention_kernel[(triton.cdiv(length, 64), batch * heads)](q, kv, attend, out, length, **shape)
    return out


def fused_cross_attention_grad(
    q: Tensor, kv: Tensor, attend: Tensor, heads: int, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of q and kv from that of the output, `grad` [B · S, D]; the rest as in the forward pass."""
    batch, length, shape = _shape(q, attend, heads)
    if not cross_attention_fits(shape["L"], shared_memory_bytes(q.device)):
        with torch.enable_grad():
            inputs = q.detach().requires_grad_(), kv.detach().requires_grad_()
            grad_q, grad_kv = torch.autograd.grad(blocks.cross_attention(*inputs, attend, batch, heads), inputs, grad)
        return grad_q, grad_kv
    grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
    kernels.cross_attention_grad_kernel[(batch * heads,)](q, kv, attend, grad, grad_q, grad_kv, length, **shape)
    return grad_q, grad_kv


def cross_attention_fits(tokens: int, shared_bytes: int) -> bool:
    """Return whether the kernels' tiles of keys, values and weights fit an SM's shared memory.

    A text may be of any length; one that is too long for the kernels is computed by plain operations.

    Args:
        tokens: the tile's length L, a power of two.
        shared_bytes: the shared memory of a thread block. The kernels' need was read off Triton 3.6 for heads of 64.
    """
    return (32 + 5 * tokens / 8) * 1024 <= shared_bytes


def join_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return q, k and v, [B, H, S, D/H] each, side by side, [B · S, 3 D], in one kernel rather than four."""
    if q.stride() != k.stride() or q.stride() != v.stride() or q.stride(3) != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, heads, length, head = q.shape
    width = heads * head
    out = q.new_empty(batch * length, 3 * width)
    kernels.join_heads_kernel[(triton.cdiv(len(out), 4), triton.cdiv(width, 1024))](
        q, k, v, out, len(out), length, *q.stride()[:3], width=width, HEAD=head, M=4, N=1024, num_warps=4
    )
    return out


def _shape(q: Tensor, attend: Tensor, heads: int) -> tuple[int, int, dict[str, Any]]:
    batch, text_length, width = len(attend), attend.shape[-1], q.shape[1]
    tokens = max(16, triton.next_power_of_2(text_length))
    head = width // heads
    return batch, len(q) // batch, {
        "text_length": text_length, "scale": head**-0.5, "width": width, "HEADS": heads, "HEAD": head, "M": 64,
        "L": tokens, "num_warps": 4,
    }  # fmt: skip
