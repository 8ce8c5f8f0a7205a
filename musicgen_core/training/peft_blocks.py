"""The decoder's blocks as peft itself runs them: for DoRA, and for adapters on only some of the linear layers.

Slower than the packed and fused blocks, and general: whatever peft computes is what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgen_core.training import dropout
from musicgen_core.training.blocks import Inputs

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
"""Which of `Inputs.keys` drop out a layer's input, as in `blocks.block`"""
_OF_TEXT = ("encoder_attn.k_proj", "encoder_attn.v_proj")


def can_pack(layers: Sequence[Any]) -> bool:
    """Whether all linear layers of the blocks have plain LoRA, which the packed and fused blocks want."""
    linears = [layer.get_submodule(name) for layer in layers for name in (*_STREAMS, *_OF_TEXT)]
    return all(_is_adapted(linear) and not linear.lora_variant for linear in linears)


class PeftBlocks:
    """All blocks, for any device and precision; autograd differentiates them. The counterpart of `PlainBlocks`."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._dropouts = [{name: _ClipDropout() for name in (*_STREAMS, *_OF_TEXT)} for _ in layers]
        for layer, dropouts in zip(layers, self._dropouts, strict=True):
            for name, own in dropouts.items():
                linear = layer.get_submodule(name)
                if _is_adapted(linear):
                    linear.lora_dropout["default"] = own

    def refresh(self) -> None:
        """Nothing: the parameters are read where they are."""

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        """[B, S, D] → [B, S, D]."""
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
        """→ [B, S, D], and what takes a loss made from it and adds the adapters' gradients."""
        return self.forward(x, inputs, checkpointing), torch.Tensor.backward

    def _set_dropout(self, index: int, inputs: Inputs) -> None:
        """It stays until the next forward pass, so activations computed again are dropped out alike."""
        for name, own in self._dropouts[index].items():
            own.keys = inputs.keys[index, _STREAMS[name]] if name in _STREAMS else inputs.text_keys[index]
            own.p = inputs.p
        self._layers[index].train(inputs.p > 0)  # dropout asks for it, and so does peft's DoRA


class _ClipDropout(nn.Module):
    """In the place of peft's dropout: a function of the clips' seeds, as in the other blocks."""

    keys: Tensor
    p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[B, S or L, D], of as many rows as `keys`."""
        return x if not self.training else dropout.drop(x.flatten(0, 1), self.keys, self.p).view_as(x)


def _is_adapted(linear: Any) -> bool:
    return hasattr(linear, "lora_A")
