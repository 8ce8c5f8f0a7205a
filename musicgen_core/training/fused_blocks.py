"""The decoder's blocks on GPUs, forwards and backwards by hand; the arithmetic is that of `blocks.block`.

By hand, because what autograd would do between the products is most of the time that can be saved: the norms are
computed again rather than kept, gradients of the residual are added in passing, and LoRA's come from the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicgen_core.training.blocks import BlockWeights, Inputs, pack, self_attention, split_heads
from musicgen_core.training.flat_parameters import FlatParameters
from musicgen_core.training.fused_attention import attend_text, attend_text_grad, join_heads
from musicgen_core.training.fused_linear import SPLITS, Activations, FusedLinear, Gradients, add_up, norm_grad


class _SelfAttention:
    """Left to autograd, within what is done by hand."""

    def __init__(self, qkv: Tensor, batch: int, heads: int, keep: bool) -> None:
        self._inputs = [part.detach().requires_grad_(keep) for part in split_heads(qkv, batch, 3, heads)]
        with torch.set_grad_enabled(keep):
            self._output = self_attention(*self._inputs)
        self.output = self._output.detach()

    def backward(self, grad: Tensor) -> Tensor:
        return join_heads(*torch.autograd.grad(self._output, self._inputs, grad))


@dataclass
class Kept:
    """What a block's backward pass needs; residual: the three inputs of its norms."""

    residual: list[Tensor]
    own: _SelfAttention
    q: Tensor
    kv: Tensor
    attended: Tensor
    z: Tensor
    activations: dict[str, Activations]


_NORMS = {"qkv": 0, "text_q": 1, "fc1": 2}
"""The norm before a layer"""


class FusedBlock:
    """One block. Its weights move here.

    Args:
        copies: [total], the parameters in 16 bits.
        gradients: [total], fp32: where theirs are added up.
        partial: [SPLITS, total], scratch that blocks share.
    """

    def __init__(
        self,
        index: int,
        weights: BlockWeights,
        heads: int,
        precision: str,
        copies: Tensor,
        gradients: Tensor,
        partial: Tensor,
    ) -> None:
        self.fp8 = precision == "fp8"
        self.index, self.norms, self.heads = index, weights.norms, heads
        self.gradients, self.partial = gradients, partial
        self.linears: dict[str, FusedLinear] = {}
        offset = 0
        for name, linear in weights.linears().items():
            of_b = offset + sum(a.numel() for a in linear.a)
            down = copies[offset:of_b].view(-1, linear.weight.shape[1])
            self.linears[name] = FusedLinear(linear, down, Gradients(partial, offset, of_b), precision)
            offset = of_b + sum(b.numel() for b in linear.b)

    def forward(self, x: Tensor, inputs: Inputs, keep: bool) -> tuple[Tensor, Any]:
        """[B, S, D] → [B, S, D] and what is kept for the backward pass, if one follows."""
        of, p = self.linears, inputs.p
        keys, text_keys = inputs.keys[self.index], inputs.text_keys[self.index]
        rows = x.flatten(0, 1)
        made: dict[str, Activations] = {}

        def through(name: str, kind: str, source: Tensor, key: Tensor, residual: Tensor | None = None) -> Tensor:
            norm = self.norms[_NORMS[name]] if kind == "norm" else None
            activations = of[name].activate(kind, source, key, p, norm)
            out = of[name].forward(activations, residual)
            if keep:
                made[name] = activations._replace(operand=activations.h)  # made again where it is needed
            return out

        residual = [rows]
        own = _SelfAttention(through("qkv", "norm", rows, keys[0]), len(x), self.heads, keep)
        rows = through("out", "none", own.output, keys[1], rows)
        residual.append(rows)
        q = through("text_q", "norm", rows, keys[2])
        kv = through("text_kv", "none", inputs.text, text_keys)
        attended = attend_text(q, kv, inputs.attend, self.heads)
        rows = through("text_out", "none", attended, keys[3], rows)
        residual.append(rows)
        z = through("fc1", "norm", rows, keys[4])
        rows = through("fc2", "gelu", z, keys[5], rows)
        kept = Kept(residual, own, q, kv, attended, z, made) if keep else None
        return rows.view_as(x), kept

    def backward(self, grad: Tensor, quantized: Any, kept: Kept, inputs: Inputs) -> tuple[Tensor, Any]:
        """The gradient of the block's output [B, S, D] → of its input; those of the adapters are added up.

        With FP8 both come with what `fp8.quantize` makes of them, where that is known.
        """
        of, made, p, keys = self.linears, kept.activations, inputs.p, inputs.keys[self.index]
        rows = grad.flatten(0, 1)

        def before_norm(name: str, grad: Tensor, residual: Tensor, x: Tensor, key: Tensor) -> tuple[Tensor, Any]:
            norm = self.norms[_NORMS[name]]
            grad = of[name].down_grad("norm", of[name].backward(grad), x, made[name], key, p, norm)
            return norm_grad(grad, x, made[name], norm[0], residual, self.fp8)

        def before(name: str, grad: Tensor, x: Tensor, key: Tensor, quantized: Any = None) -> Tensor:
            of[name].up_grad(grad, made[name].h)
            return of[name].down_grad("none", of[name].backward(grad, quantized), x, made[name], key, p)

        of["fc2"].up_grad(rows, made["fc2"].h)
        both = of["fc2"].backward(rows, quantized)
        of_z = of["fc2"].down_grad("gelu", both, kept.z, made["fc2"], keys[5], p, maker=(of["fc1"], made["fc1"].h))
        rows, quantized = before_norm("fc1", of_z, rows, kept.residual[2], keys[4])
        of_attended = before("text_out", rows, kept.attended, keys[3], quantized)
        of_q, of_kv = attend_text_grad(kept.q, kept.kv, inputs.attend, self.heads, of_attended)
        before("text_kv", of_kv, inputs.text, inputs.text_keys[self.index])
        of["text_q"].up_grad(of_q, made["text_q"].h)
        rows, quantized = before_norm("text_q", of_q, rows, kept.residual[1], keys[2])
        of_qkv = kept.own.backward(before("out", rows, kept.own.output, keys[1], quantized))
        of["qkv"].up_grad(of_qkv, made["qkv"].h)
        rows, quantized = before_norm("qkv", of_qkv, rows, kept.residual[0], keys[0])
        add_up(self.gradients, self.partial)
        return rows.view_as(grad), quantized


