"""The language model and its adapter as training runs them: packed, fused or compiled, in little memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.model.decoder import MusicgenLM, TextCondition
from musicgen_core.model.pattern import teacher_forcing
from musicgen_core.training import dropout
from musicgen_core.training.blocks import ATTENTION, STREAMS, Inputs, PlainBlocks, adapter_parameters, head_losses
from musicgen_core.training.cuda_graphs import Graphs
from musicgen_core.training.flat_parameters import FlatParameters
from musicgen_core.training.peft_blocks import PeftBlocks, can_pack

SHAPES = 64
"""Compilations of a function, one for each shape of batch; torch's own limit is 8."""


@dataclass(frozen=True)
class Execution:
    """How to compute.

    Attributes:
        precision: bf16, fp8 (of the frozen weights' products), fp16 or fp32.
        compile: whether to compile, where the GPU allows to fused kernels and CUDA graphs.
        checkpointing: whether to keep only the blocks' inputs and compute the rest again in the backward pass.
    """

    precision: str
    compile: bool
    checkpointing: bool


class TrainingModel:
    """A frozen language model with peft's adapter on it.

    With fused kernels the parameters are read from copies, which `zero_grad` before each step brings up to date. With
    FP8 the model's own forward no longer serves: its weights are given up.

    Args:
        peft_model: what `add_lora` made.
        dropout_p: probability of LoRA's dropout.
        fused: whether to use the fused kernels; by default, where they work.

    Raises:
        ConfigError: FP8 with DoRA or with only some layers adapted.

    Attributes:
        parameters: the adapter's, and
        flat: all of them as one.
        execution: its checkpointing may be changed between steps, with `release` after it.
    """

    def __init__(self, peft_model: Any, dropout_p: float, execution: Execution, fused: bool | None = None) -> None:
        self.lm: MusicgenLM = peft_model.base_model.model
        self.dropout = dropout_p
        self.execution = execution
        self.device = self.lm.enc_to_dec_proj.weight.device
        self.parameters = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
        norm = self.lm.model.decoder.layer_norm
        self._norm = (norm.weight, norm.bias)
        heads = [head.weight for head in self.lm.lm_heads]
        self._heads = torch.cat(heads)
        for head, part in zip(heads, self._heads.chunk(len(heads)), strict=True):
            head.data = part
        if execution.compile:
            torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
        self._head_losses = torch.compile(head_losses, dynamic=False) if execution.compile else head_losses
        layers = list(self.lm.model.decoder.layers)
        packed = can_pack(layers)
        if execution.precision == "fp8" and not packed:
            raise ConfigError(
                message(
                    "base_precision fp8 can't be combined with lora_dora, or with lora_targets that leave out layers"
                ),
                message("Give --base-precision bf16"),
            )
        of_layers = [parameter for layer in layers for parameter in adapter_parameters(layer)] if packed else None
        self.flat = FlatParameters(self.parameters, of_layers or self.parameters)
        self._fused = packed and (fused_kernels_work(self.device, execution) if fused is None else fused)
        if self._fused:
            from musicgen_core.training.fused_blocks import FusedBlocks  # Triton is not everywhere

            self._blocks: Any = FusedBlocks(layers, self.lm.config.heads, execution.precision, self.flat)
        elif packed:
            self._blocks = PlainBlocks(layers, self.lm.config.heads, execution.compile)
        else:
            self._blocks = PeftBlocks(layers)
        with_graphs = self._fused and self.device.type == "cuda"
        self._run = Graphs(self._step) if with_graphs else self._step
        self._refresh = Graphs(self._blocks.refresh) if with_graphs else self._blocks.refresh
        self.zero_grad()

    def losses(self, codes: Tensor, frames: Tensor, text: TextCondition, seeds: Tensor | None) -> Tensor:
        """The loss of each clip and codebook. With fused kernels there are no gradients: `step` computes them.

        Args:
            codes: [B, K, T], padded at the end.
            frames: [B].
            text: of the same clips.
            seeds: [B] of LoRA's dropout; None: no dropout.

        Returns:
            [B, K], nats.
        """
        self._refresh()
        x, inputs, targets, valid = self._inputs(codes, frames, text, seeds)
        with sdpa_kernel(ATTENTION, set_priority=True):
            x = self._blocks.forward(x, inputs, self.execution.checkpointing)
            return self._head_losses(x, self._norm, self._heads, targets, valid)

    def step(self, codes: Tensor, frames: Tensor, text: TextCondition, seeds: Tensor, scale: float) -> Tensor:
        """Add the gradients of the sum over clips of their mean losses, times `scale`.

        What is computed with the same shapes again and again becomes a CUDA graph.

        Returns:
            [B, K], as `losses`, unscaled.
        """
        # 0-dimensional, so its precision never becomes that of the loss
        factor = torch.full((), scale, dtype=torch.float64, device=self.device)
        return self._run(codes, frames, text.states, text.mask, seeds, factor)

    def zero_grad(self) -> None:
        """Forget the gradients, and take in the parameters as they are now."""
        self.flat.gradient.zero_()
        self._refresh()  # always: nothing about a tensor tells that a fused optimizer changed it

    def release(self) -> bool:
        """Give back the memory that only speed wants → whether there were CUDA graphs that held some."""
        held = isinstance(self._run, Graphs) and self._run.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return held

    def _step(
        self, codes: Tensor, frames: Tensor, states: Tensor, mask: Tensor, seeds: Tensor, scale: Tensor
    ) -> Tensor:
        x, inputs, targets, valid = self._inputs(codes, frames, TextCondition(states, mask), seeds)
        with sdpa_kernel(ATTENTION, set_priority=True), torch.set_grad_enabled(not self._fused):
            x, backward = self._blocks.differentiable(x, inputs, self.execution.checkpointing)
            with torch.enable_grad():
                losses = self._head_losses(x, self._norm, self._heads, targets, valid)
                backward(losses.mean(dim=1).sum() * scale)
        return losses.detach()

    def _inputs(
        self, codes: Tensor, frames: Tensor, text: TextCondition, seeds: Tensor | None
    ) -> tuple[Tensor, Inputs, Tensor, Tensor]:
        """→ embedded [B, S, D], what the blocks share, targets and validity [B, K, S]."""
        inputs, targets, valid = teacher_forcing(codes, frames, special=self.lm.config.special)
        states, attend = self.lm.project_text(text)
        x = self.lm.model.decoder.embed(inputs)
        p = self.dropout if seeds is not None else 0.0
        seeds = seeds if seeds is not None else frames.int()
        shared = Inputs(
            text=states.flatten(0, 1),
            attend=attend,
            keys=self._keys(seeds, x.shape[1], STREAMS),
            text_keys=self._keys(seeds, states.shape[1], 1)[:, 0],
            p=p,
        )
        return x, shared, targets, valid

    def _keys(self, seeds: Tensor, rows: int, streams: int) -> Tensor:
        """[layers, streams, B · rows]."""
        layers = self.lm.config.layers
        return dropout.row_keys(seeds, rows, streams * layers).view(layers, streams, -1)


def fused_kernels_work(device: torch.device, execution: Execution) -> bool:
    """They want 16 bits and the matrix units of compute capability 8.0."""
    if device.type != "cuda" or not execution.compile or execution.precision == "fp32":
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
