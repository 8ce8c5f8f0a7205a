"""The decoder's blocks as peft itself runs them: for DoRA, and for adapters on only some of the linear layers.

Slower than the packed and fused blocks, but general: whatever peft computes is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgen_core.model.decoder import DecoderLayer
from musicgen_core.training.compute import dropout
from musicgen_core.training.compute.blocks import Blocks, Inputs, LoraLinear

_STREAMS = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 0,
    "self_attn.v_proj": 0,
    "self_attn.out_proj": 1,
    "encoder_attn.q_proj": 2,
    "encoder_attn.out_proj": 3,
    "fc1": 4,
    "fc2": 5,
}
"""The index in `Inputs.dropout_seeds` of each layer's dropout, as in `blocks.block`."""
_TEXT_LAYERS = ("encoder_attn.k_proj", "encoder_attn.v_proj")


def can_pack(layers: Sequence[DecoderLayer]) -> bool:
    """Return whether all linear layers of the blocks have plain LoRA, as the packed and fused blocks require."""
    linears = [layer.get_submodule(name) for layer in layers for name in (*_STREAMS, *_TEXT_LAYERS)]
    return all(_is_adapted(linear) and not linear.lora_variant for linear in linears)


class PeftBlocks(Blocks):
    """All blocks, for any device and precision; autograd computes their gradients."""

    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        self._layers = layers
        self._dropouts = [{name: _ClipDropout() for name in (*_STREAMS, *_TEXT_LAYERS)} for _ in layers]
        for layer, dropouts in zip(layers, self._dropouts, strict=True):
            for name, own in dropouts.items():
                linear = layer.get_submodule(name)
                if _is_adapted(linear):
                    linear.lora_dropout["default"] = own

    def refresh(self) -> None:
        """Do nothing: the parameters are read where they are."""

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        text = inputs.text.view(len(x), -1, x.shape[-1])
        half = x.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(x.device.type, x.dtype if half else None, enabled=half):  # the adapter is in fp32
            for index, layer in enumerate(self._layers):
                self._set_dropout(index, inputs)
                if checkpointing and torch.is_grad_enabled():
                    arguments = (layer, x, text, inputs.attend)
                    x = checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = layer(x, text, inputs.attend)
        return x

    def differentiable(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> tuple[Tensor, Callable[[Tensor], None]]:
        return self.forward(x, inputs, checkpointing), torch.Tensor.backward

    def _set_dropout(self, index: int, inputs: Inputs) -> None:
        """Set the seeds of a block's dropout until the next forward pass; recomputed activations get the same masks."""
        for name, own in self._dropouts[index].items():
            own.dropout_seeds = (
                inputs.dropout_seeds[index, _STREAMS[name]] if name in _STREAMS else inputs.text_dropout_seeds[index]
            )
            own.p = inputs.p
        self._layers[index].train(inputs.p > 0)  # read by dropout and by peft's DoRA


class _ClipDropout(nn.Module):
    """Replaces peft's dropout by a function of the clips' seeds, as in the other blocks."""

    dropout_seeds: Tensor
    p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Return dropout of x [B, S or L, D], which has as many rows as there are seeds."""
        return x if not self.training else dropout.drop(x.flatten(0, 1), self.dropout_seeds, self.p).view_as(x)


def _is_adapted(linear: nn.Module) -> TypeGuard[LoraLinear]:
    return hasattr(linear, "lora_A")