class FusedBlocks:
    """All blocks; the counterpart of `blocks.PlainBlocks`.

    Args:
        flat: the adapters' parameters, those of each layer as `blocks.adapter_parameters` has them.
    """

    def __init__(self, layers: Sequence[Any], heads: int, precision: str, flat: FlatParameters) -> None:
        self._parameters = flat.whole.detach()
        self._copies = torch.empty_like(self._parameters, dtype=layers[0].fc1.base_layer.weight.dtype)
        copies, gradients = self._copies.view(len(layers), -1), flat.gradient.view(len(layers), -1)
        partial = gradients.new_empty(SPLITS, gradients.shape[1])
        self._blocks = [  # one at a time: memory holds one block twice
            FusedBlock(index, pack(layer), heads, precision, copies[index], gradients[index], partial)
            for index, layer in enumerate(layers)
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the adapters' parameters to where the products read them."""
        self._copies.copy_(self._parameters)
        for block in self._blocks:
            for linear in block.linears.values():
                linear.refresh()

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        """[B, S, D] → [B, S, D], without gradients."""
        with torch.no_grad():
            for block in self._blocks:
                x, _ = block.forward(x, inputs, keep=False)
        return x

    def differentiable(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> tuple[Tensor, Callable[[Tensor], None]]:
        """→ [B, S, D], and what takes a loss made from it and adds the adapters' gradients."""
        kept: list[Any] = []
        for block in self._blocks:
            before = x
            x, of_block = block.forward(x, inputs, keep=not checkpointing)
            kept.append(before if checkpointing else of_block)
        x.requires_grad_()

        @torch.no_grad()
        def backward(loss: Tensor) -> None:
            (grad,) = torch.autograd.grad(loss, x)
            quantized = None
            for block in reversed(self._blocks):
                of_block = kept.pop()
                if checkpointing:
                    _, of_block = block.forward(of_block, inputs, keep=True)
                grad, quantized = block.backward(grad, quantized, of_block, inputs)

        return x, backward
